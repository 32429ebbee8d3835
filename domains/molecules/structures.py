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
_BETWEEN = re.compile(r"((?<!-)>|;)")
# Between the components of one row, such as a solute and its solvent; no SMILES holds it.
SEPARATOR = ";"
_SIDES = ("reactants", "agents", "products")


def structure(smiles: str, called: Sequence[str] = ()) -> tuple[Chem.Mol | None, str]:
    """The molecule, or None and the reason in one sentence.

    Blanks around it are taken off. Salts and mixtures are one molecule of several parts. A reaction
    ``reactants>agents>products`` and components joined by ``;`` are the mixture of all that they hold; each
    side and component has to be readable by itself, and the reason names the first that is not.

    Args:
        smiles: SMILES, a reaction SMILES, or several of either joined by ``;``.
        called: Names of the components in sentences, numbers by default.

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
    inside = components(text)
    several = len(inside) > 1
    if several:
        names = [*called[: len(inside)], *(f"component {i}" for i in range(len(called) + 1, len(inside) + 1))]
    elif is_reaction(text):
        names, inside = list(_SIDES), sides(text)
    else:
        return _molecule(text)
    for name, one in zip(names, inside, strict=True):
        if one or several:  # a reaction may lack a side
            _, reason = structure(one)
            if reason:
                return None, f"{name}: {reason}"
    return _molecule(".".join(one for one in leaves(text)[0] if one))


@functools.lru_cache(maxsize=1 << 16)  # reading, splitting, training and predicting ask for the same ones
def canonical(smiles: str) -> str:
    """RDKit's canonical SMILES, stereochemistry kept; of a reaction or components, that of each.

    Raises:
        DataError: If it can't be read.
    """
    text = smiles.strip()
    if len(inside := components(text)) > 1:
        return SEPARATOR.join(canonical(one) for one in inside)
    if is_reaction(text) and any(sides(text)):
        return ">".join(canonical(side) if side else "" for side in sides(text))
    mol, reason = structure(text)
    if mol is None:
        raise DataError(f"{shown(smiles)}: {reason}")
    return str(Chem.MolToSmiles(mol))


def scaffold(mol: Chem.Mol, *, stereo: bool = False) -> str:
    """The Bemis-Murcko scaffold as SMILES, without stereochemistry by default; ``""`` of acyclic molecules.

    Rings and what links them, with atoms double-bonded to these (Bemis & Murcko 1996, doi:10.1021/jm9602928,
    as RDKit has it), so that they are the scaffolds of DeepChem's splitter.
    """
    with rdBase.BlockLogs():
        return str(MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=stereo))


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
    """The largest part of a salt or mixture as SMILES, of each component; reactions and all else as given."""
    inside, between = leaves(smiles)
    if "." not in smiles or ">" in "".join(between):
        return smiles
    return joined([_kept_part(one) for one in inside], between)


def _kept_part(smiles: str) -> str:
    mol, _ = structure(smiles)
    if mol is None or len(Chem.GetMolFrags(mol)) < 2:
        return smiles
    return str(Chem.MolToSmiles(largest_component(mol)))


def is_reaction(smiles: str) -> bool:
    """Whether it has the two arrows of a reaction SMILES; those of dative bonds don't count."""
    return SEPARATOR not in smiles and _BOND_ARROW.sub("", smiles).count(">") == 2


def components(smiles: str) -> list[str]:
    """What the separator stands between: one or more, each a molecule or a reaction."""
    return [one.strip() for one in smiles.split(SEPARATOR)]


def leaves(smiles: str) -> tuple[list[str], list[str]]:
    """The molecules of components and reactions, and the separators and arrows between them, one fewer.

    ``"A>>B;C"`` is ``A``, ``""``, ``B`` and ``C`` with ``>``, ``>`` and ``;`` between them.
    """
    found = _BETWEEN.split(smiles.strip()) if SEPARATOR in smiles or is_reaction(smiles) else [smiles.strip()]
    return [one.strip() for one in found[::2]], found[1::2]


def joined(molecules: Sequence[str], between: Sequence[str]) -> str:
    """The inverse of ``leaves``."""
    return molecules[0] + "".join(a + b for a, b in zip(between, molecules[1:], strict=True))


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


def _molecule(smiles: str) -> tuple[Chem.Mol | None, str]:
    with captured() as log:
        mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return None, reason_of(log)
    if mol.GetNumAtoms() == 0:
        return None, "it has no atoms"
    return mol, ""


def _mass(mol: Chem.Mol) -> float:
    return float(sum(atom.GetMass() for atom in mol.GetAtoms()))
