"""The streaming law, as a check for any block or backbone, also one from outside.

Running ``step`` over a sequence, ``forward`` over it whole and ``forward`` over pieces of it with the
state carried give the same outputs and the same final state; padded and packed batches give what each
sequence gives alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mambakit.core.backbone import Backbone
from mambakit.core.blocks import Block
from mambakit.core.state import State

Sequential = Block | Backbone

SMALL_BLOCKS: dict[str, dict[str, Any]] = {
    "mamba1": {"d_state": 4},
    "mamba2": {"head_dim": 8, "d_state": 6},
    "mamba3": {"head_dim": 8, "d_state": 6, "mimo_rank": 2, "norm": True},
    "attention": {"n_heads": 2},
    "mlp": {},
    "bidirectional": {"inner": "mamba1"},
    "sliding_attention": {"n_heads": 2, "window": 3},
    "conv_attention": {"n_heads": 2, "d_conv": 3},
    "moe": {"n_experts": 3},
    "gru": {"d_hidden": 12},
    "lstm": {},
    "conv": {"width": 3},
    "zamba": {"n_heads": 2},
    "sequence_scan": {"inner": "mamba1", "size": 3},
    "unet": {"levels": [["mamba1"], ["mamba1", "mlp"]], "inner_options": {"mamba1": {"d_state": 4}}},
}
"""Options that make a block of every kind small; a grid and a graph want more than a sequence."""


def run_by_steps(module: Sequential, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """``step`` over every token of ``x`` ``(batch, length, d_model)``; returns what ``forward`` does."""
    if state is None:
        state = module.init_state(x.shape[0], device=x.device, dtype=x.dtype)
    outputs = []
    for token in x.unbind(1):
        y, state = module.step(token, state)
        outputs.append(y)
    return (torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)), state


def run_in_pieces(
    module: Sequential, x: Tensor, cuts: Sequence[int], state: State | None = None
) -> tuple[Tensor, State]:
    """``forward`` over the pieces of ``x`` between ``cuts``, with the state carried.

    Cuts are positions in increasing order; equal ones make pieces of no tokens.
    """
    bounds = [0, *cuts, x.shape[1]]
    outputs = []
    for start, end in pairwise(bounds):
        y, state = module(x[:, start:end], state)
        outputs.append(y)
    assert state is not None
    return torch.cat(outputs, dim=1), state


def assert_states_close(actual: State, expected: State, *, atol: float) -> None:
    """Fail unless both states have the same structure and the same values within ``atol``."""
    actual_items, expected_items = dict(actual.tensors()), dict(expected.tensors())
    assert actual_items.keys() == expected_items.keys()
    for name, tensor in expected_items.items():
        try:
            torch.testing.assert_close(actual_items[name], tensor, atol=atol, rtol=0)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def check_streaming(module: Sequential, x: Tensor, cuts: Sequence[int], *, atol: float) -> None:
    """Fail unless the module obeys the streaming law on ``x`` with pieces between ``cuts``."""
    whole, final = module(x)
    for y, state in (run_by_steps(module, x), run_in_pieces(module, x, cuts)):
        torch.testing.assert_close(y, whole, atol=atol, rtol=0)
        assert_states_close(state, final, atol=atol)


def check_padding(module: Sequential, x: Tensor, lengths: Sequence[int], *, atol: float) -> None:
    """Fail unless right-padded rows of ``x`` give what each gives alone; padding is filled with NaN."""
    padded = x.clone()
    for row, n in enumerate(lengths):
        padded[row, n:] = torch.nan
    y, state = module(padded, lengths=torch.tensor(lengths, device=x.device))
    for row, n in enumerate(lengths):
        alone, _ = module(x[row : row + 1, :n])
        torch.testing.assert_close(y[row : row + 1, :n], alone, atol=atol, rtol=0)
        assert not y[row, n:].any(), "padding must come out as zero"
    if not module.causal:
        return
    # states may be laid out differently (a cache has the longest row's size); what follows is the same
    following, _ = module(x, state)
    for row, n in enumerate(lengths):
        _, state_alone = module(x[row : row + 1, :n])
        alone, _ = module(x[row : row + 1], state_alone)
        torch.testing.assert_close(following[row : row + 1], alone, atol=atol, rtol=0)


def check_packing(module: Sequential, x: Tensor, lengths: Sequence[int], *, atol: float) -> None:
    """Fail unless sequences of these lengths packed into every row of ``x`` give what each gives alone."""
    assert sum(lengths) == x.shape[1]
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int()
    seq_idx = ids.to(x.device).expand(x.shape[0], -1)
    before = module(x)[1] if module.causal else None  # the first sequence continues a state
    y, state = module(x, before, seq_idx=seq_idx)
    start, last = 0, before
    for n in lengths:
        alone, last = module(x[:, start : start + n], before if start == 0 else None)
        torch.testing.assert_close(y[:, start : start + n], alone, atol=atol, rtol=0)
        start += n
    if module.causal:
        following, _ = module(x, state)
        alone, _ = module(x, last)
        torch.testing.assert_close(following, alone, atol=atol, rtol=0)


def check_packs(
    module: Sequential, x: Tensor, before: State | None, packs: Sequence[Sequence[int]], *, atol: float
) -> None:
    """As ``check_packing``, with the lengths in ``packs`` for each row; the first continue ``before``."""
    seq_idx = torch.stack([torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in packs])
    y, state = module(x, before, seq_idx=seq_idx.int().to(x.device))
    for row, lengths in enumerate(packs):
        start, last = 0, None
        for n in lengths:
            given = before.index_select([row]) if before is not None and start == 0 else None
            alone, last = module(x[row : row + 1, start : start + n], given)
            torch.testing.assert_close(y[row : row + 1, start : start + n], alone, atol=atol, rtol=0)
            start += n
        if module.causal:
            following, _ = module(x[row : row + 1], state.index_select([row]))
            alone, _ = module(x[row : row + 1], last)
            torch.testing.assert_close(following, alone, atol=atol, rtol=0)
