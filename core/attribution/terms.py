"""What each kind of block mixes, taken apart: a matrix over tokens, the values it mixes, and what follows.

The quantities come from the methods that the blocks' own ``forward`` calls (``project_in``,
``scan_arguments``), and for attention from the call of softmax attention itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mambakit.core.attribution.matrices import (
    convolution_matrix,
    selective_scan_matrix,
    ssd_matrix,
    tokens_at,
    visible,
)
from mambakit.core.blocks import Attention, Bidirectional, Block, Mamba1, Mamba2
from mambakit.core.blocks.ragged import reversal_index, take
from mambakit.core.state import State
from mambakit.kernels import causal_conv1d, selective_scan, ssd
from mambakit.kernels.semantics import effective_dt, state_dtype


@dataclass(frozen=True)
class Request:
    """What of a block's mixing is asked for, with inputs that ``Block.forward`` would accept."""

    x: Tensor
    state: State | None
    seq_idx: Tensor | None
    lengths: Tensor | None
    queries: Tensor
    """Tokens whose rows are wanted, ``(batch, n_queries)``."""
    heads: list[int]
    fold_convolution: bool
    fold_gate: bool

    @property
    def per_channel(self) -> bool:
        """Whether what is folded in differs among the channels of a head."""
        return self.fold_convolution or self.fold_gate


@dataclass(frozen=True)
class Terms:
    """``finish(matrix @ values + state_matrix @ state_values + beside)`` is the block's output.

    Units are heads, or channels where each has a matrix of its own; ``p`` is the width of a unit's values.
    """

    matrix: Tensor  # [b, units, q, l]
    values: Tensor  # [b, units, l, p]
    state_matrix: Tensor | None  # [b, units, q, columns]
    state_values: Tensor | None  # [b, units, columns, p]
    beside: Tensor | None  # [b, units, q, p]: what no matrix of one number a pair holds
    finish: Callable[[Tensor], Tensor]  # [b, q, units, p] to [b, q, d_model]
    out_weight: Tensor | None  # [d_model, units * p] where finish is linear
    names: list[str]


def n_heads_of(block: nn.Module) -> int:
    """Heads that have a matrix each: Mamba-1's are its channels; of both directions, those of one.

    Raises:
        ValueError: If the block mixes no tokens by such matrices.
    """
    if isinstance(block, Bidirectional):
        return n_heads_of(block.ahead)
    if isinstance(block, Mamba1):
        return block.d_inner
    if isinstance(block, (Mamba2, Attention)):
        return block.n_heads
    raise ValueError(
        f"block: {type(block).__name__} has no hidden attention; "
        "Mamba1, Mamba2, Attention and Bidirectional over these have"
    )


def has_hidden_attention(block: nn.Module) -> bool:
    """Whether ``hidden_attention`` takes the block."""
    if isinstance(block, Bidirectional):
        return has_hidden_attention(block.ahead)
    return isinstance(block, (Mamba1, Mamba2, Attention))


def width_of(block: nn.Module) -> int:
    """Matrices that a head becomes where each of its channels needs one."""
    if isinstance(block, Bidirectional):
        return 2 * width_of(block.ahead)
    return block.head_dim if isinstance(block, Mamba2) else 1


def terms_of(block: Block, request: Request) -> Terms:
    """Take apart what ``block`` does; the block is one that ``n_heads_of`` knows."""
    if isinstance(block, Bidirectional):
        return _bidirectional(block, request)
    if isinstance(block, Attention):
        return _attention(block, request)
    assert isinstance(block, (Mamba1, Mamba2))
    return _mamba(block, request)


def _mamba(block: Mamba1 | Mamba2, request: Request) -> Terms:
    x, state, seq_idx, lengths, queries = (
        request.x,
        request.state,
        request.seq_idx,
        request.lengths,
        request.queries,
    )
    conv_state, ssm_state = (None, None) if state is None else (state["conv"], state["ssm"])
    if isinstance(block, Mamba1):
        inputs, z = block.project_in(x)
        arguments, _ = block.scan_arguments(inputs, conv_state, seq_idx, lengths)
        n_heads, width = block.d_inner, 1
    else:
        z, inputs, dt = block.project_in(x)
        arguments, _ = block.scan_arguments(inputs, dt, conv_state, seq_idx, lengths)
        n_heads, width = block.n_heads, block.head_dim
    dtype = state_dtype(x)
    heads = torch.tensor(request.heads, device=x.device)
    options = {name: arguments[name] for name in ("dt_bias", "dt_softplus", "dt_limit")}
    dt = effective_dt(arguments["dt"], **options, dtype=dtype)[..., heads]
    A, B, C = (arguments[name].to(dtype) for name in ("A", "B", "C"))
    if isinstance(block, Mamba1):
        matrix, state_matrix = selective_scan_matrix(dt, A[heads], B[:, :, 0], C[:, :, 0], queries)
    else:
        groups = heads // (n_heads // block.n_groups)
        matrix, state_matrix = ssd_matrix(dt, A[heads], B[:, :, groups], C[:, :, groups], queries)
    matrix = matrix.masked_fill(~visible(queries, x.shape[1], seq_idx), 0.0)
    if seq_idx is not None:  # a state is the first sequence's
        first = tokens_at(seq_idx, queries) == seq_idx[:, :1]
        state_matrix = state_matrix * first[:, None, :, None]

    # Everything a channel has for itself: values, skip, state, and what may be folded in.
    channels = (heads[:, None] * width + torch.arange(width, device=x.device)).flatten()
    values = arguments["x"].to(dtype).flatten(2)[..., channels].transpose(1, 2)  # [b, c, l]
    D = arguments["D"].to(dtype)
    diagonal = (queries[:, :, None] == torch.arange(x.shape[1], device=x.device))[:, None]
    past = None if ssm_state is None else ssm_state.to(dtype).view(len(x), n_heads * width, -1)[:, channels]
    beside = None
    names = [f"{'channel' if isinstance(block, Mamba1) else 'head'} {head}" for head in request.heads]
    if width > 1 and request.per_channel:
        matrix = matrix.repeat_interleave(width, 1)
        state_matrix = state_matrix.repeat_interleave(width, 1)
        D = (D if D.dim() == 2 else D[:, None].expand(-1, width)).flatten()[channels]
        names = [f"{name} channel {k}" for name in names for k in range(width)]
        heads, width = channels, 1
    else:
        D = D[heads]
    if D.dim() == 1:
        matrix = matrix + diagonal * D[:, None, None]
    values = values.unflatten(1, (len(heads), width)).transpose(2, 3)  # [b, units, l, p]
    if D.dim() == 2:
        beside = D[:, None] * _rows(values, queries)
    state_values = None
    if past is not None:
        state_values = past.unflatten(1, (len(heads), width)).transpose(2, 3)  # [b, units, n, p]

    if request.fold_convolution:
        weight = block.conv_weight[channels].to(dtype)
        bias = None if block.conv_bias is None else block.conv_bias[channels]
        taken = inputs[..., channels]
        before = None if conv_state is None else conv_state[:, channels]
        # silu(a) = sigmoid(a) a: linear in a once the sigmoid is known
        slope = torch.sigmoid(_convolved(taken, block.conv_weight[channels], bias, before, seq_idx).to(dtype))
        scaled = matrix * slope.transpose(1, 2)[:, :, None]
        band, band_of_past = convolution_matrix(weight, x.shape[1], seq_idx)
        if bias is not None:
            beside = (scaled.sum(-1) * bias.to(dtype)[:, None])[..., None]
        matrix = scaled @ band
        values = taken.to(dtype).transpose(1, 2)[..., None]
        if before is not None:
            assert state_values is not None
            state_matrix = torch.cat([scaled @ band_of_past, state_matrix], dim=-1)
            state_values = torch.cat([before.to(dtype)[..., None], state_values], dim=2)

    z = tokens_at(z, queries)
    out_weight = None
    if request.fold_gate:
        y = _scanned(block, arguments, ssm_state, seq_idx)
        factor = _gate(block, tokens_at(y.flatten(2), queries).to(dtype), z.to(dtype))
        factor = factor[..., channels].transpose(1, 2)[..., None]  # [b, c, q, 1]
        matrix, state_matrix = matrix * factor, state_matrix * factor
        beside = None if beside is None else beside * factor
        out_weight = block.out_proj.weight[:, channels]

    def finish(y: Tensor) -> Tensor:
        if request.fold_gate:
            return block.out_proj(y.flatten(2).to(x.dtype))
        if isinstance(block, Mamba1):
            return block.out_proj((y.flatten(2) * F.silu(z)).to(x.dtype))
        if block.norm_weight is None:
            y = y * F.silu(z).view_as(y)
        return block.project_out(y.to(x.dtype), z)

    if past is None:
        return Terms(matrix, values, None, None, beside, finish, out_weight, names)
    return Terms(matrix, values, state_matrix, state_values, beside, finish, out_weight, names)


def _rows(values: Tensor, queries: Tensor) -> Tensor:
    """``values`` ``(batch, units, length, p)`` at the queries."""
    return tokens_at(values.transpose(1, 2), queries).transpose(1, 2)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, seq_idx: Tensor | None
) -> Tensor:
    """The convolution before its SiLU."""
    y = causal_conv1d(x, weight, bias, activation=None, initial_state=state, seq_idx=seq_idx)
    assert isinstance(y, Tensor)
    return y


def _scanned(
    block: Mamba1 | Mamba2, arguments: dict[str, Any], state: Tensor | None, seq_idx: Tensor | None
) -> Tensor:
    """The scan's output, without the gate."""
    scan: Callable[..., Any] = selective_scan if isinstance(block, Mamba1) else ssd
    return scan(**arguments, initial_state=state, seq_idx=seq_idx)


def _gate(block: Mamba1 | Mamba2, y: Tensor, z: Tensor) -> Tensor:
    """What the scan's ``y`` is multiplied by on its way to out_proj, all ``(batch, n_queries,
    d_inner)``."""
    factor = F.silu(z)
    if isinstance(block, Mamba1) or block.norm_weight is None:
        return factor
    normed = y if block.norm_before_gate else y * factor
    squares = normed.square().unflatten(-1, (block.n_groups, -1)).mean(-1, keepdim=True)
    scale = torch.rsqrt(squares + block.norm_eps).expand(*squares.shape[:-1], y.shape[-1] // block.n_groups)
    return factor * scale.flatten(2) * block.norm_weight.to(y.dtype)


class _Recorded(TorchFunctionMode):
    """Records the arguments of every call of softmax attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[inspect.BoundArguments] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            bound = _SOFTMAX_ATTENTION.bind(*args, **(kwargs or {}))
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


_SOFTMAX_ATTENTION = inspect.signature(_signature)


def _attention(block: Attention, request: Request) -> Terms:
    x, queries = request.x, request.queries
    recorded = _Recorded()
    with recorded:  # what forward computes itself: rotation, cache, mask and all
        block.mix(x, request.state, request.seq_idx, request.lengths)
    call: dict[str, Any] = recorded.calls[0].arguments if len(recorded.calls) == 1 else {}
    if not call or call["query"].shape[:3] != (len(x), block.n_heads, x.shape[1]):
        raise ValueError(
            f"block: expected this {type(block).__name__} to call softmax attention once for the whole "
            "sequence; it does so in pieces, and its matrices cannot be read off"
        )
    q, k, v = call["query"], call["key"], call["value"]  # [b, h, l, p]
    heads = torch.tensor(request.heads, device=x.device)
    shared = heads // (q.shape[1] // k.shape[1])
    q, k, v = _rows(q, queries)[:, heads], k[:, shared], v[:, shared]
    dtype = state_dtype(x)
    scale = 1 / math.sqrt(q.shape[-1]) if call["scale"] is None else call["scale"]
    logits = scale * (q.to(dtype) @ k.to(dtype).transpose(2, 3))
    if call["is_causal"]:
        logits = logits.masked_fill(~visible(queries, k.shape[2], None), -math.inf)
    mask = call["attn_mask"]
    if mask is not None:
        mask = mask.expand(len(x), mask.shape[1], x.shape[1], -1)
        mask = _rows(mask, queries)
        mask = mask if mask.shape[1] == 1 else mask[:, heads]
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    matrix, past = logits.softmax(-1), k.shape[2] - x.shape[1]
    out_weight = block.out_proj.weight.unflatten(1, (block.n_heads, -1))[:, heads].flatten(1)
    return Terms(
        matrix[..., past:],
        v[:, :, past:].to(dtype),
        matrix[..., :past] if request.state is not None else None,
        v[:, :, :past].to(dtype) if request.state is not None else None,
        None,
        lambda y: block.out_proj(y.flatten(2).to(x.dtype)),
        out_weight,
        [f"head {head}" for head in request.heads],
    )


def _bidirectional(block: Bidirectional, request: Request) -> Terms:
    index = reversal_index(request.x, request.seq_idx, request.lengths)
    if index is None:
        length = request.x.shape[1]
        index = torch.arange(length - 1, -1, -1, device=request.x.device).expand(len(request.x), -1)
    ahead = terms_of(block.ahead, request)
    reverse = Request(
        take(request.x, index),
        None,
        request.seq_idx,
        request.lengths,
        index.gather(1, request.queries),
        request.heads,
        request.fold_convolution,
        request.fold_gate,
    )
    back = terms_of(block.ahead if block.back is None else block.back, reverse)
    columns = index[:, None, None]
    units = ahead.matrix.shape[1]
    beside = ahead.beside
    if beside is not None:
        assert back.beside is not None
        beside = torch.cat([beside, back.beside], dim=1)
    out_weight = None
    if ahead.out_weight is not None and back.out_weight is not None and block.merge.gate_proj is None:
        nothing = torch.zeros_like(ahead.out_weight.T)
        both = [ahead.out_weight.T, nothing], [nothing, back.out_weight.T]
        out_weight = torch.cat([block.merge(nothing, parts) for parts in both]).T
    x = tokens_at(request.x, request.queries)
    return Terms(
        torch.cat([ahead.matrix, back.matrix.gather(3, columns.expand_as(back.matrix))], dim=1),
        torch.cat(
            [ahead.values, back.values.gather(2, index[:, None, :, None].expand_as(back.values))], dim=1
        ),
        None,
        None,
        beside,
        lambda y: block.merge(x, [ahead.finish(y[:, :, :units]), back.finish(y[:, :, units:])]),
        out_weight,
        [f"ahead {name}" for name in ahead.names] + [f"back {name}" for name in back.names],
    )
