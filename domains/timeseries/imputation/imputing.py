"""Filling missing values with a trained network that reads row by row, from both ends of each series.

However long a series is, memory holds its rows and a state for each piece of them: a pass from the end keeps
the state behind every piece; then one from the beginning reads a piece forwards, reads it again from its end
with the state kept for it, and fills it. So the result equals that of one piece of the whole length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.core.state import State
from mambakit.domains.timeseries.stream.forecasting import as_read, batches, rows_of
from mambakit.domains.timeseries.stream.imputer import Between, between, fill_from, near, reach_of, turned
from mambakit.domains.timeseries.stream.neighbours import Guess, Scale, scale_of
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.parts import Read
from mambakit.domains.timeseries.stream.rows import Rows
from mambakit.domains.timeseries.tables.table import Series

PIECE = 2048


def impute(
    model: StreamForecaster,
    series: Sequence[Series],
    *,
    piece: int = PIECE,
    left_out: list[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """What the missing values of some series were, in their own units.

    Args:
        model: A network that was trained to impute.
        series: The series, NaN where a value is missing.
        piece: Rows that are read at once.
        left_out: Takes name and reason of each series that can't be filled; without it that is an error.

    Returns:
        A long table ``unique_id, ds, y, y_hat, q10, ..., q90, filled``, a row for each row of each series.
        Where ``filled``, ``y`` is missing, ``y_hat`` the point estimate and beside it are the quantiles;
        elsewhere all of them are the observed value as it was given.

    Raises:
        UsageError: If the model wasn't trained to impute, or ``piece`` is below 1.
        DataError: If a series has no value at all or lacks what the model needs, or those of a model that
            reads its series together are not all there.
    """
    if not model.config.imputes:
        raise UsageError(
            "model: it was not trained to impute; train it with mask_share and impute_weight above 0"
        )
    if piece < 1:
        raise UsageError(f"piece: expected at least 1, got {piece}")
    ready = rows_of(model, series, left_out=left_out)
    by_name = {one.unique_id: one for one in series}
    made: dict[str, pd.DataFrame] = {}
    for names in batches(model, ready, by_name):
        rows = [ready[name] for name in names]
        for name, own, scaled in zip(names, rows, fill_rows(model, rows, piece=piece), strict=True):
            made[name] = _frame(model, by_name[name], own, scaled)
    return pd.concat([made[one.unique_id] for one in series if one.unique_id in made], ignore_index=True)


@torch.no_grad()
def fill_rows(model: StreamForecaster, rows: Sequence[Rows], *, piece: int = PIECE) -> Tensor:
    """Scaled quantiles of every row of series of one length, ``(rows, length, n_quantiles)`` on the CPU.

    Pieces in which nothing is missing are NaN.
    """
    model.eval()
    length, reach = len(rows[0].values), reach_of(model.config)
    values = torch.from_numpy(np.stack([one.values for one in rows]))
    elapsed = torch.from_numpy(np.stack([one.elapsed for one in rows])).double()
    line = between(values, elapsed)
    series = torch.tensor([min(one.index, model.unknown) for one in rows])
    guess = _guess(model, values, line.base, scale_of(values, series, model.unknown))
    bounds = [(begin, min(begin + piece, length)) for begin in range(0, length, piece)]
    wanted = [bool(values[:, begin:end].isnan().any()) for begin, end in bounds]
    said = torch.full((len(rows), length, len(model.levels)), torch.nan)
    behind: dict[int, State | None] = {}
    state: State | None = None
    first_wanted = wanted.index(True) if True in wanted else len(bounds)
    for i in reversed(range(first_wanted, len(bounds))):
        if wanted[i]:
            behind[i] = state.to("cpu") if state is not None else None
        if i > first_wanted:
            state = model.walk(_from_end(model, rows, *bounds[i]), state, from_end=True).state
    state = None
    last_wanted = max(behind, default=-1)
    for i, (begin, end) in enumerate(bounds[: last_wanted + 1]):
        forwards = model.walk(as_read(model, rows, begin, end), state)
        state = forwards.state
        if not wanted[i]:
            continue
        kept = behind.pop(i)
        device = forwards.level.mean.device
        backwards = model.walk(
            _from_end(model, rows, begin, end), None if kept is None else kept.to(device), from_end=True
        )
        wide = slice(max(0, begin - reach), min(length, end + reach))
        around = near(values[:, wide], reach)[:, begin - wide.start :][:, : end - begin]
        here = Between(*(_on(part[:, begin:end], device) for part in line))
        own = Guess(*(_on(part[:, begin:end], device) for part in guess))
        parts = fill_from(model, forwards, backwards, around.to(device), here, own)
        said[:, begin:end] = torch.stack(parts).mean(0).cpu()
    return said


def _guess(model: StreamForecaster, values: Tensor, base: Tensor, scale: Scale) -> Guess:
    assert model.neighbours is not None
    device = model.neighbours.covariance.device
    found = model.neighbours(values.to(device), _on(base, device), Scale(*(x.to(device) for x in scale)))
    return Guess(*(part.cpu() for part in found))


def _from_end(model: StreamForecaster, rows: Sequence[Rows], begin: int, end: int) -> Read:
    read = as_read(model, rows, begin, end)
    if end == len(rows[0].values):
        return turned(read)
    after = torch.tensor([float(one.elapsed[end]) for one in rows])
    return turned(read, after.to(read.values.device))


def _on(x: Tensor, device: torch.device) -> Tensor:
    return (x if x.dtype == torch.bool else x.float()).to(device)


def _frame(model: StreamForecaster, one: Series, rows: Rows, scaled: Tensor) -> pd.DataFrame:
    filled = ~np.isfinite(one.values)
    own = scaled.double().numpy() * rows.unit + rows.offset
    point = np.where(filled, model.point(torch.from_numpy(own)).numpy(), one.values)
    columns = {
        f"q{level * 100:g}": np.where(filled, own[:, i], one.values) for i, level in enumerate(model.levels)
    }
    facts = {"unique_id": one.unique_id, "ds": one.stamps, "y": one.values, "y_hat": point}
    return pd.DataFrame({**facts, **columns, "filled": filled})
