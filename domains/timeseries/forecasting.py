"""Forecasts of what comes after a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries import conformal
from mambakit.domains.timeseries.data import group_series, phases
from mambakit.domains.timeseries.table import Series, next_stamps
from mambakit.domains.timeseries.tokenizer import scale_of
from mambakit.domains.timeseries.window import WindowForecaster


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


def forecast(model: WindowForecaster, series: Sequence[Series], horizon: int) -> list[Forecast]:
    """Forecasts ``horizon`` rows after the last row of each series.

    Series that the model was trained to read together are read together if all are there with the same
    stamps; any other series, and one that the model does not know, is read alone by what the model
    learned of unknown series. A constant series is forecast constant. Beyond the trained horizon the
    model reads its own point forecasts, and intervals add up as independent errors do.

    Args:
        model: The forecaster.
        series: The histories.
        horizon: Rows to forecast, more than the trained horizon if you like.

    Raises:
        UsageError: If ``horizon`` is below 1.
        DataError: If a series is shorter than the lookback.
    """
    if horizon < 1:
        raise UsageError(f"horizon: expected at least 1, got {horizon}")
    lookback = model.config.lookback
    short = [one for one in series if len(one.values) < lookback]
    if short:
        raise DataError(
            f"series {short[0].unique_id!r} has {len(short[0].values)} rows, but the model reads {lookback}"
            + (f" (and {len(short) - 1} more series are too short)" if len(short) > 1 else "")
        )
    known = {name: index for index, name in enumerate(model.tokenizer.ids)}
    made: dict[str, Forecast] = {}
    rest = list(series)
    together = _together(model, series)
    if together:
        names = [known[one.unique_id] for one in together]
        quantiles = _roll(model, [together], torch.tensor([names]), horizon)
        for column, one in enumerate(together):
            made[one.unique_id] = _forecast(model, one, quantiles[0, :, column], horizon)
        rest = [one for one in series if one.unique_id not in made]
    for i in range(0, len(rest), 256):
        part = rest[i : i + 256]
        alone = [
            model.unknown if model.config.mix_series else known.get(one.unique_id, model.unknown)
            for one in part
        ]
        quantiles = _roll(model, [[one] for one in part], torch.tensor(alone)[:, None], horizon)
        for row, one in enumerate(part):
            made[one.unique_id] = _forecast(model, one, quantiles[row, :, 0], horizon)
    return [made[one.unique_id] for one in series]


def unknown_series(model: WindowForecaster, series: Sequence[Series]) -> list[str]:
    """Names of the series that the model was not trained on, or can't read as it was."""
    together = {one.unique_id for one in _together(model, series)}
    if model.config.mix_series:
        return [one.unique_id for one in series if one.unique_id not in together]
    return [one.unique_id for one in series if one.unique_id not in model.tokenizer.ids]


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


def _together(model: WindowForecaster, series: Sequence[Series]) -> list[Series]:
    """The series that the model reads across, in its order; none if one is missing or they don't align."""
    by_name = {one.unique_id: one for one in series}
    ids = model.tokenizer.ids
    if not model.config.mix_series or any(name not in by_name for name in ids):
        return []
    chosen = [by_name[name] for name in ids]
    return chosen if len(group_series(chosen, mix=True)) == 1 else []


@torch.no_grad()
def _roll(model: WindowForecaster, groups: list[list[Series]], index: Tensor, horizon: int) -> Tensor:
    """Scaled quantiles, ``(n_groups, horizon, n_series, n_quantiles)``, by as many passes as it takes."""
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
    series = index[0].to(device) if len(groups) == 1 else index.to(device)
    parts: list[Tensor] = []
    done = 0
    while done < horizon:
        quantiles = model(history, phase, series)
        point = model.point(quantiles)
        if parts:
            quantiles = _widened(quantiles, parts[-1][:, -1:], model.middle)
        parts.append(quantiles)
        done += config.horizon
        history = torch.cat([history, point], dim=1)[:, -config.lookback :]
        phase = (phase + config.horizon) % season
    return torch.cat(parts, dim=1)[:, :horizon]


def _widened(quantiles: Tensor, before: Tensor, anchor: int) -> Tensor:
    """Spreads around the middle level, each joined with that of the step before as independent errors."""
    middle = quantiles[..., anchor, None]
    own = quantiles - middle
    past = before - before[..., anchor, None]
    return middle + own.sign() * (own.square() + past.square()).sqrt()


def _forecast(model: WindowForecaster, one: Series, quantiles: Tensor, horizon: int) -> Forecast:
    mean, deviation = _scale(model, [one])
    own = quantiles.double().cpu().numpy() * deviation[0] + mean[0]
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
