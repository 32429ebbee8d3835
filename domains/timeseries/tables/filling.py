"""What is missing, filled from its neighbours: only where a user asks for it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def fill_values(values: NDArray[np.float64]) -> None:
    """Missing values on a straight line between their neighbours, at the ends as the nearest; in place."""
    lost = np.isnan(values)
    if lost.any() and not lost.all():
        rows = np.arange(len(values))
        values[lost] = np.interp(rows[lost], rows[~lost], values[~lost])


def fill_frame(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """Covariates: numbers as ``fill_values``, categories as the one before, else the one after."""
    if frame is None or not frame.isna().to_numpy().any():
        return frame
    columns = {}
    for name in frame.columns:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            columns[name] = column.ffill().bfill()
        else:
            numbers = column.to_numpy(dtype=np.float64, copy=True)
            fill_values(numbers)
            columns[name] = pd.Series(numbers, frame.index)
    return pd.DataFrame(columns)
