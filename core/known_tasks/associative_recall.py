"""Multi-query associative recall: pairs of a key and a value, then keys whose values are asked for.

Arora et al. 2023, arXiv:2312.04927 (there 8,192 ids and queries whose distances follow a power law). What has
a state of fixed size must hold all pairs in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambakit.core.known_tasks.drawn import Drawn, check_length, distinct, nothing_asked, places, random_ids


@dataclass(frozen=True)
class AssociativeRecall:
    """Keys are the first ids, values the next; the last is blank."""

    n_pairs: int = 16
    """Pairs in a row, of different keys; each is asked for once."""
    n_keys: int = 64
    """Different keys."""
    n_values: int = 64
    """Different values."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_pairs <= self.n_keys:
            raise ValueError(f"n_pairs: expected 1 to n_keys={self.n_keys}, got {self.n_pairs}")

    @property
    def n_ids(self) -> int:
        return self.n_keys + self.n_values + 1

    @property
    def chance(self) -> float:
        """Of one who says a value of the row."""
        return 1 / self.n_pairs

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """Rows that begin with the pairs; the keys come again in another order, between blanks.

        Raises:
            ValueError: If the length is below ``3 * n_pairs``.
        """
        check_length(length, 3 * self.n_pairs, "a pair has two tokens and a question")
        shown = 2 * self.n_pairs
        keys = distinct(n, self.n_keys, self.n_pairs, generator)
        values = self.n_keys + random_ids(n, self.n_pairs, self.n_values, generator)
        ids = torch.full((n, length), self.n_keys + self.n_values, device=keys.device)
        ids[:, :shown] = torch.stack([keys, values], dim=2).flatten(1)
        order = distinct(n, self.n_pairs, self.n_pairs, generator)
        where = shown + places(n, length - shown, self.n_pairs, 1, generator)
        ids.scatter_(1, where, keys.gather(1, order))
        targets = nothing_asked(ids)
        targets.scatter_(1, where, values.gather(1, order))
        return Drawn(ids, targets)
