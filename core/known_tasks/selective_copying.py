"""Selective copying: a few symbols lie scattered in noise, and are to be said in their order at the end.

Gu & Dao 2023, arXiv:2312.00752, section 4.1 (there 16 symbols of 16 in 4,096 tokens). The gaps are random, so
that what reads the same way at every token cannot know what to keep.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambakit.core.known_tasks.drawn import Drawn, check_length, nothing_asked, places, random_ids


@dataclass(frozen=True)
class SelectiveCopying:
    """Ids below ``n_symbols`` are symbols; then come noise, and the question that each answer follows."""

    n_symbols: int = 8
    """Different symbols."""
    n_copied: int = 8
    """Symbols in a row."""

    @property
    def n_ids(self) -> int:
        return self.n_symbols + 2

    @property
    def chance(self) -> float:
        return 1 / self.n_symbols

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """Rows whose last ``n_copied`` tokens ask for the symbols, one after the other.

        Raises:
            ValueError: If the length is below ``2 * n_copied``.
        """
        check_length(length, 2 * self.n_copied, "each symbol has a token and a question")
        stream = length - self.n_copied
        symbols = random_ids(n, self.n_copied, self.n_symbols, generator)
        ids = torch.full((n, length), self.n_symbols, device=symbols.device)
        ids.scatter_(1, places(n, stream, self.n_copied, 1, generator), symbols)
        ids[:, stream:] = self.n_symbols + 1
        targets = nothing_asked(ids)
        targets[:, stream:] = symbols
        return Drawn(ids, targets)
