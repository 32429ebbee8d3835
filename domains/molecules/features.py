"""Fixed features of molecules: extended-connectivity fingerprints and RDKit's 2D descriptors.

ECFP4 (Rogers & Hahn 2010, doi:10.1021/ci100050t) are Morgan fingerprints of radius 2; counts are folded into
a fixed number of places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import Descriptors, rdFingerprintGenerator

from mambakit.domains.molecules.neighbours import TrainingSet
from mambakit.domains.molecules.processes import in_chunks

# The largest descriptor that counts as finite: Ipc grows beyond float32 with the size of a molecule.
_LARGEST = 1e6
# Descriptors of the whole graph take seconds to hours where a molecule has more atoms than this.
_MOST_ATOMS = {
    "Ipc": 200,
    "AvgIpc": 200,
    **dict.fromkeys(
        (name for name, _ in Descriptors.descList if name.startswith("BCUT2D") or "EState" in name), 600
    ),
    "BalabanJ": 600,
    "BertzCT": 600,
}
_CHUNK = 100  # molecules sent to another process at once
# Rows of descriptors that are kept, 1.7 KB each, by SMILES with the atoms in their order.
_MOST_KNOWN = 20_000
_known: dict[str, NDArray[np.float64]] = {}


def descriptor_names() -> list[str]:
    """RDKit's 2D descriptors in the order of the columns of ``descriptors``."""
    return [name for name, _ in Descriptors.descList]


def descriptors(mols: Sequence[Chem.Mol], *, n_jobs: int = 1) -> NDArray[np.float64]:
    """All of RDKit's 2D descriptors, ``(n, n_descriptors)``, every number finite.

    What RDKit can't tell (partial charges of metals) is 0, and so are a few descriptors of macromolecules
    that it would take minutes for (above 200 atoms ``AvgIpc``, above 600 all of EState, BCUT2D,
    ``BalabanJ`` and ``BertzCT``). Values beyond 1e6 in size are cut there: only ``Ipc`` has them, which grows
    exponentially with the number of atoms. A molecule takes milliseconds: for thousands of them ``n_jobs``
    processes pay (-1: one a core).
    """
    # training, prediction and the forest beside them ask for the same molecules, atoms in the same order
    names = [Chem.MolToSmiles(mol, canonical=False) for mol in mols]
    new = {name: mol for name, mol in zip(names, mols, strict=True) if name not in _known}
    made = dict(zip(new, _clipped(_rows_of(list(new.values()), n_jobs)), strict=True))
    values = np.empty((len(mols), len(Descriptors.descList)))
    for row, name in enumerate(names):
        values[row] = made[name] if name in made else _known[name]
    if len(_known) + len(made) > _MOST_KNOWN:
        _known.clear()
    _known.update(list(made.items())[:_MOST_KNOWN])
    return values


def _rows_of(mols: list[Chem.Mol], n_jobs: int) -> NDArray[np.float64]:
    return np.concatenate(in_chunks(_descriptor_rows, mols, size=_CHUNK, n_jobs=n_jobs))


def _clipped(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(np.nan_to_num(values, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST), -_LARGEST, _LARGEST)


def ecfp_counts(mols: Sequence[Chem.Mol], *, size: int = 2048, radius: int = 2) -> NDArray[np.float32]:
    """Counts of circular substructures, folded, ``(n, size)``; radius 2 is ECFP4."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=size)
    counts = np.empty((len(mols), size), dtype=np.float32)
    with rdBase.BlockLogs():
        for row, mol in enumerate(mols):
            counts[row] = generator.GetCountFingerprintAsNumPy(mol)
    return counts


def nearest_similarity(mols: Sequence[Chem.Mol], training: Sequence[Chem.Mol]) -> NDArray[np.float64]:
    """Of each molecule the largest Tanimoto similarity of ECFP4 bits to one of training, ``(n,)`` in [0, 1].

    Raises:
        ValueError: If training is empty.
    """
    if not len(training):
        raise ValueError("training: expected at least one molecule, got none")
    return TrainingSet.of(ecfp_counts(training)).similarity(ecfp_counts(mols))


def bits(mols: Sequence[Chem.Mol], *, size: int = 2048, radius: int = 2) -> list[DataStructs.ExplicitBitVect]:
    """Which circular substructures are there, folded into ``size`` bits: for similarities."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=size)
    with rdBase.BlockLogs():
        return [generator.GetFingerprint(mol) for mol in mols]


def _descriptor_rows(mols: Sequence[Chem.Mol]) -> NDArray[np.float64]:
    values = np.empty((len(mols), len(Descriptors.descList)))
    with rdBase.BlockLogs():
        for row, mol in enumerate(mols):
            values[row] = [_value(name, of, mol) for name, of in Descriptors.descList]
    return values


def _value(name: str, of: object, mol: Chem.Mol) -> float:
    if mol.GetNumAtoms() > _MOST_ATOMS.get(name, np.inf):
        return np.inf if name == "Ipc" else np.nan
    try:
        return float(of(mol))  # type: ignore[operator]
    except (
        ValueError,
        RuntimeError,
        ZeroDivisionError,
        OverflowError,
    ):  # what RDKit raises for odd molecules
        return np.nan
