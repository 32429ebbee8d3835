"""Which blocks have hidden attention, and the terms of each; both directions side by side."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from mambakit.core.attribution.mamba import mamba_terms
from mambakit.core.attribution.matrices import tokens_at
from mambakit.core.attribution.softmax import attention_terms
from mambakit.core.attribution.terms import Request, Terms
from mambakit.core.blocks import Attention, Bidirectional, Block, Mamba1, Mamba2
from mambakit.core.blocks.gaps import gaps_as_read
from mambakit.core.blocks.ragged import reversal_index, take


def n_heads_of(block: nn.Module) -> int:
    """Heads that have a matrix each: Mamba-1's are its channels; of both directions, those of one.

    Raises:
        ValueError: If the block mixes no tokens by such matrices.
    """
    if isinstance(block, Bidirectional):
        return n_heads_of(block.ahead)
    if isinstance(block, Block) and block.dense_reads is not None:
        raise ValueError(
            f"block: this {type(block).__name__} also reads the hidden states of layers below it (dense), "
            "so that no matrix of its own says what it does"
        )
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
    if isinstance(block, Block) and block.dense_reads is not None:
        return False
    return isinstance(block, (Mamba1, Mamba2, Attention))


def width_of(block: nn.Module) -> int:
    """Matrices that a head becomes where each of its channels needs one."""
    if isinstance(block, Bidirectional):
        return 2 * width_of(block.ahead)
    return block.head_dim if isinstance(block, Mamba2) else 1


def terms_of(block: Block, request: Request) -> Terms:
    """Take apart what ``block`` does; the block is one that ``n_heads_of`` knows."""
    if isinstance(block, Bidirectional):
        return _both_directions(block, request)
    request = _from_learned_start(block, request)
    if isinstance(block, Attention):
        return attention_terms(block, request)
    assert isinstance(block, (Mamba1, Mamba2))
    return mamba_terms(block, request)


def _from_learned_start(block: Block, request: Request) -> Request:
    """The request with the state that ``block`` begins from, where that is one it has learned."""
    if "initial" not in block._modules:
        return request
    if request.seq_idx is not None:
        raise ValueError(
            f"seq_idx: this {type(block).__name__} begins every packed sequence from a learned state, and "
            "its matrices know one state a row; give each sequence a row of its own, with lengths="
        )
    if request.state is not None:
        return request
    x = request.x
    return dataclasses.replace(request, state=block.init_state(len(x), device=x.device, dtype=x.dtype))


def _both_directions(block: Bidirectional, request: Request) -> Terms:
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
        None if request.elapsed is None else gaps_as_read(request.elapsed, index, request.seq_idx),
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
        _side_by_side(ahead.state_matrix, back.state_matrix),
        _side_by_side(ahead.state_values, back.state_values),
        beside,
        lambda y: block.merge(x, [ahead.finish(y[:, :, :units]), back.finish(y[:, :, units:])]),
        out_weight,
        [f"ahead {name}" for name in ahead.names] + [f"back {name}" for name in back.names],
    )


def _side_by_side(ahead: Tensor | None, back: Tensor | None) -> Tensor | None:
    """What is had of learned starts in either direction, one after the other along the units."""
    if ahead is None and back is None:
        return None
    parts = [
        torch.zeros_like(other) if one is None and other is not None else one
        for one, other in ((ahead, back), (back, ahead))
    ]
    return torch.cat([part for part in parts if part is not None], dim=1)
