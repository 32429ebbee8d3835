"""One least-squares map for all series, from lookback and known-future covariates to the horizon.

``baselines.least_squares`` for ragged series, missing values and covariates: windows of every series, scaled
by the series' own deviation, the window's mean taken out of the values; covariates keep their level, which
says more. Toner & Darlow 2024, arXiv:2403.14587.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.domains.timeseries.backtesting.local_forecasts import interpolated, normal_forecast
from mambakit.domains.timeseries.forecasts import Forecast
from mambakit.domains.timeseries.tables.table import Series

Array = NDArray[np.float64]
Scales = dict[str, tuple[float, float]]
# Windows read at most; beyond, every so many are left out.
_MOST_WINDOWS = 200_000
_CHUNK = 4096
_RIDGE = 1e-6


@dataclass(frozen=True)
class LinearForecasts:
    """A fitted map; call it with histories and a horizon of at most the one it was fitted for.

    Attributes:
        weight: ``(lookback + n_covariates * (lookback + horizon), horizon)``.
        deviation: Of the training errors at each step, ``(horizon,)``, in units of a series' deviation.
        lookback: Rows read.
        covariates: Names of the future covariates read, and their mean and deviation over all series.
        levels: Quantile levels of its forecasts.
        deviations: Of the series it was fitted on, by name; another is scaled by its own history.
    """

    weight: Array
    deviation: Array
    lookback: int
    covariates: Scales
    levels: tuple[float, ...]
    deviations: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, histories: Sequence[Series], horizon: int) -> list[Forecast]:
        """Forecasts with normal intervals.

        A history shorter than the lookback is continued backwards by its mean.

        Raises:
            DataError: If future covariates do not reach the horizon.
        """
        trained = self.weight.shape[1]
        if horizon > trained:
            raise DataError(f"linear: it was fitted for a horizon of {trained}, asked for {horizon}")
        made = []
        for one in histories:
            values = interpolated(one.values)[-self.lookback :]
            deviation = self.deviations.get(one.unique_id) or _deviation(one.values)
            mean = values.mean()
            x = np.zeros(self.lookback)
            x[self.lookback - len(values) :] = (values - mean) / deviation
            columns = _ahead(one, self.covariates, self.lookback, trained, horizon)
            point = np.concatenate([x, *columns]) @ self.weight * deviation + mean
            spread = self.deviation[:horizon] * deviation
            made.append(normal_forecast(one, point[:horizon], spread, self.levels))
        return made


def fit_linear(
    series: Sequence[Series], *, lookback: int, horizon: int, levels: Sequence[float]
) -> LinearForecasts:
    """Least squares over every window of the series whose targets are all there.

    Missing values looked back at are filled on straight lines. Numeric future covariates that every series
    has are read, over lookback and horizon. Without any window the forecast is the mean of the lookback.

    Args:
        series: The histories to learn from.
        lookback: Rows read.
        horizon: Rows forecast.
        levels: Quantile levels of its forecasts.
    """
    covariates = _covariates(series)
    size = lookback + len(covariates) * (lookback + horizon)
    gram, cross = np.zeros((size, size)), np.zeros((size, horizon))
    squares, count = np.zeros(horizon), 0
    total = sum(max(0, len(one.values) - lookback - horizon + 1) for one in series)
    for x, y in _windows(series, covariates, lookback, horizon, max(1, math.ceil(total / _MOST_WINDOWS))):
        gram += x.T @ x
        cross += x.T @ y
        squares += (y**2).sum(0)
        count += len(y)
    ridge = max(_RIDGE * np.trace(gram) / size, 1e-12)
    weight = np.linalg.solve(gram + ridge * np.eye(size), cross)
    errors = squares - 2 * (weight * cross).sum(0) + (weight * (gram @ weight)).sum(0)
    # without any window nothing is known of the errors: a series' own deviation it is then
    deviation = np.sqrt(np.maximum(errors, 0) / count) if count else np.ones(horizon)
    scales = {one.unique_id: _deviation(one.values) for one in series}
    return LinearForecasts(weight, deviation, lookback, covariates, tuple(levels), scales)


def _windows(
    series: Sequence[Series], covariates: Scales, lookback: int, horizon: int, stride: int
) -> Iterator[tuple[Array, Array]]:
    length = lookback + horizon
    for one in series:
        n = len(one.values)
        if n < length:
            continue
        starts = np.arange((n - length) % stride, n - length + 1, stride)
        there = np.all(sliding_window_view(np.isfinite(one.values), horizon)[lookback:], axis=-1)
        starts = starts[there[starts]]
        values = sliding_window_view(interpolated(one.values) / _deviation(one.values), length)
        columns = [
            sliding_window_view((_column(one, name, n) - mean) / deviation, length)
            for name, (mean, deviation) in covariates.items()
        ]
        for i in range(0, len(starts), _CHUNK):
            rows = values[starts[i : i + _CHUNK]]
            mean = rows[:, :lookback].mean(1, keepdims=True)
            known = [column[starts[i : i + _CHUNK]] for column in columns]
            yield np.hstack([rows[:, :lookback] - mean, *known]), rows[:, lookback:] - mean


def _covariates(series: Sequence[Series]) -> Scales:
    """Numeric future covariates that every series has, with mean and deviation; constant ones say nothing."""
    frames = [one.future for one in series if one.future is not None]
    if not frames or len(frames) < len(series):
        return {}
    names = [
        name
        for name in frames[0].columns
        if all(name in frame and pd.api.types.is_numeric_dtype(frame[name]) for frame in frames)
    ]
    found = {}
    for name in names:
        every = np.concatenate([_column(one, name, len(one.values)) for one in series])
        deviation = float(every.std())
        if deviation > 1e-12 * max(1e-300, float(np.abs(every).max())):
            found[name] = (float(every.mean()), deviation)
    return found


def _column(one: Series, name: str, n: int) -> Array:
    assert one.future is not None
    return interpolated(one.future[name].to_numpy(dtype=np.float64, na_value=np.nan)[:n])


def _ahead(one: Series, covariates: Scales, lookback: int, trained: int, horizon: int) -> list[Array]:
    """The covariates of the window that ends ``horizon`` rows ahead, as ``_windows`` cuts them."""
    n = len(one.values)
    found = []
    for name, (mean, deviation) in covariates.items():
        if one.future is None or name not in one.future:
            raise DataError(f"series {one.unique_id!r}: the future covariate {name!r} is missing")
        if len(one.future) < n + horizon:
            raise DataError(
                f"series {one.unique_id!r}: its future covariates reach {len(one.future) - n} of the "
                f"{horizon} rows ahead"
            )
        column = (_column(one, name, n + horizon)[max(0, n - lookback) :] - mean) / deviation
        # before a short history and beyond a short horizon: their nearest value
        found.append(np.pad(column, (lookback - min(n, lookback), trained - horizon), mode="edge"))
    return found


def _deviation(values: Array) -> float:
    """Population deviation of what is there; 1 where it never changes."""
    found = values[np.isfinite(values)]
    deviation = float(found.std()) if len(found) else 0.0
    return deviation if deviation > 1e-12 * float(np.abs(found).max(initial=1e-300)) else 1.0
