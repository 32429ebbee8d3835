"""Modular arithmetic: what digits with plus and minus between them come to, modulo 5.

The state is one of ``modulus``, moved around a circle by two tokens at a time. After the arithmetic without
brackets of Deletang et al. 2022, arXiv:2207.02098, which has products too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambakit.core.known_tasks.drawn import Drawn, check_length, nothing_asked, random_ids


@dataclass(frozen=True)
class ModularArithmetic:
    """Digits are the first ids; then come plus and minus."""

    modulus: int = 5
    """As many digits there are."""
    every: bool = True
    """Ask after every digit, not after the last alone."""

    @property
    def n_ids(self) -> int:
        return self.modulus + 2

    @property
    def chance(self) -> float:
        return 1 / self.modulus

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """Rows of a sign and a digit in turn, the last token a digit; an even length begins with a sign.

        Raises:
            ValueError: If the length is below 1.
        """
        check_length(length, 1, "a digit")
        n_digits = (length + 1) // 2
        digits = random_ids(n, n_digits, self.modulus, generator)
        minus = random_ids(n, n_digits, 2, generator)
        if length % 2:
            minus[:, 0] = 0  # the first has no sign
        values = (digits * (1 - 2 * minus)).cumsum(1) % self.modulus
        pairs = torch.stack([self.modulus + minus, digits], dim=2).flatten(1)
        ids = pairs[:, -length:].contiguous()
        targets = nothing_asked(ids)
        if self.every:
            targets[:, (length - 1) % 2 :: 2] = values
        else:
            targets[:, -1] = values[:, -1]
        return Drawn(ids, targets)
