"""How much of a test set is known from training: structures, scaffolds, close neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mambakit.domains.molecules.features import nearest_similarity
from mambakit.domains.molecules.molecules import Molecules, Split
from mambakit.domains.molecules.splits import scaffolds_of
from mambakit.domains.molecules.structures import canonical, readable


@dataclass(frozen=True)
class Leaks:
    """What test shares with training.

    Attributes:
        split: The protocol's name.
        train, test: Numbers of molecules.
        structures: Test molecules whose canonical SMILES stands in training too.
        conflicting: Of these, those with a label that differs from one in training.
        scaffolds, known_scaffolds: Different Bemis-Murcko scaffolds of test molecules that have rings, and
            how many of them stand in training.
        ringed, on_known_scaffolds: Test molecules that have rings, and those of them whose scaffold stands in
            training.
        similarity: Median over test of the Tanimoto similarity of ECFP4 to the nearest training molecule.
    """

    split: str
    train: int
    test: int
    structures: int
    conflicting: int
    scaffolds: int
    known_scaffolds: int
    ringed: int
    on_known_scaffolds: int
    similarity: float

    def sentence(self) -> str:
        """For a report: counts first, so that shares of few molecules can't mislead."""
        rings = (
            f"{self.on_known_scaffolds} of {self.ringed} with rings "
            f"({_share(self.on_known_scaffolds, self.ringed)}) have a scaffold of training "
            f"({self.known_scaffolds} of {self.scaffolds} scaffolds)"
        )
        return (
            f"{self.split}: of {self.test} test molecules {self.structures} "
            f"({_share(self.structures, self.test)}) stand in training too"
            f"{f', {self.conflicting} with another label' if self.conflicting else ''}; {rings}; "
            f"median similarity to the nearest of {self.train} training molecules {self.similarity:.2f}"
        )


def leaks(molecules: Molecules, split: Split) -> Leaks:
    """What the test part of a split shares with its training part.

    Structures are compared by RDKit's canonical SMILES, scaffolds without stereochemistry. Of reactions and
    several components the whole row is compared, similarity is that of all as one mixture, and scaffolds are
    those that the splits go by.
    """
    train_smiles, test_smiles = (molecules.smiles[part].tolist() for part in (split.train, split.test))
    train_mols, test_mols = readable(train_smiles), readable(test_smiles)
    known: dict[str, list[int]] = {}
    for place, one in zip(split.train.tolist(), train_smiles, strict=True):
        known.setdefault(canonical(one), []).append(place)
    same = [(place, known.get(canonical(one))) for place, one in zip(split.test, test_smiles, strict=True)]
    conflicting = sum(
        twins is not None and _differs(molecules.labels[place], molecules.labels[twins])
        for place, twins in same
    )
    train_scaffolds = set(scaffolds_of(train_smiles)) - {""}
    test_scaffolds = scaffolds_of(test_smiles).tolist()
    different = set(test_scaffolds) - {""}
    nearest = (
        nearest_similarity(test_mols, train_mols)
        if len(test_mols) and len(train_mols)
        else np.array([np.nan])
    )
    return Leaks(
        split=split.name,
        train=len(split.train),
        test=len(split.test),
        structures=sum(twins is not None for _, twins in same),
        conflicting=conflicting,
        scaffolds=len(different),
        known_scaffolds=len(different & train_scaffolds),
        ringed=sum(one != "" for one in test_scaffolds),
        on_known_scaffolds=sum(one in train_scaffolds for one in test_scaffolds),
        similarity=float(np.median(nearest)),
    )


def _differs(labels: np.ndarray, others: np.ndarray) -> bool:
    """Whether a known label, ``(n_tasks,)``, is another than a known one of these, ``(n, n_tasks)``."""
    both = ~np.isnan(labels) & ~np.isnan(others)
    return bool((both & ~np.isclose(labels, others, rtol=1e-6)).any())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"
