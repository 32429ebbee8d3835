"""Fingerprints and Tanimoto similarity as GuacaMol and TDC define their tasks.

GuacaMol (Brown et al. 2019, J. Chem. Inf. Model. 59, 1096, supporting information) and TDC (Huang et al.
2021, arXiv:2102.09548) compare counts, not bits: ECFP4 and ECFP6 are Morgan fingerprints of radius 2 and 3,
FCFP4 those of radius 2 over pharmacophoric atom types, AP atom pairs up to 10 bonds apart, and PHCO the
two-dimensional pharmacophore pairs and triples of Gobbi and Poppinger (1998), as bits. None knows
stereochemistry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rdkit import DataStructs
from rdkit.Chem import Mol, rdFingerprintGenerator

Fingerprint = Callable[[Mol], Any]


@functools.cache
def _morgan(radius: int, *, features: bool = False) -> Any:
    atoms = rdFingerprintGenerator.GetMorganFeatureAtomInvGen() if features else None
    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, atomInvariantsGenerator=atoms)


@functools.cache
def _atom_pairs() -> Any:
    return rdFingerprintGenerator.GetAtomPairGenerator(maxDistance=10)


def _ecfp4(mol: Mol) -> Any:
    return _morgan(2).GetSparseCountFingerprint(mol)


def _ecfp6(mol: Mol) -> Any:
    return _morgan(3).GetSparseCountFingerprint(mol)


def _fcfp4(mol: Mol) -> Any:
    return _morgan(2, features=True).GetSparseCountFingerprint(mol)


def _ap(mol: Mol) -> Any:
    return _atom_pairs().GetSparseCountFingerprint(mol)


def _phco(mol: Mol) -> Any:
    from rdkit.Chem.Pharm2D import Generate, Gobbi_Pharm2D

    return Generate.Gen2DFingerprint(mol, Gobbi_Pharm2D.factory)


FINGERPRINTS: dict[str, Fingerprint] = {
    "ecfp4": _ecfp4,
    "ecfp6": _ecfp6,
    "fcfp4": _fcfp4,
    "ap": _ap,
    "phco": _phco,
}


def tanimoto(one: Any, other: Any) -> float:
    """Of two fingerprints of a kind: shared counts over all counts, 0 to 1; 0 where both are empty."""
    return float(DataStructs.TanimotoSimilarity(one, other))
