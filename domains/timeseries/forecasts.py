"""What a forecaster says of one series, and of many as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Forecast:
    """What a model says of one series, in its own units.

    Attributes:
        unique_id: The series.
        stamps: ``(horizon,)``.
        point: ``(horizon,)``.
        quantiles: ``(horizon, n_quantiles)``, increasing along the last dimension.
        levels: Their levels.
    """

    unique_id: str
    stamps: pd.Index
    point: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    levels: tuple[float, ...]


def to_frame(forecasts: Sequence[Forecast]) -> pd.DataFrame:
    """A long table: unique_id, ds, y_hat, then a column a level (q10, ..., q90)."""
    frames = []
    for one in forecasts:
        columns = {f"q{level * 100:g}": one.quantiles[:, i] for i, level in enumerate(one.levels)}
        frames.append(
            pd.DataFrame({"unique_id": one.unique_id, "ds": one.stamps, "y_hat": one.point, **columns})
        )
    return pd.concat(frames, ignore_index=True)
