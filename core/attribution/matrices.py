"""Selective scans written out as matrices (Ali et al. 2024, arXiv:2403.01590, section 3.2).

The recurrence ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t``, ``y_t = C_t h_t + D x_t`` unrolled is ``y = M
x`` with

    M[i, j] = C_i . exp(A (dt_{j+1} + ... + dt_i)) B_j dt_j   for j <= i, plus D at j = i,

and a state before the first token adds ``C_i . exp(A (dt_1 + ... + dt_i)) h_0``: a column for each of its
entries. Rows are computed for chosen tokens only, the queries, ``(batch, n_queries)``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_at(x: Tensor, queries: Tensor) -> Tensor:
    """``x`` ``(batch, length, ...)`` at the queries, ``(batch, n_queries, ...)``."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, queries]


def visible(queries: Tensor, length: int, seq_idx: Tensor | None) -> Tensor:
    """Whether a query sees a token: not after it, and of its packed sequence; ``(batch, 1, n_queries,
    length)``."""
    seen = queries[:, :, None] >= torch.arange(length, device=queries.device)
    if seq_idx is not None:
        seen = seen & (tokens_at(seq_idx, queries)[:, :, None] == seq_idx[:, None, :])
    return seen[:, None]


def ssd_matrix(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Mamba-2's matrices without D, and the columns of the state before the first token.

    Args:
        dt: Effective step sizes, ``(batch, length, n_heads)``.
        A: ``(n_heads,)``.
        B, C: ``(batch, length, n_heads, d_state)``.
        queries: Rows to compute.

    Returns:
        ``(batch, n_heads, n_queries, length)``, to be masked by ``visible``, and
        ``(batch, n_heads, n_queries, d_state)``.
    """
    between, since = _elapsed(dt, queries)
    C = tokens_at(C, queries).transpose(1, 2)  # [b, h, q, n]
    matrix = C @ B.permute(0, 2, 3, 1)
    matrix = matrix * torch.exp(between * A[:, None, None]) * dt.transpose(1, 2)[:, :, None]
    return matrix, C * torch.exp(since * A[:, None])[..., None]


def selective_scan_matrix(
    dt: Tensor, A: Tensor, B: Tensor, C: Tensor, queries: Tensor
) -> tuple[Tensor, Tensor]:
    """Mamba-1's matrices without D, as ``ssd_matrix``'s with a head for each channel.

    Args:
        dt: Effective step sizes, ``(batch, length, d_inner)``.
        A: ``(d_inner, d_state)``.
        B, C: ``(batch, length, d_state)``, shared by all channels.
        queries: Rows to compute.
    """
    between, since = _elapsed(dt, queries)
    C = tokens_at(C, queries)  # [b, q, n]
    matrix = torch.zeros_like(between)
    for n in range(A.shape[1]):  # every state has a decay of its own; one at a time, for the memory
        pairs = C[:, :, n, None] * B[:, None, :, n]  # [b, q, l]
        matrix += pairs[:, None] * torch.exp(between * A[:, n, None, None])
    matrix = matrix * dt.transpose(1, 2)[:, :, None]
    return matrix, C[:, None] * torch.exp(since[..., None] * A[:, None])


def convolution_matrix(weight: Tensor, length: int, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """A causal convolution as a banded matrix for every channel.

    Args:
        weight: ``(channels, width)``, the last tap on the present.
        length: Tokens.
        seq_idx: Packed sequences, ``(batch, length)``.

    Returns:
        ``(batch or 1, channels, length, length)``, and ``(batch or 1, channels, length, width - 1)`` for
        the inputs before the first token.
    """
    width = weight.shape[1]
    past = width - 1
    tap = torch.arange(past + length, device=weight.device)
    tap = tap - torch.arange(length, device=weight.device)[:, None]  # [l, past + l]
    inside = (tap >= 0) & (tap < width)
    whole = (weight[:, tap.clamp(0, width - 1)] * inside)[None]
    if seq_idx is not None:
        # what came before the row belongs to its first sequence
        owner = torch.cat([seq_idx[:, :1].expand(-1, past), seq_idx], dim=1)
        whole = whole * (owner[:, None, :] == seq_idx[:, :, None])[:, None]
    return whole[..., past:], whole[..., :past]


def _elapsed(dt: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the steps after token ``j`` up to query ``i``, and of all steps up to it.

    Returns ``(batch, n_heads, n_queries, length)``, zero where ``j > i``, and ``(batch, n_heads,
    n_queries)``.
    """
    # a difference of two long sums: float32 would lose digits that the scan, which never forms them, keeps
    exact = torch.float32 if dt.device.type == "mps" else torch.float64
    total = dt.to(exact).cumsum(1)
    since = tokens_at(total, queries).transpose(1, 2)  # [b, h, q]
    between = (since[..., None] - total.transpose(1, 2)[:, :, None]).clamp(min=0)
    return between.to(dt.dtype), since.to(dt.dtype)
