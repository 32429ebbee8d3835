"""Packed rows taken apart into sequences, and put together again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mambakit.core.state import State


class Packed:
    """The sequences of packed rows, numbered along the first row, then the second, and so on.

    Sizes depend on the values of ``seq_idx``, so they are read back from a GPU.

    Args:
        seq_idx: ``(batch, length)``, non-decreasing in a row; at least one token.

    Attributes:
        count: Number of sequences.
        lengths: Their tokens, ``(count,)`` int64.
        start: Where each begins in the flattened rows, ``(count,)``.
        first, last: Number of each row's first and last sequence, ``(batch,)``.
    """

    def __init__(self, seq_idx: Tensor) -> None:
        opens = torch.ones_like(seq_idx, dtype=torch.bool)
        opens[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
        number = opens.flatten().cumsum(0).view_as(seq_idx) - 1
        self._shape = seq_idx.shape
        self.start = opens.flatten().nonzero().squeeze(1)
        self.last = number[:, -1]
        self._places: list[Tensor] = []
        self._order: list[Tensor] = []
        self.first = number[:, 0]
        self.count = len(self.start)
        end = torch.tensor([seq_idx.numel()], device=seq_idx.device)
        self.lengths = torch.cat([self.start, end]).diff()

    def groups(self) -> Iterator[Tensor]:
        """Numbers of sequences to run together: padded to the longest of them, no group more than doubles."""
        order = self.lengths.argsort(descending=True)
        lengths = self.lengths[order].tolist()
        begin = 0
        for i, n in enumerate(lengths):
            if 2 * n < lengths[begin]:
                yield order[begin:i]
                begin = i
        yield order[begin:]

    def take(
        self, members: Tensor, x: Tensor, elapsed: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Lengths of these sequences, and theirs of ``x`` ``(batch, length, channels)`` and ``elapsed``
        ``(batch, length)`` as right-padded rows."""
        lengths = self.lengths[members]
        t = torch.arange(int(lengths.max()), device=x.device)
        places = self.start[members][:, None] + t
        real = t < lengths[:, None]
        self._order.append(members)
        self._places.append(places[real])
        places = places.clamp(max=self._shape.numel() - 1)

        rows = x.flatten(0, 1)[places].masked_fill(~real[..., None], 0.0)
        gaps = None if elapsed is None else elapsed.flatten()[places].masked_fill(~real, 0.0)
        return lengths, rows, gaps

    def join(self, outputs: list[Tensor]) -> Tensor:
        """What came out for each group taken, ``(members, longest, channels)``, packed as it was."""
        tokens = []
        for y, members in zip(outputs, self._order, strict=True):
            real = torch.arange(y.shape[1], device=y.device) < self.lengths[members][:, None]
            tokens.append(y[real])
        place = torch.cat(self._places).argsort()  # each token has one
        return torch.cat(tokens)[place].view(*self._shape, -1)

    def last_of(self, states: State) -> State:
        """The states of each row's last sequence, from those of all sequences in the groups' order."""
        where = torch.cat(self._order).argsort()
        return states.index_select(where[self.last])
