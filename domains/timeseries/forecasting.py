"""Forecasts of what comes after a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.data import group_series, phases
from mambakit.domains.timeseries.forecasts import Forecast, Predictor, to_frame, until, with_intervals
from mambakit.domains.timeseries.stream.forecasting import forecast_stream, widened
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.tables.table import Series, next_stamps
from mambakit.domains.timeseries.tokenizer import scale_of
from mambakit.domains.timeseries.window import WindowForecaster

__all__ = ["Forecast", "Predictor", "forecast", "to_frame", "unknown_series", "until", "with_intervals"]


def forecast(
    model: WindowForecaster | StreamForecaster,
    series: Sequence[Series],
    horizon: int,
    *,
    left_out: list[tuple[str, str]] | None = None,
) -> list[Forecast]:
    """Forecasts ``horizon`` rows after the last row of each series, by either network.

    The one that reads row by row: see ``forecast_stream``. The one that reads a window:

    Series that the model was trained to read together are read together if all are there with the same
    stamps; any other series, and one that the model does not know, is read alone by what the model
    learned of unknown series. A constant series is forecast constant. Beyond the trained horizon the
    model reads its own point forecasts, and intervals add up as independent errors do.

    Args:
        model: The forecaster.
        series: The histories.
        horizon: Rows to forecast, more than the trained horizon if you like.
        left_out: Takes name and reason of each series that can't be forecast; without it that is an error.

    Raises:
        UsageError: If ``horizon`` is below 1.
        DataError: If a series is shorter than the lookback.
    """
    if isinstance(model, StreamForecaster):
        return forecast_stream(model, series, horizon, left_out=left_out)
    if horizon < 1:
        raise UsageError(f"horizon: expected at least 1, got {horizon}")
    made: dict[str, Forecast] = {}
    series = readable(model, series, left_out)
    for groups, index in readings(model, series):
        quantiles = _roll(model, groups, index, horizon)
        for group, part in zip(groups, quantiles.unbind(0), strict=True):
            for one, own in zip(group, part.unbind(1), strict=True):
                made[one.unique_id] = _forecast(model, one, own, horizon)
    return [made[one.unique_id] for one in series]


def readable(
    model: WindowForecaster, series: Sequence[Series], left_out: list[tuple[str, str]] | None = None
) -> list[Series]:
    """The series whose last window can be read.

    Raises:
        DataError: If one can't be, and there is no ``left_out`` that takes its name and reason; or none can.
    """
    faults = {one.unique_id: _fault(one, model.config.lookback) for one in series}
    bad = [(name, reason) for name, reason in faults.items() if reason]
    if bad and (left_out is None or len(bad) == len(series)):
        more = f" (and {len(bad) - 1} more series can't be read)" if len(bad) > 1 else ""
        raise DataError(bad[0][1] + more)
    if left_out is not None:
        left_out.extend(bad)
    return [one for one in series if not faults[one.unique_id]]


def readings(
    model: WindowForecaster, series: Sequence[Series]
) -> Iterator[tuple[list[list[Series]], Tensor]]:
    """The series as the model reads them: groups, and the index ``(n_groups, n_series)`` of each in them.

    First those that it was trained to read together, if all are there; then the rest, each alone.
    """
    known = {name: index for index, name in enumerate(model.tokenizer.ids)}
    together = read_together(model, series)
    if together:
        yield [together], torch.tensor([[known[one.unique_id] for one in together]])
    read = {one.unique_id for one in together}
    rest = [one for one in series if one.unique_id not in read]
    for i in range(0, len(rest), 256):
        part = rest[i : i + 256]
        alone = [
            model.unknown if model.config.mix_series else known.get(one.unique_id, model.unknown)
            for one in part
        ]
        yield [[one] for one in part], torch.tensor(alone)[:, None]


def unknown_series(model: WindowForecaster, series: Sequence[Series]) -> list[str]:
    """Names of the series that the model was not trained on, or can't read as it was."""
    together = {one.unique_id for one in read_together(model, series)}
    if model.config.mix_series:
        return [one.unique_id for one in series if one.unique_id not in together]
    return [one.unique_id for one in series if one.unique_id not in model.tokenizer.ids]


def _fault(one: Series, lookback: int) -> str:
    """Why the last window of a series can't be read; empty if it can."""
    if len(one.values) < lookback:
        return f"series {one.unique_id!r} has {len(one.values)} rows, but the model reads {lookback}"
    missing = ~np.isfinite(one.values[-lookback:])
    if missing.any():
        where = one.stamps[-lookback:][int(np.flatnonzero(missing)[0])]
        return (
            f"series {one.unique_id!r} lacks {int(missing.sum())} of the last {lookback} values, the first "
            f"at {where}; --missing interpolate fills them, a model of --network stream does without"
        )
    return ""


def read_together(model: WindowForecaster, series: Sequence[Series]) -> list[Series]:
    """The series that the model reads across, in its order; none if one is missing or they don't align."""
    by_name = {one.unique_id: one for one in series}
    ids = model.tokenizer.ids
    if not model.config.mix_series or any(name not in by_name for name in ids):
        return []
    chosen = [by_name[name] for name in ids]
    return chosen if len(group_series(chosen, mix=True)) == 1 else []


def last_windows(
    model: WindowForecaster, groups: list[list[Series]], index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """History, phase and series of the last window of each group, as the network takes them."""
    config = model.config
    device = next(model.parameters()).device
    scaled = []
    for group in groups:
        mean, deviation = _scale(model, group)
        tail = np.stack([one.values[-config.lookback :] for one in group], axis=1)
        scaled.append((tail - mean) / deviation)
    history = torch.from_numpy(np.stack(scaled).astype(np.float32)).to(device)
    season = config.season_length
    last = [
        int(phases(group[0].stamps[-1:], group[0].frequency, season)[0]) for group in groups
    ]  # a table's own stamps say which phase comes next
    phase = (torch.tensor(last, device=device) + 1) % season
    return history, phase, index[0].to(device) if len(groups) == 1 else index.to(device)


@torch.no_grad()
def _roll(model: WindowForecaster, groups: list[list[Series]], index: Tensor, horizon: int) -> Tensor:
    """Scaled quantiles, ``(n_groups, horizon, n_series, n_quantiles)``, by as many passes as it takes."""
    config = model.config
    season = config.season_length
    history, phase, series = last_windows(model, groups, index)
    parts: list[Tensor] = []
    done = 0
    while done < horizon:
        quantiles = model(history, phase, series)
        point = model.point(quantiles)
        if parts:
            quantiles = widened(quantiles, parts[-1][:, -1:], model.middle)
        parts.append(quantiles)
        done += config.horizon
        history = torch.cat([history, point], dim=1)[:, -config.lookback :]
        phase = (phase + config.horizon) % season
    return torch.cat(parts, dim=1)[:, :horizon]


def _forecast(model: WindowForecaster, one: Series, quantiles: Tensor, horizon: int) -> Forecast:
    mean, deviation = _scale(model, [one])
    own = quantiles.cpu().double().numpy() * deviation[0] + mean[0]
    if np.ptp(one.values) == 0:
        own = np.full_like(own, one.values[-1])
    point = model.point(torch.from_numpy(own)).numpy()
    stamps = next_stamps(one.stamps[-1], one.frequency, horizon)
    return Forecast(one.unique_id, stamps, point, own, model.levels)


def _scale(model: WindowForecaster, group: list[Series]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The training scale of known series; that of its own history for another."""
    scales = [
        model.tokenizer.scale([one.unique_id])
        if one.unique_id in model.tokenizer.ids
        else scale_of(one.values[:, None])
        for one in group
    ]
    return np.concatenate([s[0] for s in scales]), np.concatenate([s[1] for s in scales])
