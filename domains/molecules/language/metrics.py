"""How like its data a set of generated molecules is: the measures of MOSES and GuacaMol that need RDKit only.

MOSES: Polykovskiy et al. 2020, arXiv:1811.12823. GuacaMol: Brown et al. 2019, arXiv:1811.09621. The Fréchet
ChemNet distance is not among them: it needs the weights of ChemNet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, DataStructs
from rdkit.Chem import Descriptors, rdMolDescriptors
from scipy.stats import entropy, gaussian_kde

from mambakit.domains.molecules.features import bits
from mambakit.domains.molecules.structures import scaffold, structure

Floats = NDArray[np.float64]

# Those of GuacaMol's KL benchmark, the first four continuous, the others counted (section 4.1.4).
DESCRIPTORS = (
    *("BertzCT", "MolLogP", "MolWt", "TPSA", "NumHAcceptors", "NumHDonors"),
    *("NumRotatableBonds", "NumAliphaticRings", "NumAromaticRings"),
)
_N_CONTINUOUS = 4
INTERNAL_SIMILARITY = "internal similarity"
_LEAST_RINGS = 2
_TINY = 1e-10


class MoleculeSet:
    """Some SMILES and what is measured of them; each is computed when it is first asked for.

    Args:
        smiles: As drawn or read, invalid and repeated ones among them.

    Attributes:
        n: How many there are.
        canonical: Of the valid ones, in order.
        unique: The molecules that are valid, each once.
        times: How often each of these was drawn, ``(n_unique,)``. MOSES averages over all valid samples,
            repeats included (its section "Metrics": all but validity are of the valid molecules).
    """

    def __init__(self, smiles: Sequence[str]) -> None:
        self.n = len(smiles)
        self.canonical: list[str] = []
        first: dict[str, Chem.Mol] = {}
        for one in smiles:
            mol, _ = structure(one)
            if mol is not None:
                name = Chem.MolToSmiles(mol)
                self.canonical.append(name)
                first.setdefault(name, mol)
        self.names, self.unique = list(first), list(first.values())
        counted = Counter(self.canonical)
        self.times = np.array([counted[name] for name in self.names], dtype=np.float64)

    @property
    def validity(self) -> float:
        """Share of strings that RDKit reads."""
        return len(self.canonical) / self.n if self.n else float("nan")

    def uniqueness(self, k: int) -> float:
        """Share of different molecules among the first ``k`` valid ones."""
        some = self.canonical[:k]
        return len(set(some)) / len(some) if some else float("nan")

    @cached_property
    def fingerprints(self) -> list[DataStructs.ExplicitBitVect]:
        """ECFP4 of the unique molecules, 1024 bits."""
        return bits(self.unique, size=1024)

    @cached_property
    def scaffolds(self) -> Counter[str]:
        """How many samples of two rings or more have each Bemis-Murcko scaffold."""
        found: Counter[str] = Counter()
        for mol, times in zip(self.unique, self.times, strict=True):
            if rdMolDescriptors.CalcNumRings(mol) >= _LEAST_RINGS and (name := scaffold(mol)):
                found[name] += int(times)
        return found

    @cached_property
    def flat(self) -> list[Chem.Mol]:
        """The molecules without stereochemistry, each once."""
        found: dict[str, Chem.Mol] = {}
        for mol in self.unique:
            found.setdefault(Chem.MolToSmiles(mol, isomericSmiles=False), mol)
        return list(found.values())

    @cached_property
    def descriptors(self) -> Floats:
        """``(n_flat, 9)``, in the order of ``DESCRIPTORS``."""
        functions = [getattr(Descriptors, name) for name in DESCRIPTORS]
        values = [[function(mol) for function in functions] for mol in self.flat]
        return np.nan_to_num(np.array(values, dtype=np.float64).reshape(-1, len(DESCRIPTORS)))

    @cached_property
    def nearest(self) -> Floats:
        """Tanimoto similarity of each flat molecule to the nearest other one, ECFP4 of 4096 bits."""
        prints = bits(self.flat, size=4096)
        best = np.zeros(len(prints))
        for i in range(1, len(prints)):
            similar = np.array(DataStructs.BulkTanimotoSimilarity(prints[i], prints[:i]))
            best[i] = max(best[i], similar.max())
            np.maximum(best[:i], similar, out=best[:i])
        return best

    @cached_property
    def internal_diversity(self) -> float:
        """1 less the mean Tanimoto similarity of all pairs of samples, each with itself included.

        MOSES' IntDiv1: a sample drawn twice is a pair of similarity 1.
        """
        prints, times = self.fingerprints, self.times
        if not prints:
            return float("nan")
        total = float(times @ times)
        for i in range(1, len(prints)):
            similar = np.array(DataStructs.BulkTanimotoSimilarity(prints[i], prints[:i]))
            total += 2 * times[i] * float(similar @ times[:i])
        return float(1 - total / times.sum() ** 2)


def similarity_to_nearest(molecules: MoleculeSet, reference: MoleculeSet) -> float:
    """Mean Tanimoto similarity (ECFP4) of a sample to the nearest of the reference: MOSES' SNN."""
    if not molecules.unique or not reference.unique:
        return float("nan")
    best = [
        max(DataStructs.BulkTanimotoSimilarity(one, reference.fingerprints)) for one in molecules.fingerprints
    ]
    return float(np.average(best, weights=molecules.times))


def scaffold_similarity(molecules: MoleculeSet, reference: MoleculeSet) -> float:
    """Cosine of the counts of Bemis-Murcko scaffolds: MOSES' Scaf, of samples of two rings or more."""
    first, second = molecules.scaffolds, reference.scaffolds
    if not first or not second:
        return float("nan")
    dot = sum(n * second[name] for name, n in first.items())
    norms = [np.sqrt(sum(n * n for n in one.values())) for one in (first, second)]
    return float(dot / (norms[0] * norms[1]))


def kl_divergences(molecules: MoleculeSet, reference: MoleculeSet) -> dict[str, float]:
    """KL(reference || molecules) of each descriptor's distribution and of the similarity to the nearest.

    As GuacaMol's benchmark has it: densities by Gaussian kernels at 1000 points for continuous ones, ten bins
    of the reference for counts. NaN for fewer than two molecules.
    """
    names = [*DESCRIPTORS, INTERNAL_SIMILARITY]
    if min(len(molecules.flat), len(reference.flat)) < 2:
        return dict.fromkeys(names, float("nan"))
    found = {}
    for i, name in enumerate(DESCRIPTORS):
        measure: Callable[[Floats, Floats], float] = _kl_of_densities if i < _N_CONTINUOUS else _kl_of_bins
        found[name] = measure(reference.descriptors[:, i], molecules.descriptors[:, i])
    found[INTERNAL_SIMILARITY] = _kl_of_densities(reference.nearest, molecules.nearest)
    return found


def kl_score(divergences: dict[str, float]) -> float:
    """Mean of exp(-KL), from 0 to 1 (GuacaMol, section 4.1.4)."""
    return float(np.mean(np.exp([-one for one in divergences.values()])))


def _kl_of_densities(reference: Floats, molecules: Floats) -> float:
    if np.ptp(reference) == 0 or np.ptp(molecules) == 0:  # a kernel needs a width
        return _kl_of_bins(reference, molecules)
    both = np.concatenate([reference, molecules])
    points = np.linspace(both.min(), both.max(), 1000)
    return float(entropy(*(gaussian_kde(one)(points) + _TINY for one in (reference, molecules))))


def _kl_of_bins(reference: Floats, molecules: Floats) -> float:
    wanted, edges = np.histogram(reference, bins=10, density=True)
    inside = (molecules >= edges[0]) & (molecules <= edges[-1])
    if not inside.any():  # all in a bin of its own, where the reference has nothing
        away = np.append(np.zeros(len(wanted)), 1.0)
        return float(entropy(np.append(wanted, 0.0) + _TINY, away + _TINY))
    got, _ = np.histogram(molecules, bins=edges, density=True)
    return float(entropy(wanted + _TINY, got + _TINY))
