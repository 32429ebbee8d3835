"""The diversity filter: a scaffold is worth something only so often.

Scaffolds are counted as Saturn counts them: with their stereochemistry (tables and reports name them without
it), and a batch after its rewards, so that a bucket takes what the batch holds that fills it. One thing
differs: Saturn has one bucket for all molecules without a ring, and here each of them stands for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit.Chem import Mol

from mambakit.domains.molecules.structures import scaffold


class DiversityFilter:
    """Counts how often each scaffold was sampled (identical Murcko scaffolds, Blaschke et al. 2020).

    Repeats of a molecule count too, so that sampling the same again and again stops to pay.

    Args:
        bucket_size: A scaffold that came more often before is worth nothing; 0 for always.
    """

    def __init__(self, bucket_size: int) -> None:
        self.bucket_size = bucket_size
        self.counts: Counter[str] = Counter()

    def filtered(self, scaffolds: Sequence[str], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """A batch's rewards, 0 for scaffolds whose buckets are full; then counts the batch."""
        closed = self.full(scaffolds)
        kept = [0.0 if one in closed else reward for one, reward in zip(scaffolds, rewards, strict=True)]
        self.counts.update(scaffolds)
        return np.array(kept, dtype=np.float64)

    def full(self, scaffolds: Iterable[str]) -> set[str]:
        """Those of the scaffolds of which further molecules are worth nothing."""
        return {one for one in scaffolds if 0 < self.bucket_size < self.counts[one]}


def bucket(smiles: str, mol: Mol) -> str:
    """What the filter counts a molecule as: its scaffold with stereochemistry, or itself without a ring."""
    return scaffold(mol, stereo=True) or smiles
