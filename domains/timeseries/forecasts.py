"""What a forecaster says of a series: forecasts, their calibrated intervals, and many as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import UsageError
from mambakit.domains.timeseries import conformal
from mambakit.domains.timeseries.tables.table import Series


@dataclass(frozen=True)
class Forecast:
    """What a model says of one series, in its own units.

    Attributes:
        unique_id: The series.
        stamps: ``(horizon,)``.
        point: ``(horizon,)``.
        quantiles: ``(horizon, n_quantiles)``, increasing along the last dimension.
        levels: Their levels.
        intervals: Calibrated central intervals: coverage in per cent, to low and high ``(horizon,)``.
    """

    unique_id: str
    stamps: pd.Index
    point: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    levels: tuple[float, ...]
    intervals: Mapping[float, tuple[NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=dict)


Predictor = Callable[[Sequence[Series], int], list[Forecast]]
"""From histories and a horizon to a forecast of each."""


def with_intervals(model: Any, forecasts: Sequence[Forecast], levels: Sequence[float]) -> list[Forecast]:
    """The forecasts with the intervals that the model was calibrated for.

    Args:
        model: One with a calibrator, from ``calibration.calibrate_model``.
        forecasts: Its forecasts.
        levels: Coverages in per cent, such as ``[80, 95]``.

    Raises:
        UsageError: If the model was not calibrated, or on a level outside (0, 100).
        DataError: If it was calibrated on too few targets for a level.
    """
    calibrator = model.calibrators.get(conformal.KEY)
    if calibrator is None:
        raise UsageError(
            "levels: this model has no calibrated intervals; calibrate it on rows that it was not trained on"
        )
    quantiles = np.stack([one.quantiles for one in forecasts])
    found = {level: conformal.interval(calibrator, quantiles, level) for level in levels}
    return [
        dataclasses.replace(one, intervals={level: (low[i], high[i]) for level, (low, high) in found.items()})
        for i, one in enumerate(forecasts)
    ]


def to_frame(forecasts: Sequence[Forecast]) -> pd.DataFrame:
    """A long table: unique_id, ds, y_hat, then a column a level (q10, ..., q90).

    Calibrated intervals follow as lo-80 and hi-80, as neuralforecast names them.
    """
    frames = []
    for one in forecasts:
        columns = {f"q{level * 100:g}": one.quantiles[:, i] for i, level in enumerate(one.levels)}
        for level, (low, high) in one.intervals.items():
            columns |= {f"lo-{level:g}": low, f"hi-{level:g}": high}
        frames.append(
            pd.DataFrame({"unique_id": one.unique_id, "ds": one.stamps, "y_hat": one.point, **columns})
        )
    return pd.concat(frames, ignore_index=True)


def until(one: Series, n_rows: int, ahead: int = 0) -> Series:
    """The first rows of a series, with the future covariates of so many rows ahead."""
    return dataclasses.replace(
        one,
        stamps=one.stamps[:n_rows],
        values=one.values[:n_rows],
        past=None if one.past is None else one.past.iloc[:n_rows],
        future=None if one.future is None else one.future.iloc[: n_rows + ahead],
    )
