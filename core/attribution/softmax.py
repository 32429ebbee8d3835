"""The terms of softmax attention, read off the block's own call of it: rotation, cache, window and all."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mambakit.core.attribution.matrices import visible
from mambakit.core.attribution.terms import Request, Terms, rows_at
from mambakit.core.blocks import Attention
from mambakit.core.blocks.linear import weight_of
from mambakit.kernels.semantics import state_dtype


def attention_terms(block: Attention, request: Request) -> Terms:
    """What ``block`` mixes; attention over a window, which is computed in pieces, is put together again."""
    x, state = request.x, request.state
    batch, length, _ = x.shape
    dtype = state_dtype(x)
    recorded = _Recorded()
    with recorded:
        block.mix(x, state, request.seq_idx, request.lengths)
    call: dict[str, Any] = recorded.calls[0].arguments if len(recorded.calls) == 1 else {}
    n_pieces = len(call["query"]) // max(batch, 1) if call else 0
    if not call or n_pieces * call["query"].shape[2] < length:
        raise ValueError(
            f"block: expected this {type(block).__name__} to call softmax attention once for the whole "
            f"sequence, got {len(recorded.calls)} calls: its matrices cannot be read off"
        )
    heads = torch.tensor(request.heads, device=x.device)
    shared = heads // (call["query"].shape[1] // call["key"].shape[1])
    # a piece is a block of queries, and of keys from some before to some after it
    q = call["query"][:, heads].unflatten(0, (batch, n_pieces)).to(dtype)  # [b, c, h, q, p]
    k = call["key"][:, shared].unflatten(0, (batch, n_pieces)).to(dtype)
    v = call["value"][:, shared].unflatten(0, (batch, n_pieces)).to(dtype)
    size, n_keys = q.shape[3], k.shape[3]
    after = 0 if block.causal else (n_keys - size) // 2
    before = n_keys - size - after
    scale = 1 / math.sqrt(q.shape[-1]) if call["scale"] is None else call["scale"]
    mask = call["attn_mask"]
    if mask is not None:
        mask = mask.expand(len(mask), mask.shape[1], size, n_keys)
        mask = (mask if mask.shape[1] == 1 else mask[:, heads]).unflatten(0, (-1, n_pieces))
        mask = mask.expand(batch, *mask.shape[1:])

    width = before + n_pieces * size + after
    matrix = x.new_zeros(batch, len(heads), request.queries.shape[1], width, dtype=dtype)
    values = x.new_zeros(batch, len(heads), width, v.shape[-1], dtype=dtype)
    for i in range(n_pieces):
        row = (request.queries - i * size).clamp(0, size - 1)
        logits = scale * (rows_at(q[:, i], row) @ k[:, i].transpose(2, 3))
        if call["is_causal"]:
            logits = logits.masked_fill(~visible(row, n_keys, None), -math.inf)
        if mask is not None:
            seen = rows_at(mask[:, i], row)
            logits = logits.masked_fill(~seen, -math.inf) if seen.dtype == torch.bool else logits + seen
        mine = (request.queries // size == i)[:, None, :, None]
        matrix[..., i * size : i * size + n_keys] += logits.softmax(-1) * mine
        values[:, :, i * size : i * size + n_keys] = v[:, i]
    tokens = slice(before, before + length)
    return Terms(
        matrix=matrix[..., tokens],
        values=values[:, :, tokens],
        state_matrix=None if state is None else matrix[..., :before],
        state_values=None if state is None else values[:, :, :before],
        beside=None,
        finish=lambda y: block.out_proj(y.flatten(2).to(x.dtype)),
        out_weight=weight_of(block.out_proj).unflatten(1, (block.n_heads, -1))[:, heads].flatten(1),
        names=[f"head {head}" for head in request.heads],
    )


class _Recorded(TorchFunctionMode):
    """Records the arguments of every call of softmax attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[inspect.BoundArguments] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            bound = SOFTMAX_ATTENTION.bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            self.calls.append(bound)
        return func(*args, **(kwargs or {}))


def _signature(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """Of ``F.scaled_dot_product_attention``, which is built in and has none to read."""


SOFTMAX_ATTENTION = inspect.signature(_signature)
