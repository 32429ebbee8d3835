"""Which samples share a row: first-fit, and the numbers that keep them apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Span = tuple[int, int, int]
"""Row, first position, and how many."""


def first_fit(lengths: Iterable[int], width: int) -> tuple[list[Span], list[int]]:
    """Places each sample, in the given order, in the first row that has room; too long a one has its own row.

    Args:
        lengths: Of the samples.
        width: Positions of a row.

    Returns:
        The samples' spans, and how many positions each row uses.
    """
    used: list[int] = []
    spans: list[Span] = []
    for n in lengths:
        row = next((r for r, taken in enumerate(used) if taken + n <= width), len(used))
        if row == len(used):
            used.append(0)
        spans.append((row, used[row], n))
        used[row] += n
    return spans, used


def number_samples(spans: Sequence[Span], used: Sequence[int], width: int) -> Tensor:
    """Numbers the samples of each row 0, 1, 2, ... (but for empty ones), and the padding after them.

    Returns:
        ``seq_idx``, ``(rows, width)`` int32.
    """
    seq_idx = torch.zeros(len(used), width, dtype=torch.int32)
    for row, start, n in spans:
        if n and start:
            seq_idx[row, start:] += 1
    for row, end in enumerate(used):
        if end:
            seq_idx[row, end:] += 1
    return seq_idx
