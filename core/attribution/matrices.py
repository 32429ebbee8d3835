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

# Queries of a selective scan that share one token to measure decays from: fewer make more columns to decay,
# more make more pairs to do one by one.
_ROWS = 16


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
    order = queries.argsort(1)
    queries = queries.gather(1, order)
    total = _elapsed_since_start(dt)  # [b, l, d]
    C = tokens_at(C, queries)  # [b, q, n]
    since = tokens_at(total, queries)  # [b, q, d]
    parts = [
        _rows_of_selective_scan(
            total, since[:, i : i + _ROWS], A, B, C[:, i : i + _ROWS], queries[:, i : i + _ROWS]
        )
        for i in range(0, queries.shape[1], _ROWS)
    ]
    matrix = torch.cat(parts, dim=2) * dt.transpose(1, 2)[:, :, None]
    since = since.transpose(1, 2).to(dt.dtype)
    state_matrix = C[:, None] * torch.exp(since[..., None] * A[:, None])
    back = order.argsort(1)
    return (
        tokens_at(matrix.transpose(1, 2), back).transpose(1, 2),
        tokens_at(state_matrix.transpose(1, 2), back).transpose(1, 2),
    )


def _rows_of_selective_scan(
    total: Tensor, since: Tensor, A: Tensor, B: Tensor, C: Tensor, queries: Tensor
) -> Tensor:
    """``sum_n C_i exp(A (total_i - total_j)) B_j`` for a few queries in increasing order; ``(b, d, q,
    length)``.

    Up to the first query, ``r``, the decay falls into ``exp(A (total_i - total_r))`` and
    ``exp(A (total_r - total_j))``, neither above one: a matrix product, and no exponential for every pair.
    """
    batch, length, _ = total.shape
    first = queries[:, :1]
    at_first = tokens_at(total, first)  # [b, 1, d]
    low, high = int(first.min()), int(queries.max())
    token = torch.arange(length, device=total.device)

    def decays(time: Tensor) -> Tensor:
        return torch.exp(time.transpose(1, 2).to(A.dtype)[..., None] * A[:, None])  # [b, d, l, n]

    rows = decays(since - at_first) * C[:, None]
    before = token[: int(first.max()) + 1]
    columns = decays((at_first - total[:, : len(before)]).clamp(min=0)) * B[:, None, : len(before)]
    columns = columns * (before <= first)[:, None, :, None]
    matrix = A.new_zeros(batch, len(A), queries.shape[1], length)
    matrix[..., : len(before)] = rows @ columns.transpose(2, 3)
    # tokens after the first query, pair by pair
    for n in range(A.shape[1] if high > low else 0):  # one state at a time, for the memory
        between = since.transpose(1, 2)[..., None] - total.transpose(1, 2)[:, :, None, low + 1 : high + 1]
        pairs = C[:, :, n, None] * B[:, None, low + 1 : high + 1, n]  # [b, q, span]
        pairs = pairs * (token[low + 1 : high + 1] > first)[:, None]
        decay = torch.exp(between.clamp(min=0).to(A.dtype) * A[:, n, None, None])
        matrix[..., low + 1 : high + 1] += pairs[:, None] * decay
    return matrix


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
    total = _elapsed_since_start(dt)
    since = tokens_at(total, queries).transpose(1, 2)  # [b, h, q]
    between = (since[..., None] - total.transpose(1, 2)[:, :, None]).clamp(min=0)
    return between.to(dt.dtype), since.to(dt.dtype)


def _elapsed_since_start(dt: Tensor) -> Tensor:
    """Sum of the steps up to each token, like ``dt``, in float64 where there is such.

    A difference of two long sums in float32 would lose digits that the scan, which never forms them, keeps.
    """
    return dt.to(torch.float32 if dt.device.type == "mps" else torch.float64).cumsum(1)
