"""Parity: whether the ones so far are an odd number.

No state with real, positive decays follows it (Grazzi et al. 2024, arXiv:2411.12537; Lahoti et al. 2026,
arXiv:2603.15569): a state that turns by pi at each one does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambakit.core.known_tasks.drawn import Drawn, check_length, nothing_asked, random_ids


@dataclass(frozen=True)
class Parity:
    """Tokens and answers are 0 and 1."""

    every: bool = True
    """Ask after every token, not after the last alone."""

    @property
    def n_ids(self) -> int:
        return 2

    @property
    def chance(self) -> float:
        return 0.5

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """Rows of bits.

        Raises:
            ValueError: If the length is below 1.
        """
        check_length(length, 1, "a bit")
        ids = random_ids(n, length, 2, generator)
        so_far = ids.cumsum(1) % 2
        if self.every:
            return Drawn(ids, so_far)
        targets = nothing_asked(ids)
        targets[:, -1] = so_far[:, -1]
        return Drawn(ids, targets)
