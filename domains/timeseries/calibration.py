"""Calibrating a trained forecaster's intervals on the end of the series that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.calibration import SplitConformal
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries import conformal
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.forecasting import forecast, until
from mambakit.domains.timeseries.stream.data import Store, forecasts
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.tables.table import Series

# Origins read at most, evenly spread over the rows held out: neighbours say nearly the same.
_MOST_ORIGINS = 150
_MOST_SERIES = 512


def calibrate_model(
    model: Any,
    series: Sequence[Series],
    *,
    horizon: int,
    held_out: float | int = 0.125,
    least: int = 2,
    by_step: bool | None = None,
) -> SplitConformal:
    """Fits ``model.calibrators["interval"]`` from forecasts into the last rows of each series.

    ``save_pretrained`` saves it with the model.

    Args:
        model: A forecaster.
        series: Series whose last rows it was not trained on. The rows that chose its weights (validation)
            will do, at a little optimism.
        horizon: Rows forecast; later steps take the last one's width.
        held_out: How many rows, or the share of a series' rows below 1.
        least: Rows that the model needs to read.
        by_step: See ``conformal.calibrate``.

    Raises:
        UsageError: If ``held_out`` or ``horizon`` is below what it can be.
        DataError: If no series is long enough.
    """
    quantiles, targets = held_out_forecasts(model, series, horizon=horizon, held_out=held_out, least=least)
    made = conformal.calibrate(quantiles, targets, by_step=by_step)
    model.calibrators[conformal.KEY] = made
    return made


def held_out_forecasts(
    model: Any, series: Sequence[Series], *, horizon: int, held_out: float | int, least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Quantiles ``(n, horizon, n_levels)`` and targets ``(n, horizon)`` of origins in the last rows.

    A series with fewer rows held out than the horizon gives one origin, its later targets NaN.
    """
    if horizon < 1 or held_out <= 0:
        raise UsageError(f"horizon, held_out: expected numbers above 0, got {horizon} and {held_out}")
    rows = {
        one.unique_id: max(1, int(len(one.values) * held_out) if held_out < 1 else int(held_out))
        for one in series
    }
    # origins so many rows before the end, the same for all series: aligned ones are read together
    furthest = max(rows.values())
    first = min(horizon, furthest)
    stride = max(1, -(-(furthest - first + 1) // _MOST_ORIGINS))
    quantiles, targets = [], []
    for before_end in range(furthest, first - 1, -stride):
        taking = [
            one
            for one in series
            if min(horizon, rows[one.unique_id]) <= before_end <= rows[one.unique_id]
            and len(one.values) - before_end >= least
            and np.isfinite(one.values[: len(one.values) - before_end]).sum() > 1
        ]
        if not taking:
            continue
        cuts = [len(one.values) - before_end for one in taking]
        histories = [until(one, n, ahead=horizon) for one, n in zip(taking, cuts, strict=True)]
        for one, n, made in zip(taking, cuts, forecast(model, histories, horizon), strict=True):
            came = one.values[n : n + horizon]
            quantiles.append(made.quantiles)
            targets.append(np.r_[came, np.full(horizon - len(came), np.nan)])
    if not quantiles:
        raise DataError(
            f"calibration: no series has {least} rows before the rows held out; hold out fewer, or none"
        )
    return np.stack(quantiles), np.stack(targets)


def validation_rows(data: SeriesData, horizon: int) -> tuple[list[Series], list[int]]:
    """Each series to the end of its validation rows, with what is known of a horizon behind them; how many.

    Raises:
        DataError: If there are none.
    """
    pairs = [pair for pair in zip(data.series, data.bounds, strict=True) if pair[1][1] > pair[1][0]]
    if not pairs:
        raise DataError("there are no validation rows to calibrate on")
    return [until(one, end[1], horizon) for one, end in pairs], [end[1] - end[0] for _, end in pairs]


def calibrate_stream(model: StreamForecaster, store: Store) -> SplitConformal:
    """As ``calibrate_model`` on the validation rows of a store, each series read once.

    Raises:
        DataError: If there are no validation rows.
    """
    n_origins = max(1, int((store.bounds[:, 1] - store.bounds[:, 0]).max()) - model.config.horizon + 1)
    stride = max(1, n_origins // _MOST_ORIGINS)
    quantiles, targets = [], []
    for found in forecasts(model, store, 1, stride=stride, most_series=_MOST_SERIES):
        there = found.target.isfinite().any(-1)
        quantiles.append(found.quantiles[there].double().cpu().numpy())
        targets.append(found.target[there].double().cpu().numpy())
    if not sum(map(len, targets)):
        raise DataError("there are no validation rows to calibrate on")
    made = conformal.calibrate(np.concatenate(quantiles), np.concatenate(targets))
    model.calibrators[conformal.KEY] = made
    return made
