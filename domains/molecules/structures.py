"""Structures from SMILES through RDKit: the molecule or the reason why there is none, names and scaffolds.

RDKit's own log never reaches the screen: a structure that can't be read comes back with RDKit's sentence.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence

from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from mambakit.core.errors import DataError

_STAMP = re.compile(r"^\[\d\d:\d\d:\d\d\] *")
_POSITION = re.compile(r"mistakes around position (\d+)")
_BOND_ARROW = re.compile(r"->|<-")  # dative bonds: N->[Cu]


def structure(smiles: str) -> tuple[Chem.Mol | None, str]:
    """The molecule, or None and the reason in one sentence.

    Blanks around it are taken off. Salts and mixtures are one molecule of several components; a reaction
    ``reactants>agents>products`` is the mixture of all its parts.

    Args:
        smiles: SMILES or a reaction SMILES.

    Returns:
        The sanitised molecule and ``""``, or None and what RDKit says: it can't be parsed, a valence is too
        high, or aromatic rings can't be kekulised.
    """
    text = smiles.strip()
    if not text:
        return None, "there is no structure"
    if len(text.split()) > 1:
        return None, "a blank stands inside the SMILES"
    if not text.isascii():  # RDKit takes no notice of the last byte of a character at the end
        place, letter = next((i, one) for i, one in enumerate(text, 1) if not one.isascii())
        return None, f"character {place}, {letter!r}, belongs to no SMILES"
    whole = is_reaction(text)
    mixture = ".".join(side for side in sides(text) if side) if whole else text
    with captured() as log:
        mol = Chem.MolFromSmiles(mixture)
    if mol is None:
        return None, reason_of(log, position=not whole)
    if mol.GetNumAtoms() == 0:
        return None, "it has no atoms"
    return mol, ""


@functools.lru_cache(maxsize=1 << 16)  # reading, splitting, training and predicting ask for the same ones
def canonical(smiles: str) -> str:
    """RDKit's canonical SMILES, stereochemistry kept; of a reaction, that of each side.

    Raises:
        DataError: If it can't be read.
    """
    text = smiles.strip()
    if is_reaction(text) and any(sides(text)):
        return ">".join(canonical(side) if side else "" for side in sides(text))
    mol, reason = structure(text)
    if mol is None:
        raise DataError(f"{shown(smiles)}: {reason}")
    return str(Chem.MolToSmiles(mol))


def scaffold(mol: Chem.Mol) -> str:
    """The Bemis-Murcko scaffold as SMILES without stereochemistry; ``""`` of acyclic molecules.

    Rings and what links them, with atoms double-bonded to these (Bemis & Murcko 1996, doi:10.1021/jm9602928,
    as RDKit has it), so that they are the scaffolds of DeepChem's splitter.
    """
    with rdBase.BlockLogs():
        return str(MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False))


def readable(smiles: Sequence[str]) -> list[Chem.Mol]:
    """The molecules of SMILES that are known to be readable.

    Raises:
        DataError: If one is not, naming its place from 0.
    """
    mols = []
    for place, one in enumerate(smiles):
        mol, reason = structure(one)
        if mol is None:
            raise DataError(f"smiles[{place}], {shown(one)}: {reason}")
        mols.append(mol)
    return mols


def largest_component(mol: Chem.Mol) -> Chem.Mol:
    """The component with most heavy atoms; of equal ones the heavier, then the first."""
    parts = Chem.GetMolFrags(mol, asMols=True)
    return max(parts, key=lambda part: (part.GetNumHeavyAtoms(), _mass(part)))


def kept_component(smiles: str) -> str:
    """The largest component of a salt or mixture as SMILES; anything else, reactions too, as it is given."""
    if "." not in smiles or is_reaction(smiles):
        return smiles
    mol, _ = structure(smiles)
    if mol is None or len(Chem.GetMolFrags(mol)) < 2:
        return smiles
    return str(Chem.MolToSmiles(largest_component(mol)))


def is_reaction(smiles: str) -> bool:
    """Whether it has the two arrows of a reaction SMILES; those of dative bonds don't count."""
    return _BOND_ARROW.sub("", smiles).count(">") == 2


def sides(reaction: str) -> list[str]:
    """Reactants, agents and products of a reaction SMILES, ``""`` where there are none."""
    marked = reaction.replace("->", "\0").replace("<-", "\1")
    return [side.replace("\0", "->").replace("\1", "<-") for side in marked.split(">")]


@contextlib.contextmanager
def captured() -> Iterator[rdBase.CaptureErrorLog]:
    """What RDKit logs inside goes nowhere; of errors, ``messages`` holds the text."""
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        yield log


def reason_of(log: rdBase.CaptureErrorLog, *, position: bool = True) -> str:
    """RDKit's first message as one sentence, without its time stamp and the echo of the input.

    Args:
        log: What was captured.
        position: Whether to add where in the SMILES it is, from 1, if RDKit says so.
    """
    first = next((line for line in log.messages.splitlines() if line.strip()), "")
    said = _STAMP.sub("", first).strip()
    said = said.partition(" for input:")[0].partition(" while parsing:")[0]
    place = _POSITION.search(log.messages) if position else None
    where = f" (around position {place.group(1)})" if place else ""
    return (" ".join(said.split()).rstrip(".") or "RDKit can't read it and doesn't say why") + where


def shown(smiles: str, width: int = 60) -> str:
    """A SMILES for a sentence: quoted, and not too long."""
    return repr(smiles if len(smiles) <= width else smiles[: width - 3] + "...")


def _mass(mol: Chem.Mol) -> float:
    return float(sum(atom.GetMass() for atom in mol.GetAtoms()))
