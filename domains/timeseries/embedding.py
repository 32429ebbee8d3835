"""Embeddings: what a trained network has made of a series, as a row of numbers to cluster or search by.

stream      what the forecast of a row reads of the past: the hidden state behind the causal Mamba-2 layers
window      what the head reads of the last lookback: the series' vector behind the stack across the series
classifier  what the logits are read from: the rows behind the Mamba-2 layers, pooled as the classifier does

Each member of a model has a space of its own: theirs stand one behind the other, ``members * d`` numbers. A
forecaster reads a series relative to its own level and spread, so that moving or stretching it changes
(next to) nothing; it also reads the name of a series that it was trained on, unless asked not to. A
classifier reads values relative to those of its training series, and no names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.domains.timeseries.classification.network import SeriesClassifier, in_order
from mambakit.domains.timeseries.forecasting import last_windows, read_together, readable, readings
from mambakit.domains.timeseries.forecasts import until
from mambakit.domains.timeseries.stream.forecasting import as_read, batches, rows_of
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.rows import Rows
from mambakit.domains.timeseries.tables.labelled import LabelledSeries
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.window import WindowForecaster

POOLS = ("last", "mean")
_PIECE = 512

_Made = dict[str, tuple[list[Any], np.ndarray]]  # by series: stamps, and (stamps, d) vectors


def embed(
    model: StreamForecaster | WindowForecaster,
    series: Sequence[Series],
    *,
    every: int | None = None,
    pool: str = "last",
    unnamed: bool = False,
    left_out: list[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """The embeddings of some series by a forecaster; no row sees a later one.

    Args:
        model: Trained.
        series: The histories. Of covariates known ahead it takes those of the histories' own rows alone.
        every: Embed the last row, the one so many rows before it, and so on, as if the series ended there;
            only the last row without. A window in which a value is missing has no embedding, nor have those
            of the same rows of series that are read together with it. The stream network reads through gaps.
        pool: ``"last"`` is the hidden state after the row; ``"mean"``, of the stream network, the mean over
            the rows since the embedding before (over all without ``every``), those of a gap among them.
        unnamed: Read each series as one unknown so far, which for a window is each alone.
        left_out: Takes name and reason of each series that can't be read; without it that is an error.

    Returns:
        ``unique_id``, ``ds`` of the row, and ``e0`` to ``eN``, float32.

    Raises:
        UsageError: Without series, on ``every`` below 1, another pool, or one that the network does not have.
        DataError: If a series can't be read.
    """
    _require_some(series)
    if every is not None and every < 1:
        raise UsageError(f"every: expected at least 1 row, got {every}")
    if pool not in POOLS:
        raise UsageError(f"pool: expected one of {', '.join(POOLS)}, got {pool!r}")
    if isinstance(model, StreamForecaster):
        made = _of_stream(model, series, every, pool, unnamed, left_out)
    elif pool != "last":
        raise UsageError("pool: this model makes one vector of a window; mean needs one of --network stream")
    else:
        made = _of_windows(model, series, every, unnamed, left_out)
    chosen = [one.unique_id for one in series if one.unique_id in made]
    return _frame([(name, *made[name]) for name in chosen])


def embed_labelled(
    model: SeriesClassifier, series: Sequence[LabelledSeries], *, channels: Sequence[str] | None = None
) -> pd.DataFrame:
    """The embeddings of whole series by a classifier, as ``embed`` returns them.

    Args:
        model: Trained.
        series: Their labels, if any, are not read.
        channels: Names of the series' channels, where they have any.

    Raises:
        UsageError: Without series.
        DataError: If a series has other channels than the model.
    """
    _require_some(series)
    vectors = model.embed(in_order(model, series, channels)).float().numpy()
    return _frame(
        [(one.unique_id, [one.last], vector[None]) for one, vector in zip(series, vectors, strict=True)]
    )


def _require_some(series: Sequence[Any]) -> None:
    if not series:
        raise UsageError("series: expected at least one to embed, got none")


def _of_stream(
    model: StreamForecaster,
    series: Sequence[Series],
    every: int | None,
    pool: str,
    unnamed: bool,
    left_out: list[tuple[str, str]] | None,
) -> _Made:
    ready = rows_of(model, series, left_out=left_out)
    by_name = {one.unique_id: one for one in series}
    made: _Made = {}
    for names in batches(model, ready, by_name):
        rows = [ready[name] for name in names]
        last = len(rows[0].values) - 1
        at = list(range(last, -1, -(every or last + 1)))[::-1]
        vectors = _walked(model, rows, at, pool, unnamed).float().cpu().numpy()
        for name, own in zip(names, vectors, strict=True):
            made[name] = list(by_name[name].stamps[at]), own
    return made


@torch.no_grad()
def _walked(model: StreamForecaster, rows: Sequence[Rows], at: list[int], pool: str, unnamed: bool) -> Tensor:
    """Hidden states after some rows of series of one length, or their means, ``(rows, at, d)``."""
    length, state, picked = len(rows[0].values), None, []
    total: Tensor | float = 0.0
    for begin in range(0, length, _PIECE):
        piece = as_read(model, rows, begin, min(begin + _PIECE, length))
        if unnamed:
            piece = piece._replace(series=torch.full_like(piece.series, model.unknown))
        passed = model.walk(piece, state)
        state = passed.state
        hidden = torch.cat(passed.hidden, -1)
        if pool == "mean":
            hidden = total + hidden.cpu().double().cumsum(1)  # some devices have no float64
            total = hidden[:, -1:]
        here = [row - begin for row in at if begin <= row < begin + _PIECE]
        picked.append(hidden[:, here])
    vectors = torch.cat(picked, 1)
    if pool == "last":
        return vectors
    counts = torch.tensor(at).diff(prepend=torch.tensor([-1]))
    return vectors.diff(dim=1, prepend=torch.zeros_like(vectors[:, :1])) / counts[:, None]


@torch.no_grad()
def _of_windows(
    model: WindowForecaster,
    series: Sequence[Series],
    every: int | None,
    unnamed: bool,
    left_out: list[tuple[str, str]] | None,
) -> _Made:
    series, least = readable(model, series, left_out), model.config.lookback
    together = {one.unique_id for one in read_together(model, series)}
    found: dict[str, list[tuple[Any, np.ndarray]]] = {one.unique_id: [] for one in series}
    longest = max((len(one.values) for one in series), default=0)
    for back in range(0, longest - least + 1, every or longest):
        ends = [(one, len(one.values) - back) for one in series]
        # of earlier windows those with gaps are passed over
        cut = [
            until(one, end)
            for one, end in ends
            if end >= least and np.isfinite(one.values[end - least : end]).all()
        ]
        if not together <= {one.unique_id for one in cut}:  # alone they would be read as unknown ones
            cut = [one for one in cut if one.unique_id not in together]
        for groups, index in readings(model, cut):
            if unnamed:
                groups = [[one] for group in groups for one in group]
                index = torch.full((len(groups), 1), model.unknown)
            vectors = model.embed(*last_windows(model, groups, index)).float().cpu().numpy()
            for group, part in zip(groups, vectors, strict=True):
                for one, vector in zip(group, part, strict=True):
                    found[one.unique_id].append((one.stamps[-1], vector))
    return {
        name: ([stamp for stamp, _ in many[::-1]], np.stack([vector for _, vector in many[::-1]]))
        for name, many in found.items()
    }


def _frame(made: Sequence[tuple[str, Sequence[Any], np.ndarray]]) -> pd.DataFrame:
    """``unique_id, ds, e0, ...`` of names, stamps and vectors ``(stamps, d)``."""
    vectors = np.concatenate([own for _, _, own in made])
    names = pd.DataFrame(
        {
            "unique_id": [name for name, stamps, _ in made for _ in stamps],
            "ds": [stamp for _, stamps, _ in made for stamp in stamps],
        }
    )
    return names.join(pd.DataFrame(vectors, columns=[f"e{i}" for i in range(vectors.shape[1])]))
