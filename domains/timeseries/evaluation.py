"""The model beside its baselines over every window of a split; ``backtest`` has rolling origins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mambakit.domains.timeseries import baselines, conformal
from mambakit.domains.timeseries.data import SeriesData
from mambakit.domains.timeseries.forecasting import until
from mambakit.domains.timeseries.metrics import Errors, mase_scale
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.training import least_squares_of
from mambakit.domains.timeseries.window import WindowForecaster
from mambakit.domains.timeseries.window_data import Values, Windows

OURS = "mambakit"
# Numbers held at once: windows x horizon x series x levels
_MOST_NUMBERS = 20_000_000


@dataclass(frozen=True)
class Evaluation:
    """Errors by forecaster, ours first.

    Attributes:
        rows: One mapping a forecaster: ``forecaster`` and its errors. mse and mae are of scaled values.
        mse_by_step: Of each forecaster, ``(horizon,)``.
        n_windows: Windows averaged over.
        ranks: How many targets had 0, 1, ... of the model's levels under them, ``n_levels + 1`` numbers.
    """

    rows: list[dict[str, object]]
    mse_by_step: dict[str, list[float]]
    n_windows: int
    ranks: list[int] = field(default_factory=list)


@torch.no_grad()
def evaluate(
    model: WindowForecaster | None,
    data: SeriesData,
    split: str,
    *,
    values: Values,
    lookback: int,
    horizon: int,
    linear_weight: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Errors over every window of a split, stride 1, none left out.

    Args:
        model: The forecaster; None for the baselines alone.
        data: The series.
        split: ``"validation"`` or ``"test"``.
        values: Their scaled rows.
        lookback, horizon: Of the windows.
        linear_weight: The closed-form linear map; fitted on the training windows if None.
        device: Where to compute.
    """
    windows = Windows(data, split, lookback=lookback, horizon=horizon)
    if linear_weight is None:
        linear_weight = least_squares_of(data, values, lookback=lookback, horizon=horizon, device=device)
    values = values.to(device)
    first = int(windows.starts(np.array([0]))[0]) if len(windows) else 0
    # A season may be longer than the lookback: the baseline sees it where the rows are there.
    back = max(lookback, data.season_length) if first >= data.season_length and values.shared else lookback
    forecasters = {
        "linear": baselines.linear(linear_weight),
        "seasonal naive": baselines.seasonal_naive(horizon, data.season_length),
        "naive": baselines.naive(horizon),
    }
    levels = model.levels if model is not None else ()
    errors = {name: Errors() for name in forecasters}
    if model is not None:
        model = model.to(device).eval()
        ours = Errors(levels, calibrator=model.calibrators.get(conformal.KEY))
        errors = {OURS: ours, **errors}
    mean, deviation, scale = _scales(data, values, device)
    per_window = horizon * values.rows.shape[1] * max(1, len(levels))
    for starts in windows.batches(max(1, min(1024, _MOST_NUMBERS // per_window))):
        batch = values.cut(starts.to(device), back, horizon)
        n = batch.series if batch.series.dim() == 1 else batch.series[:, None]
        own_mean, own_deviation = mean[n], deviation[n]

        def add(name: str, point: Tensor, quantiles: Tensor | None = None) -> None:
            own = (point * own_deviation + own_mean, batch.future * own_deviation + own_mean)  # noqa: B023
            errors[name].add(point, batch.future, quantiles, scaled_back=own, scale=scale[n])  # noqa: B023

        if model is not None:
            quantiles = model(batch.history[:, -lookback:], batch.phase, batch.series)
            add(OURS, model.point(quantiles), quantiles)
        for name, baseline in forecasters.items():
            history = batch.history if name == "seasonal naive" else batch.history[:, -lookback:]
            add(name, baseline(history))
    return Evaluation(
        [{"forecaster": name, **one.result()} for name, one in errors.items()],
        {name: one.mse_by_step() for name, one in errors.items()},
        len(windows),
        errors[OURS].ranks() if model is not None else [],
    )


def data_before(
    series: Sequence[Series], n_held_out: int = 0, *, name: str, frequency: str, season_length: int
) -> SeriesData:
    """The series without their last rows, split 87.5/12.5 into training and validation."""
    shorter = [until(one, len(one.values) - n_held_out) for one in series]
    bounds = [(int(len(one.values) * 0.875), len(one.values), len(one.values)) for one in shorter]
    return SeriesData(name, tuple(shorter), tuple(bounds), frequency, season_length)


def _scales(data: SeriesData, values: Values, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Of each series the mean and deviation that scaled it, and its MASE scale in scaled units."""
    means, deviations, scales, offset = [], [], [], 0
    for group in data.groups:
        n_train = group.bounds[0]
        rows = values.rows[offset : offset + len(group.values)].double()
        offset += len(group.values)
        own = torch.tensor(group.values[:n_train])
        constant = own.std(0, correction=0) <= 1e-12 * own.mean(0).abs().clamp(min=1e-300)
        deviations.append(torch.where(constant, 1.0, own.std(0, correction=0)))
        means.append(own.mean(0))
        scales.append(mase_scale(rows[:n_train], data.season_length))
    return tuple(torch.cat(parts).to(device) for parts in (means, deviations, scales))  # type: ignore[return-value]
