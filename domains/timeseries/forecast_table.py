"""All forecasts of a backtest in one table, kept as arrays: a frame for each would cost more than they do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mambakit.domains.timeseries.forecasts import Forecast
from mambakit.domains.timeseries.metrics import central_pairs
from mambakit.domains.timeseries.tables.table import Series


class ForecastTable:
    """Rows unique_id, cutoff, ds, y, and for each forecaster the columns that neuralforecast's would have.

    Those are ``NAME``, ``NAME-lo-80``, ``NAME-hi-80`` for every central interval and ``NAME-median``; blanks
    in a name become underscores. Where a forecast has calibrated intervals, they are there instead of the
    central pairs of its quantiles, a wider one of which may lie inside a narrower calibrated one.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = defaultdict(list)
        self._stamps: list[pd.Index] = []
        self._cutoffs: list[pd.Index] = []

    def add(
        self, taking: Sequence[tuple[Series, int]], horizon: int, made: Mapping[str, Sequence[Forecast]]
    ) -> None:
        """The forecasts from one origin.

        Args:
            taking: The whole series, and how many rows of each were known.
            horizon: Rows forecast.
            made: By forecaster, a forecast of each series.
        """
        self._columns["unique_id"].append(np.repeat([one.unique_id for one, _ in taking], horizon))
        for one, n in taking:
            self._cutoffs.append(one.stamps[n - 1 : n].repeat(horizon))
            self._stamps.append(one.stamps[n : n + horizon])
            self._columns["y"].append(one.values[n : n + horizon])
        for name, forecasts in made.items():
            for column, values in _columns(name.replace(" ", "_"), forecasts).items():
                self._columns[column].append(values)

    def frame(self) -> pd.DataFrame:
        """The table, in the order of the origins."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        unique_id = columns.pop("unique_id")
        cutoff, ds = (parts[0].append(parts[1:]) for parts in (self._cutoffs, self._stamps))
        return pd.DataFrame({"unique_id": unique_id, "cutoff": cutoff, "ds": ds, **columns})


def _columns(name: str, forecasts: Sequence[Forecast]) -> dict[str, Any]:
    first = forecasts[0]
    found = {name: np.concatenate([one.point for one in forecasts])}
    quantiles = np.concatenate([one.quantiles for one in forecasts])
    if first.intervals:
        bounds = {
            level: [np.concatenate([one.intervals[level][side] for one in forecasts]) for side in (0, 1)]
            for level in first.intervals
        }
    else:
        bounds = {
            level: [quantiles[:, i], quantiles[:, j]] for level, (i, j) in central_pairs(first.levels).items()
        }
    for level, (low, high) in sorted(bounds.items()):
        found[f"{name}-lo-{level:g}"], found[f"{name}-hi-{level:g}"] = low, high
    if 0.5 in first.levels:
        found[f"{name}-median"] = quantiles[:, first.levels.index(0.5)]
    return found
