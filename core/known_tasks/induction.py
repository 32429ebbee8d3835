"""Induction heads: a mark is followed by a token; when it comes again, that token is the answer.

Olsson et al. 2022, arXiv:2209.11895; as Gu & Dao 2023, arXiv:2312.00752, section 4.1, have it: 16 ids,
trained at 256 tokens and tested up to 2^20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambakit.core.known_tasks.drawn import Drawn, check_length, nothing_asked, random_ids


@dataclass(frozen=True)
class Induction:
    """The mark is the last id; the others are the stream."""

    n_stream: int = 15
    """Different tokens of the stream."""

    @property
    def n_ids(self) -> int:
        return self.n_stream + 1

    @property
    def chance(self) -> float:
        return 1 / self.n_stream

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """Rows with the mark at one place anywhere, and at the end, where they ask.

        Raises:
            ValueError: If the length is below 3.
        """
        check_length(length, 3, "mark, answer and mark")
        mark = self.n_stream
        ids = random_ids(n, length, self.n_stream, generator)
        place = random_ids(n, 1, length - 2, generator)
        ids.scatter_(1, place, mark)
        ids[:, -1] = mark
        targets = nothing_asked(ids)
        targets[:, -1:] = ids.gather(1, place + 1)
        return Drawn(ids, targets)
