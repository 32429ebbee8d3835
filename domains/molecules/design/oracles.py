"""Oracles that need RDKit alone: what a molecule is worth, as a number of its own scale.

An oracle is a function of a molecule. Some need options (a target, a pattern), which their makers take as an
objective file gives them. Where a value comes from is said beside each; those of the PMO benchmark are in
``oracles_pmo.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, RDConfig
from rdkit.Chem import QED, Descriptors, GraphDescriptors, Mol, rdMolDescriptors

from mambakit.core.cli import did_you_mean
from mambakit.core.errors import UsageError
from mambakit.domains.molecules.design.fingerprints import FINGERPRINTS, tanimoto

Oracle = Callable[[Mol], float]


@functools.cache
def _sa_scorer() -> Any:
    """The scorer in rdkit's Contrib folder, which is in its wheel and is no package."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("rdkit_contrib_sascorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def qed(mol: Mol) -> float:
    """Quantitative estimate of drug-likeness, 0 to 1 (Bickerton et al. 2012)."""
    return float(QED.qed(mol))


def logp(mol: Mol) -> float:
    """Octanol-water partition coefficient by Wildman and Crippen's atom contributions (1999)."""
    return float(rdMolDescriptors.CalcCrippenDescriptors(mol)[0])


def tpsa(mol: Mol) -> float:
    """Topological polar surface area, in square angstroms, of N and O (Ertl et al. 2000)."""
    return float(rdMolDescriptors.CalcTPSA(mol))


def mw(mol: Mol) -> float:
    """Average molecular weight, in g/mol, hydrogens included."""
    return float(Descriptors.MolWt(mol))  # type: ignore[attr-defined]  # not in rdkit's stubs


def hba(mol: Mol) -> float:
    """Hydrogen-bond acceptors, by RDKit's pattern."""
    return float(rdMolDescriptors.CalcNumHBA(mol))


def hbd(mol: Mol) -> float:
    """Hydrogen-bond donors, by RDKit's pattern."""
    return float(rdMolDescriptors.CalcNumHBD(mol))


def rings(mol: Mol) -> float:
    """Rings in the smallest set of smallest rings."""
    return float(rdMolDescriptors.CalcNumRings(mol))


def aromatic_rings(mol: Mol) -> float:
    """Rings of aromatic bonds alone."""
    return float(rdMolDescriptors.CalcNumAromaticRings(mol))


def rotatable_bonds(mol: Mol) -> float:
    """Rotatable bonds, amides left out (RDKit's strict definition)."""
    return float(rdMolDescriptors.CalcNumRotatableBonds(mol))


def heavy_atoms(mol: Mol) -> float:
    """Atoms that are no hydrogens."""
    return float(mol.GetNumHeavyAtoms())


def bertz(mol: Mol) -> float:
    """Bertz's complexity index (1981)."""
    return float(GraphDescriptors.BertzCT(mol))


def sa(mol: Mol) -> float:
    """Synthetic accessibility, 1 (easy) to 10 (hard) (Ertl & Schuffenhauer 2009), by the scorer in rdkit."""
    return float(_sa_scorer().calculateScore(mol))


# Whether values lie between 0 and 1, so that a component may go without a transform.
PLAIN: dict[str, tuple[Oracle, bool]] = {
    "qed": (qed, True),
    "logp": (logp, False),
    "tpsa": (tpsa, False),
    "mw": (mw, False),
    "hba": (hba, False),
    "hbd": (hbd, False),
    "rings": (rings, False),
    "aromatic_rings": (aromatic_rings, False),
    "rotatable_bonds": (rotatable_bonds, False),
    "heavy_atoms": (heavy_atoms, False),
    "bertz": (bertz, False),
    "sa": (sa, False),
}


def similarity(target: str, fingerprint: str = "ecfp4") -> Oracle:
    """Tanimoto similarity to a molecule.

    Args:
        target: Its SMILES.
        fingerprint: ecfp4, ecfp6, fcfp4, ap or phco.

    Raises:
        UsageError: If the target can't be read, or there is no such fingerprint.
    """
    if not isinstance(fingerprint, str) or fingerprint not in FINGERPRINTS:
        raise UsageError(
            f"fingerprint: expected one of {', '.join(FINGERPRINTS)}, got {fingerprint!r}"
            f"{did_you_mean(str(fingerprint), FINGERPRINTS)}"
        )
    of = FINGERPRINTS[fingerprint]
    wanted = of(read_target(target, "target"))
    return lambda mol: tanimoto(of(mol), wanted)


def rediscovery(target: str) -> Oracle:
    """ECFP4 similarity to a molecule: 1 once it is found again (GuacaMol)."""
    return similarity(target, "ecfp4")


def median(targets: Sequence[str], fingerprint: str = "ecfp4") -> Oracle:
    """Geometric mean of the similarities to several molecules (GuacaMol's median molecules).

    Raises:
        UsageError: As ``similarity``; also for fewer than two targets.
    """
    if isinstance(targets, str) or not isinstance(targets, Sequence) or len(targets) < 2:
        raise UsageError(f"targets: expected a list of at least two SMILES, got {targets!r}")
    for i, target in enumerate(targets):
        read_target(target, f"targets[{i}]")
    parts = [similarity(target, fingerprint) for target in targets]
    return lambda mol: geometric_mean([part(mol) for part in parts])


def smarts(pattern: str, absent: bool = False) -> Oracle:
    """1 where a pattern is in the molecule, else 0; the other way round with ``absent``.

    Raises:
        UsageError: If the pattern is no SMARTS.
    """
    query = Chem.MolFromSmarts(pattern) if isinstance(pattern, str) and pattern else None
    if query is None:
        raise UsageError(f"pattern: expected a SMARTS, got {pattern!r}")
    if not isinstance(absent, bool):
        raise UsageError(f"absent: expected true or false, got {absent!r}")
    return lambda mol: float(mol.HasSubstructMatch(query) != absent)


def isomer(formula: str) -> Oracle:
    """How near a molecule is to a molecular formula, 0 to 1 (GuacaMol's isomers, as TDC scores them).

    The geometric mean of exp(-(n - n_target)^2 / 2) for each element, and exp(-(N - N_target)^2 / 8) for all
    atoms together, hydrogens included.

    Raises:
        UsageError: If the formula can't be read.
    """
    if not isinstance(formula, str) or not re.fullmatch(r"(?:[A-Z][a-z]?\d*)+", formula):
        raise UsageError(f"formula: expected one such as C7H8N2O2, got {formula!r}")
    wanted: dict[str, int] = {}
    for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        wanted[symbol] = wanted.get(symbol, 0) + int(count or 1)
    table = Chem.GetPeriodicTable()
    for symbol in wanted:
        try:
            table.GetAtomicNumber(symbol)
        except RuntimeError:
            raise UsageError(f"formula: {symbol} in {formula!r} is no element") from None
    total = sum(wanted.values())

    def score(mol: Mol) -> float:
        counts: dict[str, int] = {}
        for atom in mol.GetAtoms():
            counts[atom.GetSymbol()] = counts.get(atom.GetSymbol(), 0) + 1
            counts["H"] = counts.get("H", 0) + atom.GetTotalNumHs()
        exponents = [(counts.get(symbol, 0) - n) ** 2 / 2 for symbol, n in wanted.items()]
        exponents.append((sum(counts.values()) - total) ** 2 / 8)
        return float(np.exp(-np.mean(exponents)))

    return score


# Makers, and whether what they make lies between 0 and 1.
WITH_OPTIONS: dict[str, tuple[Callable[..., Oracle], bool]] = {
    "similarity": (similarity, True),
    "rediscovery": (rediscovery, True),
    "median": (median, True),
    "smarts": (smarts, True),
    "isomer": (isomer, True),
}


def read_target(smiles: Any, at: str) -> Mol:
    """The molecule of an option.

    Raises:
        UsageError: If RDKit can't read it.
    """
    mol = Chem.MolFromSmiles(smiles) if isinstance(smiles, str) and smiles else None
    if mol is None:
        raise UsageError(f"{at}: RDKit can't read the SMILES {smiles!r}")
    return mol


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product; 0 where one is 0."""
    return float(np.prod(values) ** (1 / len(values)))
