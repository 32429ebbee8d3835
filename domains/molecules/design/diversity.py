"""The diversity filter: a scaffold is worth something only so often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


class DiversityFilter:
    """Counts how often each scaffold was sampled (identical Murcko scaffolds, Blaschke et al. 2020).

    Repeats of a molecule count too, so that sampling the same again and again stops to pay. Molecules without
    a ring have no scaffold; each stands for itself.

    Args:
        bucket_size: How often a scaffold is rewarded; 0 for always.
    """

    def __init__(self, bucket_size: int) -> None:
        self.bucket_size = bucket_size
        self.counts: Counter[str] = Counter()

    def filtered(self, scaffolds: Sequence[str], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """The rewards, 0 for scaffolds whose buckets are full; then counts these scaffolds."""
        kept = np.array(rewards, dtype=np.float64)
        for i, scaffold in enumerate(scaffolds):
            if self.is_full(scaffold):
                kept[i] = 0.0
            self.counts[scaffold] += 1
        return kept

    def is_full(self, scaffold: str) -> bool:
        """Whether a further molecule of the scaffold is worth nothing."""
        return self.bucket_size > 0 and self.counts[scaffold] >= self.bucket_size

    def full(self, scaffolds: Iterable[str]) -> set[str]:
        """Those of the scaffolds that are full."""
        return {scaffold for scaffold in scaffolds if self.is_full(scaffold)}
