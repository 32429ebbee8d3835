"""What a design remembers: the best molecules so far, replayed as other SMILES of the same molecules."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase


class Remembered(NamedTuple):
    """A molecule with what learning needs of it."""

    smiles: str
    """Canonical."""
    text: str
    """As it was sampled, which the language model can read."""
    scaffold: str
    """Its bucket in the diversity filter."""
    reward: float
    """After the filter."""


class Memory:
    """The best molecules, each once (Augmented Memory: Guo & Schwaller 2024, JACS Au 4, 2160).

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.best: list[Remembered] = []

    def add(self, molecules: Iterable[Remembered]) -> None:
        """Remember what is among the best; of one molecule the latest reward counts, and 0 is not kept."""
        by_smiles = {one.smiles: one for one in (*self.best, *molecules)}
        kept = [one for one in by_smiles.values() if one.reward > 0]
        self.best = sorted(kept, key=lambda one: (-one.reward, one.smiles))[: self.size]

    def purge(self, scaffolds: Collection[str]) -> None:
        """Forget molecules of these scaffolds.

        The selective memory purge is of the scaffolds that the filter has closed in the step's batch, after
        its own update and before the memory is replayed. (Saturn's code takes every scaffold with a reward
        of 0 in the batch; an oracle that fails on one molecule would cost all that are like it.)
        """
        self.best = [one for one in self.best if one.scaffold not in scaffolds]

    def drawn(self, n: int, rng: np.random.Generator) -> list[Remembered]:
        """Some of them, none twice."""
        places = rng.permutation(len(self.best))[:n]
        return [self.best[i] for i in places]


def rewritings(smiles: str, n: int, rng: np.random.Generator) -> list[str]:
    """A molecule written in ``n`` other ways, each from a random atom on, in a random order."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or n == 0:
        return [smiles] * n
    return list(Chem.MolToRandomSmilesVect(mol, n, randomSeed=int(rng.integers(1, 2**31 - 1))))
