"""From series to a trained forecaster that reads row by row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, resolve_device, seed_everything
from mambakit.domains.timeseries.config import (
    LEAST_EPOCH,
    LEAST_STEPS,
    MOST_STEPS,
    StreamConfig,
    StreamLossConfig,
    StreamModelConfig,
)
from mambakit.domains.timeseries.data import require_aligned
from mambakit.domains.timeseries.stream.data import Bounds, Pieces, Store, cut, forecasts, make_store
from mambakit.domains.timeseries.stream.neighbours import Neighbours
from mambakit.domains.timeseries.stream.network import StreamForecaster, linear_covariates
from mambakit.domains.timeseries.stream.rows import RowTokenizer
from mambakit.domains.timeseries.tables.table import Series

# Forecasts that least squares learns from at most; beyond, evenly chosen ones.
_MOST_FORECASTS = 400_000
_LINEAR_BATCH = 64
_ROWS_AT_ONCE = 8192
_RIDGE = 1e-6
_LEAST_BATCH = 8


class LaidOut(NamedTuple):
    """Series as the network reads them: what training, calibrating and measuring share.

    Attributes:
        tokenizer: Fitted on the rows before each series' validation part.
        store: All rows.
    """

    tokenizer: RowTokenizer
    store: Store


def lay_out(series: Sequence[Series], bounds: Sequence[Bounds], season_length: int) -> LaidOut:
    """Fits the tokenizer and lays out the rows; arguments as ``train_stream``'s.

    Raises:
        SampleError: If the series differ in their covariates.
    """
    tokenizer = RowTokenizer(series[0].frequency, season_length).fit(
        dataclasses.replace(
            one,
            values=one.values[: end[0]],
            stamps=one.stamps[: end[0]],
            past=None if one.past is None else one.past.iloc[: end[0]],
            future=None if one.future is None else one.future.iloc[: end[0]],
        )
        for one, end in zip(series, bounds, strict=True)
    )
    return LaidOut(tokenizer, make_store(tokenizer, series, bounds))


def train_stream(
    series: Sequence[Series],
    bounds: Sequence[Bounds],
    run: RunFolder,
    *,
    lookback: int,
    horizon: int,
    season_length: int,
    mixed: bool,
    model_config: StreamModelConfig,
    loss_config: StreamLossConfig,
    train_config: TrainConfig,
    laid_out: LaidOut | None = None,
) -> tuple[StreamForecaster, FitResult]:
    """Trains on the rows before each series' validation part, keeps the weights of the least validation loss.

    Args:
        series: The series, of one frequency.
        bounds: Of each, the rows where validation and test begin, and where test ends.
        run: Where checkpoints and metrics go.
        lookback: Rows that the linear map sees.
        horizon: Rows forecast.
        season_length: Rows in a season; 1 for none.
        mixed: Read the series of a row together; they must share their stamps.
        model_config, loss_config, train_config: What to train and how.
        laid_out: What ``lay_out`` made of the series, if the caller wants their rows afterwards too.

    Returns:
        The forecaster in evaluation mode on the CPU, and how the training went.

    Raises:
        DataError: If nothing can be learned from the series, or mixed ones differ in their stamps.
        UserError: If training fails, or the run folder holds another run.
    """
    from mambakit.domains.timeseries.stream.task import StreamTask

    if mixed:
        require_aligned(series)
    tokenizer, store = laid_out or lay_out(series, bounds, season_length)
    config = StreamConfig(
        lookback=lookback,
        horizon=horizon,
        n_series=len(series),
        n_mixed=len(series) if mixed else 1,
        n_past=tokenizer.past.width,
        n_future=tokenizer.future.width,
        n_calendar=2 * len(tokenizer.cycles),
        n_static=tokenizer.static.width,
        irregular=not series[0].frequency,
        season_length=season_length,
        imputes=loss_config.impute_weight > 0,
        model=model_config,
    )
    seed_everything(train_config.seed)
    model = StreamForecaster(config)
    model.tokenizer = tokenizer
    length = min(loss_config.window, int(store.bounds[:, 0].max()))
    least = min(length // 4, season_length)
    pieces = Pieces(store, length=length, stride=loss_config.origins, least=least, n_mixed=config.n_mixed)
    if not len(pieces):
        raise DataError("no series has two rows to learn from before its validation part")
    device = resolve_device(train_config.device)
    device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    on_device = store.to(device)
    weight = fit_linear(model.to(device), on_device, pieces)
    with torch.no_grad():
        for member in model.members:
            if member.linear is not None:
                member.linear.copy_(weight)
    if model.neighbours is not None and model.neighbours.size:
        fit_neighbours(model.neighbours, store)
    train_config = adapted(train_config, len(pieces))
    result = fit(
        StreamTask(model, on_device, train_config, loss_config, length),
        pieces.loader(train_config.batch_size),
        torch.utils.data.DataLoader([0]),  # type: ignore[arg-type]  # validation finds its rows itself
        train_config,
        run,
        monitor="val/loss",
    )
    model = model.to(device).eval()
    _blend(model, on_device, weight, loss_config)
    return model.cpu(), result


@torch.no_grad()
def fit_linear(model: StreamForecaster, store: Store, pieces: Pieces) -> Tensor:
    """The closed-form map of the training rows, ``(n_linear, horizon)`` float32, on the store's device.

    Every step of the horizon has a solution of its own; rows that lack a target are left out of them all.
    """
    config = model.config
    if not config.model.use_linear:
        return torch.zeros(config.n_linear, config.horizon, device=store.values.device)
    n, device = config.n_linear, store.values.device
    gram = torch.zeros(n, n, dtype=torch.float64, device=device)
    cross = torch.zeros(n, config.horizon, dtype=torch.float64, device=device)
    every = max(1, math.ceil(len(pieces) * pieces.stride * config.n_mixed / _MOST_FORECASTS))
    numbers = np.arange(0, len(pieces), every)
    origins = torch.arange(pieces.length - pieces.stride, pieces.length, device=device).clamp(min=0)
    for part in np.array_split(numbers, math.ceil(len(numbers) / _LINEAR_BATCH)):
        windows = pieces.__getitems__(part.tolist()).to(device)
        which = (windows[:, :1] + torch.arange(config.n_mixed, device=device)).flatten()
        # the window ends with the rows that it is to forecast from, and may begin before its series
        start = windows[:, 1].repeat_interleave(config.n_mixed) + pieces.stride - pieces.length
        end = store.bounds[which, 0]
        window = cut(store, which, start, pieces.length, origins, config.horizon, end)
        origin, _ = model.read(window.read, origins=origins, keep_state=False, hidden_too=False)
        x = origin.recent
        if n > config.lookback:
            x = torch.cat([x, linear_covariates(origin, window.ahead, config)], -1)
        y = window.target - origin.mean[..., None]
        whole = y.isfinite().all(-1)
        gram += x[whole].double().T @ x[whole].double()
        cross += x[whole].double().T @ y[whole].double()
    diagonal = (_RIDGE * gram.trace() / n).clamp(min=1e-12)
    solution = torch.linalg.solve(gram + diagonal * torch.eye(n, dtype=gram.dtype, device=device), cross)
    return solution.float()


def fit_neighbours(neighbours: Neighbours, store: Store) -> None:
    """The covariance of values near each other, from the training rows of all series."""
    n, size = neighbours.n_mixed, neighbours.size
    ends = store.bounds[::n, 0].tolist()
    every = max(1, math.ceil(sum(ends) / _MOST_FORECASTS))

    def parts() -> Iterator[Tensor]:
        for group, end in zip(range(0, len(store), n), ends, strict=True):
            # the places of a row's neighbourhood, one series after the other
            place = (store.first[group : group + n, None] + torch.arange(size)).flatten()
            for starts in torch.arange(0, max(0, end - size + 1), every).split(_ROWS_AT_ONCE):
                yield store.values[starts[:, None] + place]

    neighbours.fit(parts())


@torch.no_grad()
def _blend(model: StreamForecaster, store: Store, weight: Tensor, options: StreamLossConfig) -> None:
    """Give the model its least-squares map, and the weight beside it of least squared validation error."""
    model.least_squares.copy_(weight)
    if not model.config.model.use_linear:
        return
    model.trust.fill_(1.0)
    along, across = 0.0, 0.0
    for found in forecasts(
        model, store, 1, stride=options.validation_stride, most_series=options.validation_series
    ):
        there = found.target.isfinite()
        ours, base = model.point(found.quantiles), found.linear
        along += float(((ours - base) * (found.target - base))[there].double().sum())
        across += float((ours - base)[there].double().square().sum())
    model.trust.fill_(min(1.0, max(0.0, along / across)) if across > 0 else 1.0)


def adapted(config: TrainConfig, n_windows: int) -> TrainConfig:
    """Smaller batches and more epochs for a small table, which would end before it has learned anything.

    A large one has had enough after some thousand steps, before all its epochs.
    """
    batch_size = min(config.batch_size, max(_LEAST_BATCH, n_windows // LEAST_EPOCH))
    steps = math.ceil(n_windows / batch_size)
    epochs = max(config.max_epochs, math.ceil(LEAST_STEPS / steps))
    epochs = min(epochs, max(1, math.ceil(MOST_STEPS / steps)))
    patience = math.ceil(config.patience * epochs / config.max_epochs)
    return dataclasses.replace(config, batch_size=batch_size, max_epochs=epochs, patience=patience)
