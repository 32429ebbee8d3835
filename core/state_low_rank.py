"""Recurrent states as products of two narrow matrices: fewer numbers, where a state is of low rank.

    small = low_rank(state, rank=4)                 # or error=0.05, the share of its norm that may be lost
    small = compress(low_rank(state, rank=4), "int8")
    state = decompress(small)

The state of a head is a sum of outer products of what entered, each as old as its decay says, so that few of
its directions may carry most of it. The truncated singular value decomposition keeps the best ones (Eckart &
Young 1936): with the singular values s_1 >= s_2 >= ... of H and H_r its best approximation of rank r,

    |H - H_r|_F^2 = s_{r+1}^2 + s_{r+2}^2 + ...     and     |C . (H - H_r)| <= s_{r+1} |C|  for every C,

and as a state is only ever decayed (and turned), a layer's later outputs are off by no more than the second
bound with their own C, for the same inputs. What comes of it through layers above is measured by
``benchmarks/state_precision.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.core.state import State

RECURRENT = "ssm"  # the name that blocks give a matrix that sums up outer products
LEFT, RIGHT, LIKE = "left", "right", "like"


def low_rank(state: State, rank: int | None = None, *, error: float | None = None) -> State:
    """The state with the recurrent matrices of Mamba layers as two factors each; anything else stays.

    A matrix is ``(head_dim, d_state)`` of every head, or Mamba-1's ``(d_inner, d_state)`` of every row. It
    stays as it is where the factors would hold as many numbers.

    Args:
        state: From ``forward`` or ``step``; no gradients flow through.
        rank: Of every matrix, at least 1.
        error: Instead: the share of a matrix's norm (Frobenius) that may be lost, in (0, 1). The rank is the
            least that does for every matrix of a tensor, so that rows stay together.

    Returns:
        A ``State``; ``mambakit.core.state_storage.decompress`` undoes it.

    Raises:
        ValueError: On neither or both of rank and error, a value out of range, or numbers that are not
            finite.
    """
    if (rank is None) == (error is None):
        raise ValueError("rank, error: give one of the two")
    if rank is not None and rank < 1:
        raise ValueError(f"rank: expected at least 1, got {rank}")
    if error is not None and not 0 < error < 1:
        raise ValueError(f"error: expected a share in (0, 1), got {error}")
    items: dict[str, Any] = {}
    for name, item in state.items():
        if isinstance(item, State):
            items[name] = low_rank(item, rank, error=error)
        else:
            items[name] = _factored(item, rank, error) if name == RECURRENT else item
    return State(items)


def spectra(state: State) -> dict[str, Tensor]:
    """Singular values of every recurrent matrix, the largest first, by the state's dotted name.

    ``(batch, n_heads, min(head_dim, d_state))`` or, of Mamba-1, ``(batch, min(d_inner, d_state))``: what a
    rank loses by the formulas above.
    """
    return {
        name: torch.linalg.svdvals(_wide(item))
        for name, item in state.tensors()
        if name.rpartition(".")[2] == RECURRENT
    }


def product(item: State) -> Tensor:
    """The matrices whose factors ``low_rank`` left in a nested state, in the dtype they had."""
    left, right = item[LEFT], item[RIGHT]
    return (left @ right).to(item[LIKE].dtype)


def _factored(values: Tensor, rank: int | None, error: float | None) -> Tensor | State:
    values = values.detach()
    height, width = values.shape[-2:]
    if values.numel() == 0:
        return values
    if not bool(values.isfinite().all()):
        raise ValueError("state: a recurrent matrix holds numbers that are not finite")
    left, sizes, right = torch.linalg.svd(_wide(values), full_matrices=False)
    if rank is None:
        assert error is not None
        rank = _least_rank(sizes, error)
    if rank * (height + width) >= height * width:
        return values
    root = sizes[..., :rank].sqrt()  # both factors of one size, so that numbers of fewer bits suit both
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    return State(
        {
            LEFT: (left[..., :rank] * root[..., None, :]).to(dtype).contiguous(),
            RIGHT: (root[..., None] * right[..., :rank, :]).to(dtype).contiguous(),
            LIKE: values.new_empty(len(values), 0),
        }
    )


def _least_rank(sizes: Tensor, error: float) -> int:
    """The least rank that loses at most ``error`` of the norm of every matrix."""
    energy = sizes.square()
    lost = energy.flip(-1).cumsum(-1).flip(-1)  # with rank r: that from place r on
    enough = lost <= error**2 * energy.sum(-1, keepdim=True)
    ranks = torch.where(enough.any(-1), enough.int().argmax(-1), sizes.shape[-1])
    return max(int(ranks.max()), 1)


def _wide(values: Tensor) -> Tensor:
    return values.double() if values.dtype == torch.float64 else values.float()
