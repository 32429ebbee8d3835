"""Scaffolds with attachment points, and what may be written where their substituents go.

A scaffold is written so that as little of it as can be stands behind its first attachment point. Its tokens
are forced; at an attachment point the model writes what it likes, from an atom on, until it closes the branch
(at the end of the SMILES: until END), as long as every ring and branch that it opens there is closed there
and none of the scaffold's is touched. So a valid SMILES made this way holds the scaffold, with a substituent
at each attachment point and nowhere else. It has no ring between two substituents, and of several the first
is chosen before what follows it is read.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from rdkit import Chem

from mambakit.core.errors import UsageError
from mambakit.core.generation import Automaton
from mambakit.domains.molecules.structures import structure
from mambakit.domains.molecules.tokenizer import END, SmilesTokenizer

HOLE = -1
_BONDS = frozenset("-=#$:/\\~")
_SINGLE = frozenset("-/\\")  # what may join a substituent to a point that is written without a bond
_NEVER = frozenset({"*", ".", ">", ">>", "->", "<-"})
_RING = re.compile(r"\d|%\d\d|%\(\d+\)")
_WRITINGS, _KEPT = 400, 16
_NEEDS_BOND_OR_ATOM, _NEEDS_ATOM, _FREE = range(3)


class Decoration(NamedTuple):
    """A scaffold as it is written.

    Attributes:
        template: Its ids, ``HOLE`` for an attachment point; behind each but the last stands a closing branch.
        prompt: The first id and those before the first hole.
    """

    template: tuple[int, ...]
    prompt: tuple[int, ...]


class _Place(NamedTuple):
    """How far a molecule has come."""

    writing: int
    position: int
    depth: int = 0
    rings: frozenset[int] = frozenset()
    phase: int = _NEEDS_BOND_OR_ATOM


def decorations(scaffold: str, tokenizer: SmilesTokenizer) -> list[Decoration]:
    """Ways to write a scaffold, those with the least behind their first attachment point.

    Args:
        scaffold: SMILES; ``*``, ``[*]`` or ``[*:1]`` is an attachment point.
        tokenizer: The model's.

    Raises:
        UsageError: If it can't be read, has no attachment point, or one that is not at the end of one bond.
        SampleError: If it holds a token that the model doesn't know.
    """
    mol = _scaffold(scaffold)
    written: dict[str, list[str]] = {}
    for smiles in Chem.MolToRandomSmilesVect(mol, _WRITINGS, randomSeed=1):
        pieces = tokenizer.pieces(smiles)
        if pieces[0] != "*":
            written.setdefault(smiles, pieces)
    behind = {smiles: len(pieces) - pieces.index("*") for smiles, pieces in written.items()}
    least = min(behind.values())
    best = sorted(smiles for smiles in written if behind[smiles] == least)[:_KEPT]
    made = []
    for smiles in best:
        template = [HOLE if piece == "*" else tokenizer.ids(piece)[0] for piece in written[smiles]]
        made.append(Decoration(tuple(template), (tokenizer.any_start(), *template[: template.index(HOLE)])))
    return made


def query_of(scaffold: str) -> Chem.Mol:
    """What a decorated molecule is searched for: attachment points are any atom, others have no more bonds.

    Raises:
        UsageError: As ``decorations``.
    """
    options: Any = Chem.AdjustQueryParameters.NoAdjustments()
    options.makeDummiesQueries = True
    options.adjustDegree = True
    options.adjustDegreeFlags = Chem.AdjustQueryWhichFlags.ADJUST_IGNOREDUMMIES
    return Chem.AdjustQueryProperties(_scaffold(scaffold), options)


class ScaffoldGrammar:
    """What may come next in molecules that begin with some writings of a scaffold.

    Args:
        writings: The scaffold, written in some ways; every prompt is one's.
        tokenizer: The model's.
    """

    def __init__(self, writings: Sequence[Decoration], tokenizer: SmilesTokenizer) -> None:
        assert tokenizer.symbols is not None
        self.writings = list(writings)
        self.names = dict(enumerate(map(str, tokenizer.symbols), tokenizer.n_ids - len(tokenizer.symbols)))
        self.by_prompt = {one.prompt: i for i, one in enumerate(self.writings)}
        names = self.names
        self.atoms = [
            i for i, name in names.items() if (name[0].isalpha() or name[0] == "[") and name not in _NEVER
        ]
        self.bonds = [i for i, name in names.items() if name in _BONDS]
        self.single = [i for i, name in names.items() if name in _SINGLE]
        self.rings = {i: _label(name) for i, name in names.items() if _RING.fullmatch(name)}
        (self.opening,), (self.closing,) = tokenizer.ids("("), tokenizer.ids(")")

    def constraint(self) -> Automaton:
        """The same as the decoding loop takes it."""
        n_ids = max(self.names) + 1
        return Automaton(self._begin, self._follow, self._allowed, n_ids)

    def _begin(self, prompt: list[int]) -> _Place | None:
        writing = self.by_prompt[tuple(prompt)]
        return self._at(writing, len(prompt) - 1)

    def _at(self, writing: int, position: int) -> _Place:
        before = self.writings[writing].template[position - 1] if position else HOLE
        return _Place(writing, position, phase=_NEEDS_ATOM if before in self.bonds else _NEEDS_BOND_OR_ATOM)

    def _follow(self, place: Hashable, one: int) -> _Place | None:
        if not isinstance(place, _Place) or one == END:
            return None
        template = self.writings[place.writing].template
        if template[place.position] != HOLE:
            return self._at(place.writing, place.position + 1)
        if one in self.rings:
            return place._replace(rings=place.rings ^ {self.rings[one]})
        if one in self.bonds:
            return place._replace(phase=max(place.phase, _NEEDS_ATOM))
        if one == self.opening:
            return place._replace(depth=place.depth + 1)
        if one == self.closing:
            if place.depth == 0:
                return self._at(place.writing, place.position + 2)
            return place._replace(depth=place.depth - 1)
        return place._replace(phase=_FREE)

    def _allowed(self, place: Hashable) -> Iterable[int]:
        if not isinstance(place, _Place):
            return ()
        template = self.writings[place.writing].template
        if place.position == len(template):
            return (END,)
        if template[place.position] != HOLE:
            return (template[place.position],)
        if place.phase == _NEEDS_ATOM:
            return self.atoms
        if place.phase == _NEEDS_BOND_OR_ATOM:
            return [*self.atoms, *self.single]
        taken = self._open_rings(template[: place.position])
        found = [*self.atoms, *self.bonds, self.opening]
        found += [i for i, label in self.rings.items() if label not in taken]
        whole = place.depth == 0 and not place.rings
        if whole and place.position + 1 == len(template):
            found.append(END)
        if place.depth > 0 or (whole and place.position + 1 < len(template)):
            found.append(self.closing)
        return found

    def _open_rings(self, ids: Iterable[int]) -> frozenset[int]:
        rings: frozenset[int] = frozenset()
        for one in ids:
            if one in self.rings:
                rings ^= {self.rings[one]}
        return rings


def _scaffold(scaffold: str) -> Chem.Mol:
    mol, reason = structure(scaffold)
    if mol is None:
        raise UsageError(f"scaffold: {scaffold!r} can't be read: {reason}")
    points = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0]
    if not points or len(points) == mol.GetNumAtoms():
        raise UsageError(
            f"scaffold: {scaffold!r} needs atoms and, where substituents go, *, as in c1ccc(*)cc1"
        )
    for atom in points:
        if atom.GetDegree() != 1:
            raise UsageError(
                f"scaffold: an attachment point of {scaffold!r} has {atom.GetDegree()} bonds; * stands at "
                "the end of one bond"
            )
        atom.SetIsotope(0)
        atom.SetAtomMapNum(0)
        atom.SetFormalCharge(0)
        atom.SetNoImplicit(False)
    return mol


def _label(name: str) -> int:
    return int(name.strip("%()"))
