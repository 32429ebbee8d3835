"""What serves a model without mambakit: its items, its step as a torch program, and what both mean.

    items.parquet   a row an item: name, vector, bias, popularity
    step.pt2        (item, gap, state) -> (hidden, state); torch.export.load reads it
    serving.json    what the numbers of these files mean
    items.faiss     the search index, if FAISS is installed

``examples/recommendation_serving.py`` is such a server, in torch and pyarrow alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from mambakit.core.errors import UsageError
from mambakit.core.export import StateLayout, growing_block, save_program, traced
from mambakit.core.folders import listing, replaced
from mambakit.core.state import State
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.search import (
    MIN_RECALL,
    RECALL_USERS,
    ApproximateSearch,
    ExactSearch,
    ask,
    has_faiss,
)
from mambakit.domains.recommendation.tokenizer import N_GAP_BINS

FORMAT = 1
_TUNED_K = 10


class _Step(nn.Module):
    """``Recommender.step`` with the table of all items in place of what it is made of."""

    table: Tensor
    elapsed_of: Tensor | None

    def __init__(self, model: Recommender, like: State) -> None:
        super().__init__()
        rest = model.ids.weight[model.config.n_items :]
        self.register_buffer("table", torch.cat([model.catalogue().vectors, rest]))
        self.gaps, self.backbone, self.scale = model.gaps, model.backbone, model.config.model.d_model**0.5
        drives = model.config.model.time in ("dt", "both")
        self.register_buffer("elapsed_of", model.elapsed_of if drives else None)
        self.layout = StateLayout(like)

    def forward(
        self, item: Tensor, gap: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = nn.functional.embedding(item, self.table)
        if self.gaps is not None:
            x = x + self.gaps(gap)
        elapsed = None if self.elapsed_of is None else self.elapsed_of[gap]
        hidden, after = self.backbone.step(x * self.scale, self.layout.unpack(state), elapsed=elapsed)
        return hidden, self.layout.pack(after)


@torch.no_grad()
def step_program(model: Recommender) -> torch.export.ExportedProgram:
    """``(item (batch,) int64, gap (batch,) int64, state) -> (hidden (batch, d_model), state)``, any batch.

    ``state`` is a dict of tensors by the dotted names of ``State.tensors``. The program is of torch's own
    operators: the kernels' plain references are traced, so that it runs where mambakit isn't.

    Raises:
        UsageError: If the model's state grows with the history, as that of attention does.
    """
    growing = growing_block(model.backbone)
    if growing is not None:
        raise UsageError(
            f"model: its blocks {model.config.model.blocks} hold {growing}, whose state grows with the "
            "history; a step of fixed size needs recurrent blocks, such as mamba2"
        )
    like = model.init_state(2)
    state, batch = StateLayout.pack(like), {0: torch.export.Dim("batch", min=1)}
    item, gap = torch.zeros(2, 2, dtype=torch.int64)  # two tensors: one twice would be one input
    return traced(_Step(model, like), (item, gap, state), (batch, batch, dict.fromkeys(state, batch)))


def export_recommender(model: Recommender, folder: Path) -> dict[str, Any]:
    """Write the files, all of them or none.

    Args:
        model: A trained recommender, on the CPU.
        folder: Where to; it must not be there, or be empty.

    Returns:
        What ``serving.json`` holds.

    Raises:
        UsageError: If the folder holds something, or the model's state grows with the history.
        UserError: If the folder can't be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"output: {folder} is not empty (it holds {listing(folder)}); name a new folder")
    program = step_program(model.eval())
    with replaced(folder, {}) as staging:
        save_program(program, staging / "step.pt2")
        pq.write_table(item_table(model), staging / "items.parquet")
        index = _save_index(model, staging / "items.faiss") if has_faiss() else None
        said = described(model, index)
        (staging / "serving.json").write_text(json.dumps(said, indent=2) + "\n", "utf-8")
    return said


def item_table(model: Recommender) -> pa.Table:
    """A row an item, in the order of their numbers.

    ``item`` its name; ``vector`` float32 of fixed size and ``bias``, as scores want them; ``popularity`` its
    share of all training events and ``training_events`` their number.
    """
    vectors, bias = (one.detach().float().cpu().numpy() for one in model.catalogue())
    counts = model.popularity.cpu().numpy()
    flat = pa.array(vectors.ravel(), type=pa.float32())
    return pa.table(
        {
            "item": pa.array(model.tokenizer.items),
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            "bias": pa.array(bias),
            "popularity": pa.array((counts / max(1, counts.sum())).astype(np.float32)),
            "training_events": pa.array(counts),
        }
    )


def described(model: Recommender, index: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the numbers of the other files mean, as JSON."""
    config = model.config
    state = {name: list(tensor.shape[1:]) for name, tensor in model.init_state(1).tensors()}
    said: dict[str, Any] = {
        "format": FORMAT,
        "made_by": f"mambakit {version('mambakit')}, torch {torch.__version__}",
        "n_items": config.n_items,
        "d_model": config.model.d_model,
        "items": "row i of items.parquet is item i, counted from 0",
        "history": "step START from a state of zeros, then each event in the order of time; leave out events "
        "with items that are not in items.parquet, as if they had not been",
        "start": {"item": model.tokenizer.start, "gap": 0},
        "gap": {
            "of": "seconds since the event before",
            "unknown": 0,
            "first event of a user, its time being known": 1,
            "zero seconds": 2,
            "more": f"min({N_GAP_BINS - 1}, 3 + floor(log2(max(1, seconds))))",
        },
        "score": "hidden . vector + bias, and repeat_shift more for items that the user has had; the bias "
        "of an item of which nothing is known is minus infinity: it is never to be shown",
        "repeat_shift": float(model.repeat_shift),
        "step": {
            "inputs": ["item (batch,) int64", "gap (batch,) int64", "state, a dict of the tensors below"],
            "outputs": ["hidden (batch, d_model) float32", "state, such a dict"],
            "state": {
                name: {"dtype": "float32", "shape": ["batch", *shape]} for name, shape in state.items()
            },
        },
        "index": index,
    }
    if model.user_table is not None:
        said["left_out"] = "features of users, which the model was trained with: the step does not read them"
    return said


def _save_index(model: Recommender, path: Path) -> dict[str, Any]:
    """All items, the cells to read chosen on users of a single event each."""
    n_items = model.config.n_items
    search = ApproximateSearch(
        ExactSearch(model, model.catalogue(), np.ones(n_items, dtype=bool), filter_seen=True)
    )
    item = np.unique(np.linspace(0, n_items - 1, 2 * RECALL_USERS).astype(np.int64))
    names, users, k = np.array(model.tokenizer.items), np.arange(len(item)), min(_TUNED_K, n_items)
    single = Interactions(names[item], names, users, item, np.full(len(item), np.nan))
    with torch.no_grad():
        search.tune(partial(ask, model, single, search.exact.catalogue), users, k, MIN_RECALL)
    search.save(path)
    return {
        "file": path.name,
        "read_with": "faiss.read_index; its ids are items",
        "query": "hidden, then a 1 and a 0; the inner product is the score without repeat_shift",
        "cells": search.n_cells,
        "nprobe": search.probes,
        f"recall@{k}": round(search.recall, 4),
        "recall_on": f"{search.recall_users} users of a single event; more events want a look of their own",
    }
