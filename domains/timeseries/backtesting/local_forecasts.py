"""Forecasts of a series from itself alone, with intervals: naive, seasonal naive, drift, Naive 2.

Missing values are passed over: the last value, or the last of a phase, is the last one that is there.
Intervals are those of independent normal errors with the spread of the one-step (one-season) differences in
the history, growing with the horizon as Hyndman & Athanasopoulos 2021, "Forecasting: Principles and
Practice", section 5.5, table 5.2, have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.domains.timeseries.forecasting import Forecast, Predictor
from mambakit.domains.timeseries.tables.table import Series, next_stamps

Array = NDArray[np.float64]
Rule = Callable[[Array, int, int], tuple[Array, Array]]
# 90 % of a normal: the seasonality test of M4's Naive 2
_TEST = 1.645


def predictor(rule: Rule, *, season_length: int, levels: Sequence[float]) -> Predictor:
    """A rule of this module as forecasts with quantiles.

    Args:
        rule: ``naive``, ``seasonal_naive``, ``drift`` or ``naive2``.
        season_length: Rows in a season.
        levels: Quantile levels, increasing.
    """

    def predict(histories: Sequence[Series], horizon: int) -> list[Forecast]:
        return [normal_forecast(one, *rule(one.values, horizon, season_length), levels) for one in histories]

    return predict


def normal_forecast(one: Series, point: Array, deviation: Array, levels: Sequence[float]) -> Forecast:
    """A normal distribution at each step, given by its mean and deviation ``(horizon,)``."""
    z = np.array([NormalDist().inv_cdf(level) for level in levels])
    return Forecast(
        one.unique_id,
        stamps_after(one, len(point)),
        point,
        point[:, None] + deviation[:, None] * z,
        tuple(levels),
    )


def stamps_after(one: Series, horizon: int) -> pd.Index:
    """The next stamps; steps 1, 2, ... where the series has no frequency."""
    return (
        next_stamps(one.stamps[-1], one.frequency, horizon)
        if one.frequency
        else pd.RangeIndex(1, horizon + 1)
    )


def naive(values: Array, horizon: int, season_length: int = 1) -> tuple[Array, Array]:
    """The last value, and its deviation at each step, ``sigma sqrt(h)``."""
    return seasonal_naive(values, horizon, 1)


def seasonal_naive(values: Array, horizon: int, season_length: int) -> tuple[Array, Array]:
    """The last value of the same phase; a history no longer than a season repeats its last value.

    Args:
        values: ``(length,)``, one of them there at least.
        horizon: Steps.
        season_length: Rows in a season.
    """
    season = season_length if len(values) > season_length else 1
    if season > 1 and not np.isfinite(values[season:] - values[:-season]).any():
        season = 1  # no phase was seen twice
    point, seasons = np.empty(horizon), np.empty(horizon)
    for phase in range(min(season, horizon)):
        same = values[::-1][season - 1 - phase :: season]  # this phase, the latest first
        there = np.flatnonzero(np.isfinite(same))
        steps = slice(phase, None, season)
        count = len(point[steps])
        if len(there):
            point[steps] = same[there[0]]
            seasons[steps] = np.arange(1, count + 1) + there[0]
        else:
            point[steps] = values[np.isfinite(values)][-1]
            seasons[steps] = np.arange(1, count + 1)
    return point, _spread(values[season:] - values[:-season], values) * np.sqrt(seasons)


def drift(values: Array, horizon: int, season_length: int = 1) -> tuple[Array, Array]:
    """The line through the first and the last value; its deviation ``sigma sqrt(h (1 + h / (T - 1)))``."""
    there = np.flatnonzero(np.isfinite(values))
    first, last = there[0], there[-1]
    span = max(1, last - first)
    slope = (values[last] - values[first]) / span
    h = np.arange(1, horizon + 1) + (len(values) - 1 - last)
    deviation = _spread(np.diff(values) - slope, values)
    return values[last] + slope * h, deviation * np.sqrt(h * (1 + h / span))


def naive2(values: Array, horizon: int, season_length: int) -> tuple[Array, Array]:
    """The last value without its season, and the season put back: what M4 measures OWA against.

    The season is multiplicative, from classical decomposition, and taken out where the autocorrelation at a
    season passes a 90 % test (Makridakis et al. 2020, appendix A). Not where a value is zero or below. Gaps
    are filled on straight lines first.
    """
    filled = interpolated(values)
    index = np.ones(season_length)
    if _seasonal(filled, season_length) and (filled > 0).all():
        index = _season_index(filled, season_length)
    plain = filled / np.resize(index, len(filled))
    ahead = np.resize(np.roll(index, -(len(filled) % season_length)), horizon)
    point, deviation = naive(plain, horizon)
    return point * ahead, deviation * ahead


LOCAL: dict[str, Rule] = {
    "seasonal naive": seasonal_naive,
    "naive": naive,
    "drift": drift,
    "naive2": naive2,
}


def interpolated(values: Array) -> Array:
    """Gaps filled on straight lines, ends with their nearest value; zeros if nothing is there."""
    there = np.isfinite(values)
    if there.all():
        return values
    if not there.any():
        return np.zeros_like(values)
    at = np.arange(len(values))
    return np.interp(at, at[there], values[there])


def _spread(residuals: Array, values: Array) -> float:
    """Root mean square of the residuals that are there; the series' own deviation where none is."""
    found = residuals[np.isfinite(residuals)]
    if len(found):
        return float(np.sqrt(np.mean(found**2)))
    return float(values[np.isfinite(values)].std())


def _seasonal(values: Array, season: int) -> bool:
    n = len(values)
    if season < 2 or n < 3 * season:
        return False
    centred = values - values.mean()
    total = centred @ centred
    if total <= 0:
        return False
    correlations = np.array([centred[k:] @ centred[:-k] / total for k in range(1, season + 1)])
    limit = _TEST * np.sqrt((1 + 2 * np.sum(correlations[:-1] ** 2)) / n)
    return bool(abs(correlations[-1]) > limit)


def _season_index(values: Array, season: int) -> Array:
    """Multiplicative indices of the phases, with mean 1, by the centred moving average."""
    weights = np.ones(season) / season if season % 2 else np.r_[0.5, np.ones(season - 1), 0.5] / season
    half = len(weights) // 2
    trend = np.convolve(values, weights, mode="valid")
    ratio = np.full(len(values), np.nan)
    ratio[half : half + len(trend)] = values[half : half + len(trend)] / trend
    index = np.array([np.nanmean(ratio[phase::season]) for phase in range(season)])
    return index / index.mean()
