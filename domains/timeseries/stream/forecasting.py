"""Forecasts of what comes after a table, by the network that reads row by row; sample paths."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mambakit.core.adapters import SampleError
from mambakit.core.errors import DataError, UsageError
from mambakit.core.state import State
from mambakit.domains.timeseries.data import require_aligned
from mambakit.domains.timeseries.forecasts import Forecast
from mambakit.domains.timeseries.stream.network import Read, StreamForecaster
from mambakit.domains.timeseries.stream.rows import Rows
from mambakit.domains.timeseries.tables.table import Series

# Series that are read at once, rows of them in all, and rows of a piece.
_AT_ONCE = 64
_MOST_ROWS = 1_000_000
_PIECE = 2048


def forecast_stream(
    model: StreamForecaster,
    series: Sequence[Series],
    horizon: int,
    *,
    left_out: list[tuple[str, str]] | None = None,
) -> list[Forecast]:
    """Forecasts ``horizon`` rows after the last row of each series, which is read from its beginning.

    Beyond the trained horizon the model reads its own point forecasts, and intervals add up as independent
    errors do. A constant series is forecast constant.

    Args:
        model: The forecaster.
        series: The histories, with covariates known ahead where the model has such.
        horizon: Rows to forecast.
        left_out: Takes name and reason of each series that can't be forecast; without it that is an error.

    Raises:
        UsageError: If ``horizon`` is below 1.
        DataError: If a series lacks what the model needs, or a mixed model's series are not all there.
    """
    if horizon < 1:
        raise UsageError(f"horizon: expected at least 1, got {horizon}")
    beyond = math.ceil(horizon / model.config.horizon) * model.config.horizon - horizon
    ready = rows_of(model, series, ahead=horizon, beyond=beyond, left_out=left_out)
    made: dict[str, Forecast] = {}
    by_name = {one.unique_id: one for one in series}
    for names in batches(model, ready, by_name):
        rows = [ready[name] for name in names]
        state = read_all(model, rows)
        quantiles, _ = roll(model, state, rows, horizon)
        for name, own, scaled in zip(names, rows, quantiles, strict=True):
            made[name] = made_forecast(model, by_name[name], own, scaled)
    return [made[one.unique_id] for one in series if one.unique_id in made]


def rows_of(
    model: StreamForecaster,
    series: Sequence[Series],
    *,
    ahead: int = 0,
    beyond: int = 0,
    left_out: list[tuple[str, str]] | None = None,
) -> dict[str, Rows]:
    """The arrays of each series by its name, as ``RowTokenizer.rows`` makes them.

    Raises:
        DataError: If a series can't be read, and there is no ``left_out`` that takes it or the model reads
            all of them together; or none can.
    """
    ready: dict[str, Rows] = {}
    for one in series:
        try:
            if not np.isfinite(one.values).any():
                raise SampleError(f"series {one.unique_id!r} has no value at all: there is nothing to read")
            ready[one.unique_id] = model.tokenizer.rows(one, ahead=ahead, beyond=beyond)
        except SampleError as error:
            if left_out is None or model.config.n_mixed > 1:  # which needs every one of them
                raise DataError(error.reason) from None
            left_out.append((one.unique_id, error.reason))
    if not ready:
        raise DataError(left_out[0][1] if left_out else "there is no series to read")
    return ready


def made_forecast(model: StreamForecaster, one: Series, rows: Rows, scaled: Tensor) -> Forecast:
    """A forecast in the series' own units of ``(horizon, n_quantiles)`` scaled quantiles."""
    own = scaled.cpu().double().numpy() * rows.unit + rows.offset
    there = one.values[np.isfinite(one.values)]
    if len(there) and np.ptp(there) == 0:
        own = np.full_like(own, there[-1])
    point = model.point(torch.from_numpy(own)).numpy()
    return Forecast(one.unique_id, model.tokenizer.next_stamps(one, len(own)), point, own, model.levels)


@torch.no_grad()
def read_all(model: StreamForecaster, rows: Sequence[Rows], state: State | None = None) -> State:
    """The state after some series of one length, read in pieces; ``state`` is what came before."""
    length = len(rows[0].values)
    for begin in range(0, length, _PIECE):
        piece = as_read(model, rows, begin, min(begin + _PIECE, length))
        _, state = model.read(piece, state)
    if state is None:
        raise ValueError("rows: expected at least one row")
    return state


@torch.no_grad()
def roll(model: StreamForecaster, state: State, rows: Sequence[Rows], horizon: int) -> tuple[Tensor, State]:
    """Scaled quantiles ``(rows, horizon, n_quantiles)`` after a state, by as many passes as it takes.

    Args:
        model: The forecaster.
        state: After the last row of each series.
        rows: Whose ``known`` goes a multiple of the trained horizon beyond ``values``.
        horizon: Rows to forecast.
    """
    trained = model.config.horizon
    first = len(rows[0].values)
    parts: list[Tensor] = []
    for done in range(0, horizon, trained):
        piece = as_read(model, rows, first + done, first + done + trained)
        quantiles = model.ahead(model.origin_of(state), piece.known[:, None], piece.series)[:, 0]
        point = model.point(quantiles)
        parts.append(widened(quantiles, parts[-1][:, -1:], model.middle) if parts else quantiles)
        if done + trained < horizon:
            _, state = model.read(piece._replace(values=point), state)  # type: ignore[assignment]
    return torch.cat(parts, dim=1)[:, :horizon], state


@torch.no_grad()
def sample_paths(
    model: StreamForecaster, series: Sequence[Series], horizon: int, n_paths: int, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Possible futures of each series, ``(n_paths, horizon)`` in own units.

    Each value is drawn from the forecast of one step ahead, and read before the next one is drawn.

    Args:
        model: The forecaster.
        series: The histories.
        horizon: Rows of a path.
        n_paths: Paths of each series.
        seed: Of the draws.

    Raises:
        UsageError: If ``horizon`` or ``n_paths`` is below 1, or the model reads its series together.
        DataError: If a series lacks what the model needs.
    """
    if horizon < 1 or n_paths < 1:
        raise UsageError(f"horizon, n_paths: expected at least 1, got {horizon} and {n_paths}")
    if model.config.n_mixed > 1:
        raise UsageError("sample paths: the model reads its series together; train without --mix true")
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    levels = torch.tensor(model.levels, device=device)
    made = {}
    for name, rows in rows_of(model, series, ahead=horizon, beyond=model.config.horizon).items():
        state = read_all(model, [rows]).index_select([0] * n_paths)
        first, drawn = len(rows.values), []
        for step in range(horizon):
            ahead = as_read(model, [rows], first + step, first + step + model.config.horizon)
            series_index = ahead.series.expand(n_paths)
            known = ahead.known[:, None].expand(n_paths, -1, -1, -1)
            quantiles = model.ahead(model.origin_of(state), known, series_index)[:, 0, 0]
            uniform = torch.rand(n_paths, generator=generator, device=device)
            drawn.append(draw(quantiles, levels, uniform))
            piece = as_read(model, [rows], first + step, first + step + 1)
            many = Read._make(field.expand(n_paths, *field.shape[1:]) for field in piece)
            _, state = model.read(many._replace(values=drawn[-1][:, None]), state)  # type: ignore[assignment]
        made[name] = torch.stack(drawn, 1).cpu().double().numpy() * rows.unit + rows.offset
    return made


def paths_frame(
    model: StreamForecaster, series: Sequence[Series], horizon: int, n_paths: int, *, seed: int = 0
) -> pd.DataFrame:
    """``sample_paths`` as a long table: unique_id, ds, path, y."""
    made = sample_paths(model, series, horizon, n_paths, seed=seed)
    frames = [
        pd.DataFrame(
            {
                "unique_id": one.unique_id,
                "ds": model.tokenizer.next_stamps(one, horizon).repeat(n_paths),
                "path": np.tile(np.arange(n_paths), horizon),
                "y": made[one.unique_id].T.ravel(),
            }
        )
        for one in series
    ]
    return pd.concat(frames, ignore_index=True)


def draw(quantiles: Tensor, levels: Tensor, uniform: Tensor) -> Tensor:
    """Values at the levels ``uniform`` ``(rows,)`` of ``(rows, n_levels)`` quantiles: straight lines between
    them, exponential tails whose density meets that of the outermost interval.
    """
    n = len(levels)
    if n == 1:
        return quantiles[:, 0]
    right = torch.searchsorted(levels, uniform).clamp(1, n - 1)
    low, high = quantiles.gather(1, right[:, None] - 1)[:, 0], quantiles.gather(1, right[:, None])[:, 0]
    share = (uniform - levels[right - 1]) / (levels[right] - levels[right - 1])
    inside = low + share.clamp(0, 1) * (high - low)
    below = (uniform / levels[0]).clamp(min=1e-6, max=1).log()
    above = ((1 - uniform) / (1 - levels[-1])).clamp(min=1e-6, max=1).log()
    left_scale = (quantiles[:, 1] - quantiles[:, 0]) * levels[0] / (levels[1] - levels[0])
    right_scale = (quantiles[:, -1] - quantiles[:, -2]) * (1 - levels[-1]) / (levels[-1] - levels[-2])
    return inside + left_scale * below - right_scale * above


def as_read(model: StreamForecaster, rows: Sequence[Rows], begin: int, end: int) -> Read:
    """Rows ``begin`` to ``end`` of series of one length, on the model's device; beyond the values NaN."""
    device = next(model.parameters()).device
    known = torch.from_numpy(np.stack([one.known[begin:end] for one in rows]))
    shape = (len(rows), known.shape[1])
    values = np.full(shape, np.nan, dtype=np.float32)
    past = np.zeros((*shape, model.config.n_past), dtype=np.float32)
    for i, one in enumerate(rows):
        there = one.values[begin:end]
        values[i, : len(there)], past[i, : len(there)] = there, one.past[begin:end]
    elapsed = np.stack([one.elapsed[begin:end] for one in rows])
    static = np.stack([one.static for one in rows])
    series = torch.tensor([min(one.index, model.unknown) for one in rows])
    own = (torch.from_numpy(one) for one in (values, past))
    beside = (torch.from_numpy(one) for one in (elapsed, static))
    return Read._make(part.to(device) for part in (*own, known, *beside, series))


def widened(quantiles: Tensor, before: Tensor, anchor: int) -> Tensor:
    """Spreads around the middle level, each joined with that of the step before as independent errors."""
    middle = quantiles[..., anchor, None]
    own = quantiles - middle
    past = before - before[..., anchor, None]
    return middle + own.sign() * (own.square() + past.square()).sqrt()


def batches(model: StreamForecaster, ready: dict[str, Rows], by_name: dict[str, Series]) -> list[list[str]]:
    """Series of one length together; those of a mixed model all at once, in its order."""
    if model.config.n_mixed > 1:
        return [in_training_order(model, {name: by_name[name] for name in ready})]
    groups: dict[int, list[str]] = defaultdict(list)
    for name, rows in ready.items():
        groups[len(rows.values)].append(name)
    made = []
    for length, names in groups.items():
        n = min(_AT_ONCE, max(1, _MOST_ROWS // max(length, 1)))
        made += [names[i : i + n] for i in range(0, len(names), n)]
    return made


def in_training_order(model: StreamForecaster, by_name: Mapping[str, Series]) -> list[str]:
    """Names of the series that the model reads together, in its order.

    Raises:
        DataError: If one is missing, there is another, or they differ in their stamps.
    """
    ids = list(model.tokenizer.ids)
    absent = [name for name in ids if name not in by_name]
    strangers = [name for name in by_name if name not in model.tokenizer.ids]
    if absent or strangers:
        what = f"{absent[0]!r} is missing" if absent else f"{strangers[0]!r} is not one of them"
        raise DataError(
            f"the model reads {len(ids)} series together, but {what}; give it all of them with the same "
            "stamps, or train without --mix true"
        )
    require_aligned([by_name[name] for name in ids])
    return ids
