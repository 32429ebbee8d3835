"""A needle in a long stream: names with a value each lie somewhere in noise; the end asks for one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambakit.core.known_tasks.drawn import Drawn, check_length, distinct, nothing_asked, places, random_ids


@dataclass(frozen=True)
class Needle:
    """Noise is the first ids, then come names, then values."""

    n_noise: int = 16
    """Different tokens of noise."""
    n_names: int = 8
    """Different names."""
    n_values: int = 8
    """Different values."""
    n_needles: int = 4
    """Names in a row, each followed by its value."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_needles <= self.n_names:
            raise ValueError(f"n_needles: expected 1 to n_names={self.n_names}, got {self.n_needles}")

    @property
    def n_ids(self) -> int:
        return self.n_noise + self.n_names + self.n_values

    @property
    def chance(self) -> float:
        """Of one who says a value of the row."""
        return 1 / self.n_needles

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """Rows whose last token is one of their names.

        Raises:
            ValueError: If the length is below ``2 * n_needles + 1``.
        """
        check_length(length, 2 * self.n_needles + 1, "a needle has two tokens, and one asks")
        ids = random_ids(n, length, self.n_noise, generator)
        names = self.n_noise + distinct(n, self.n_names, self.n_needles, generator)
        values = self.n_noise + self.n_names + random_ids(n, self.n_needles, self.n_values, generator)
        where = places(n, length - 1, self.n_needles, 2, generator)
        ids.scatter_(1, where, names)
        ids.scatter_(1, where + 1, values)
        asked = random_ids(n, 1, self.n_needles, generator)
        ids[:, -1:] = names.gather(1, asked)
        targets = nothing_asked(ids)
        targets[:, -1:] = values.gather(1, asked)
        return Drawn(ids, targets)
