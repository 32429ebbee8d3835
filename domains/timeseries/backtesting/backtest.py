"""Rolling origins: what a model and its baselines would have said at several moments of the past."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries import conformal
from mambakit.domains.timeseries.backtesting import statsforecasts
from mambakit.domains.timeseries.backtesting.linear_forecasts import fit_linear
from mambakit.domains.timeseries.backtesting.local_forecasts import LOCAL
from mambakit.domains.timeseries.backtesting.local_forecasts import predictor as local_predictor
from mambakit.domains.timeseries.backtesting.scores import AVERAGES, Average, SeriesScores
from mambakit.domains.timeseries.forecast_table import ForecastTable
from mambakit.domains.timeseries.forecasting import Forecast, Predictor, forecast, until, with_intervals
from mambakit.domains.timeseries.metrics import mase_scale
from mambakit.domains.timeseries.tables.table import Series

OURS = "mambakit"
BASELINES = ("linear", *LOCAL, *statsforecasts.MODELS)
DEFAULT_BASELINES = ("linear", "seasonal naive", "naive")
DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

MakeModel = Callable[[list[Series]], Any]
"""From the series at an origin to a model that ``forecasting.forecast`` takes, or to a ``Predictor``."""


@dataclass(frozen=True)
class Backtest:
    """Forecasts beside what came.

    Attributes:
        rows: One mapping a forecaster, ours first; errors in the series' own units, see ``scores``.
        by_series: The errors of each series and forecaster.
        table: unique_id, cutoff (the last stamp known), ds, y, and for each forecaster its point forecast,
            and as neuralforecast names them ``NAME-lo-80``, ``NAME-hi-80``, ``NAME-median``.
        left_out: Series that took part in no origin, or had no target: why.
        partly: Series that were too short for the first origins, and how many they took part in.
        mse_by_step: Of each forecaster, ``(horizon,)``.
        ranks: Of each forecaster, how many targets had 0, 1, ... of ``levels`` under them.
        levels: The quantile levels that every forecaster was asked for.
        intervals: The central intervals that were measured, in per cent.
    """

    rows: list[dict[str, object]]
    by_series: pd.DataFrame
    table: pd.DataFrame
    left_out: dict[str, str]
    partly: dict[str, int]
    mse_by_step: dict[str, list[float]]
    ranks: dict[str, list[int]]
    levels: tuple[float, ...]
    intervals: tuple[float, ...]


def backtest(
    make_model: MakeModel | None,
    series: Sequence[Series],
    *,
    horizon: int,
    windows: int = 1,
    step_size: int | None = None,
    refit: bool | int = False,
    input_size: int | None = None,
    least: int = 2,
    lookback: int = 96,
    season_length: int = 1,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    levels: Sequence[float] = (80, 95),
    average: Average = "series",
) -> Backtest:
    """Forecasts ``horizon`` rows from each of the last ``windows`` origins of every series, and compares.

    The last origin of a series lies ``horizon`` rows before its end, the one before ``step_size`` rows
    earlier. No forecaster sees a row behind its origin, but for the future covariates of the horizon.

    Args:
        make_model: Called with the histories at an origin; None measures the baselines alone.
        series: The whole series, of any lengths; one too short for the first origins takes part in the
            others.
        horizon: Rows from each origin.
        windows: Origins.
        step_size: Rows from one origin to the next; the horizon by default.
        refit: False makes the model (and fits the linear baseline) once, at the first origin; True at every
            one; ``n`` at every n-th. The other baselines are of each history anew.
        input_size: Let models see the last so many rows of each history only; all by default.
        least: Rows that a history must have, and two of them values.
        lookback: Rows that the linear baseline reads.
        season_length: Rows in a season.
        baselines: Of ``BASELINES``; AutoETS and AutoARIMA need the extra ``mambakit[baselines]``.
        levels: Central intervals in per cent whose coverage is measured; MSIS is of the widest. The model's
            are calibrated where it has calibrated intervals, else those of its quantiles where it has them.
        average: How series are averaged, see ``scores``.

    Raises:
        UsageError: On an argument that can't be.
        DataError: If no series is long enough, or a forecast is NaN.
        UserError: If statsforecast is wanted and isn't there, or fails.
    """
    step_size = horizon if step_size is None else step_size
    given = {"horizon": horizon, "windows": windows, "step_size": step_size, "least": least}
    given |= {} if input_size is None else {"input_size": input_size}
    for name, value in given.items():
        if value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}")
    _check_baselines(baselines)
    for level in levels:
        conformal.share_of_misses(level)
    if average not in AVERAGES:
        raise UsageError(f"average: expected one of {', '.join(AVERAGES)}, got {average!r}")
    every = _refit_every(refit)
    cuts = [_cuts(one, horizon, windows, step_size, least) for one in series]
    left_out = {
        one.unique_id: _why(one, horizon, least) for one, cut in zip(series, cuts, strict=True) if not cut
    }
    if len(left_out) == len(series):
        first = next(iter(left_out.items()), ("", "there is none"))
        raise DataError(f"no series can be backtested; the first, {first[0]!r}: {first[1]}")
    scores: SeriesScores | None = None
    predictors: dict[str, Predictor] = {}
    table = ForecastTable()
    fits = 0
    for window in range(windows):
        taking = [(one, cut[window]) for one, cut in zip(series, cuts, strict=True) if window in cut]
        if not taking:
            continue
        ahead = [until(one, n, ahead=horizon) for one, n in taking]
        seen = ahead if input_size is None else [_last(one, input_size) for one in ahead]
        targets = np.stack([one.values[n : n + horizon] for one, n in taking])
        scales = np.array([_scale(one.values, season_length) for one in ahead])
        if not predictors or (every and fits * every <= window):
            fits = window // every + 1 if every else 1
            predictors = {}
            known = [_known(one) for one in seen]
            if make_model is not None:
                predictors[OURS] = as_predictor(make_model(known), levels)
        made = {name: predict(seen, horizon) for name, predict in predictors.items()}
        if scores is None:
            ours = made[OURS][0].levels if OURS in made else DECILES
            scores = SeriesScores(ours, levels)
        if any(name not in predictors for name in baselines):
            wanted = _joined(scores.levels, levels)
            for name in baselines:
                predictors[name] = _baseline(
                    name, seen, lookback, horizon, levels=wanted, season_length=season_length
                )
                made[name] = predictors[name](seen, horizon)
        for name, forecasts in made.items():
            scores.add(name, forecasts, targets, scales)
        table.add(taking, horizon, made)
    assert scores is not None
    left_out |= dict.fromkeys(scores.empty, "none of its targets is there")
    counts = {one.unique_id: len(cut) for one, cut in zip(series, cuts, strict=True)}
    return Backtest(
        rows=scores.rows(average),
        by_series=scores.table(),
        table=table.frame(),
        left_out=left_out,
        partly={name: n for name, n in counts.items() if 0 < n < windows},
        mse_by_step=scores.mse_by_step(),
        ranks=scores.ranks(),
        levels=scores.levels,
        intervals=scores.intervals,
    )


def as_predictor(model: Any, levels: Sequence[float] = ()) -> Predictor:
    """A model as a function; with its calibrated intervals where it has them."""
    if not isinstance(model, nn.Module):
        return model

    def predict(histories: Sequence[Series], horizon: int) -> list[Forecast]:
        made = forecast(model, histories, horizon)  # type: ignore[arg-type]
        calibrated = conformal.KEY in getattr(model, "calibrators", {})
        return with_intervals(model, made, levels) if calibrated and levels else made

    return predict


def _cuts(one: Series, horizon: int, windows: int, step_size: int, least: int) -> dict[int, int]:
    """Rows of history at each origin that the series takes part in."""
    first = len(one.values) - horizon - (windows - 1) * step_size
    there = np.cumsum(np.isfinite(one.values))
    cuts = {window: first + window * step_size for window in range(windows)}
    return {w: n for w, n in cuts.items() if n >= max(least, 1) and there[n - 1] >= 2}


def _why(one: Series, horizon: int, least: int) -> str:
    if len(one.values) < least + horizon:
        return f"{len(one.values)} rows are too few for {horizon} ahead after {least} rows of history"
    return "fewer than two values are there before its last origin"


def _refit_every(refit: bool | int) -> int:
    """0 for never."""
    if isinstance(refit, bool):
        return int(refit)
    if refit < 0:
        raise UsageError(f"refit: expected True, False or a number of origins, got {refit}")
    return refit


def _check_baselines(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise UsageError(f"baselines: expected some of {', '.join(BASELINES)}, got {unknown[0]!r}")
    for name in names:
        if name in statsforecasts.MODELS:
            statsforecasts.require(name)  # before a model is trained for nothing


def _baseline(
    name: str, seen: list[Series], lookback: int, horizon: int, *, levels: Sequence[float], season_length: int
) -> Predictor:
    if name == "linear":
        return fit_linear([_known(one) for one in seen], lookback=lookback, horizon=horizon, levels=levels)
    if name in LOCAL:
        return local_predictor(LOCAL[name], season_length=season_length, levels=levels)
    return statsforecasts.predictor(name, season_length=season_length, levels=levels)


def _joined(levels: Sequence[float], intervals: Sequence[float]) -> tuple[float, ...]:
    """Quantile levels, and those of the intervals."""
    wanted = {round(0.5 + side * level / 200, 9) for level in intervals for side in (-1, 1)}
    return tuple(sorted({round(level, 9) for level in levels} | wanted))


def _known(one: Series) -> Series:
    """Without the covariates of the rows ahead: what a model may be trained on."""
    return until(one, len(one.values))


def _last(one: Series, n_rows: int) -> Series:
    drop = max(0, len(one.values) - n_rows)
    return Series(
        one.unique_id,
        one.stamps[drop:],
        one.values[drop:],
        one.frequency,
        None if one.past is None else one.past.iloc[drop:],
        None if one.future is None else one.future.iloc[drop:],
        one.static,
    )


def _scale(values: NDArray[np.float64], season_length: int) -> float:
    return float(mase_scale(torch.tensor(values)[:, None], season_length))
