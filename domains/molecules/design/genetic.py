"""Graph-genetic proposals: molecules made of parts of good ones, without any network.

Jensen 2019, Chem. Sci. 10, 3567: two parents are cut, at a bond outside rings or at two bonds of a ring, and
a part of each is joined with a part of the other; a child may change further by an atom or a bond. All edits
are made on Kekulé structures without stereochemistry, and hydrogens follow the valences.

What no child has, as there: rings of more than seven atoms (Jensen: six), cumulated double bonds in rings,
double bonds in rings of three or four, triple bonds in rings. And here: more than ``max_atoms`` heavy atoms,
bonds O-O, bonds of halogens to N, O or halogens, and hydrogens on S, P, Se or I beyond their lowest valence.

Parents are drawn by rank: of ``n`` molecules the one at place ``rank`` from 0 has a weight of
``1 / (k n + rank)`` (k = 0.01; Kim et al. 2024, arXiv:2402.05961).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase

from mambakit.domains.molecules.design.mutations import MUTATIONS

MAX_ATOMS = 50
MAX_RING = 7
_TRIES = 10  # of a crossover or a mutation, before it is given up
_MOST_FAILURES = 50  # children in a row that are none or not new
_CACHE = 10_000  # parents made ready
_RANK_COEFFICIENT = 0.01
_UNWANTED = tuple(
    Chem.MolFromSmarts(pattern)
    for pattern in (
        "[R]=[R]=[R]",
        "[r3,r4]=[r3,r4]",
        "*#@*",
        "[#8]~[#8]",
        "[F,Cl,Br,I][#7,#8,F,Cl,Br,I]",
        "[#16,#34;!v2;!H0]",
        "[#15;!v3;!H0]",
        "[#53;!v1;!H0]",
    )
)


class Cut(NamedTuple):
    """Bonds that are cut, each between an atom that is kept and one that is not: one, or two of a ring."""

    kept: list[int]
    dropped: list[int]


class Parent(NamedTuple):
    """A molecule made ready for being cut."""

    mol: Chem.RWMol
    bonds: list[tuple[int, int]]
    """Where a chain can be cut."""
    rings: list[tuple[int, ...]]


def crossover(
    mol_a: Chem.Mol, mol_b: Chem.Mol, rng: np.random.Generator, *, max_atoms: int = MAX_ATOMS
) -> Chem.Mol | None:
    """A part of one molecule joined with a part of another; None if ten tries made nothing valid."""
    return _crossed(_parent(mol_a), _parent(mol_b), rng, max_atoms)


def mutate(mol: Chem.Mol, rng: np.random.Generator, *, max_atoms: int = MAX_ATOMS) -> Chem.Mol | None:
    """A molecule with an atom or a bond changed; None if ten tries made nothing valid."""
    return _mutated(_editable(mol), rng, max_atoms)


def offspring(
    parents: Sequence[str],
    n: int,
    rng: np.random.Generator,
    *,
    mutation_rate: float = 0.1,
    max_atoms: int = MAX_ATOMS,
) -> dict[str, Chem.Mol]:
    """Children of molecules, none of which is among these.

    Args:
        parents: Canonical SMILES, the best first, which can be read.
        n: How many children.
        rng: Draws everything.
        mutation_rate: Share of the crossed that are mutated too; of others the first parent is mutated.
        max_atoms: Heavy atoms of a child at most.

    Returns:
        Canonical SMILES without stereochemistry, and their molecules; fewer than ``n`` where the parents
        give no more.
    """
    made: dict[str, Chem.Mol] = {}
    if not parents or n < 1:
        return made
    taken = {*parents, *map(_flat, parents)}
    shares = rank_weights(len(parents)).cumsum()
    failures = 0
    while len(made) < n and failures < _MOST_FAILURES:
        failures += 1
        i, j = np.minimum(np.searchsorted(shares, rng.random(2)), len(parents) - 1)
        first = _read(parents[i])
        child = None if i == j else _crossed(first, _read(parents[j]), rng, max_atoms)
        if child is None or rng.random() < mutation_rate:
            child = _mutated(first.mol if child is None else _editable(child), rng, max_atoms)
        mol = None if child is None else Chem.MolFromSmiles(Chem.MolToSmiles(child))
        if mol is None:
            continue
        smiles = Chem.MolToSmiles(mol)  # of what is read, as the loop will name it
        if smiles not in taken and smiles not in made:
            made[smiles] = mol
            failures = 0
    return made


def rank_weights(n: int) -> NDArray[np.float64]:
    """The chance of each of ``n`` molecules, the best first, to be drawn as a parent; their sum is 1."""
    weights = 1.0 / (_RANK_COEFFICIENT * n + np.arange(n))
    return np.asarray(weights / weights.sum())


@functools.lru_cache(_CACHE)
def _read(smiles: str) -> Parent:
    with rdBase.BlockLogs():
        return _parent(Chem.MolFromSmiles(smiles))


@functools.lru_cache(_CACHE)
def _flat(smiles: str) -> str:
    with rdBase.BlockLogs():
        return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False))


def _parent(mol: Chem.Mol) -> Parent:
    made = _editable(mol)
    bonds = [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        for bond in made.GetBonds()
        if bond.GetBondType() == Chem.BondType.SINGLE
        and not bond.IsInRing()
        # N+ and O- of a nitro group don't stand alone
        and not bond.GetBeginAtom().GetFormalCharge() * bond.GetEndAtom().GetFormalCharge()
    ]
    return Parent(made, bonds, list(made.GetRingInfo().AtomRings()))


def _editable(mol: Chem.Mol) -> Chem.RWMol:
    """A Kekulé structure whose hydrogens follow from its valences."""
    made = Chem.RWMol(mol)
    Chem.Kekulize(made, clearAromaticFlags=True)
    Chem.RemoveStereochemistry(made)
    for atom in made.GetAtoms():
        atom.SetNoImplicit(False)
        atom.SetNumExplicitHs(0)
        atom.SetNumRadicalElectrons(0)
    made.UpdatePropertyCache(strict=False)
    return made


def _is_sound(child: Chem.RWMol, max_atoms: int) -> bool:
    """Whether it is one molecule without what the module's docstring rules out; sanitises it."""
    if not 0 < child.GetNumAtoms() <= max_atoms or len(Chem.GetMolFrags(child)) > 1:
        return False
    if Chem.SanitizeMol(child, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
        return False
    if any(len(ring) > MAX_RING for ring in child.GetRingInfo().AtomRings()):
        return False
    return not any(child.HasSubstructMatch(pattern) for pattern in _UNWANTED)


def _mutated(before: Chem.RWMol, rng: np.random.Generator, max_atoms: int) -> Chem.Mol | None:
    with rdBase.BlockLogs():
        for _ in range(_TRIES):
            child = Chem.RWMol(before)
            if MUTATIONS[int(rng.integers(len(MUTATIONS)))](child, rng) and _is_sound(child, max_atoms):
                return child.GetMol()
    return None


# --- crossover


def _crossed(a: Parent, b: Parent, rng: np.random.Generator, max_atoms: int) -> Chem.Mol | None:
    ways: list[Callable[[], tuple[Cut, Cut] | None]] = []
    if a.bonds and b.bonds:
        ways.append(lambda: (_chain_cut(a.bonds, rng), _chain_cut(b.bonds, rng)))
    if a.rings and b.rings:
        ways.append(lambda: _ring_cuts(a.rings, b.rings, rng))
    with rdBase.BlockLogs():
        for _ in range(_TRIES if ways else 0):
            cuts = ways[int(rng.integers(len(ways)))]()
            child = None if cuts is None else _joined(a.mol, b.mol, *cuts, rng)
            if child is not None and _is_sound(child, max_atoms):
                return child.GetMol()
    return None


def _chain_cut(bonds: Sequence[tuple[int, int]], rng: np.random.Generator) -> Cut:
    ends = bonds[int(rng.integers(len(bonds)))]
    kept = int(rng.integers(2))
    return Cut([ends[kept]], [ends[1 - kept]])


def _ring_cuts(
    rings_a: Sequence[Sequence[int]], rings_b: Sequence[Sequence[int]], rng: np.random.Generator
) -> tuple[Cut, Cut] | None:
    """An arc of a ring of each, which make a ring of five to seven together; None if these two can't."""
    a, b = (rings[int(rng.integers(len(rings)))] for rings in (rings_a, rings_b))
    pairs = [(p, q) for p in range(1, len(a)) for q in range(1, len(b)) if 5 <= p + q <= MAX_RING]
    if not pairs:
        return None
    p, q = pairs[rng.integers(len(pairs))]
    return _arc(a, p, rng), _arc(b, q, rng)


def _arc(ring: Sequence[int], n: int, rng: np.random.Generator) -> Cut:
    at = int(rng.integers(len(ring)))
    turned = [*ring[at:], *ring[:at]]
    if rng.random() < 0.5:
        turned.reverse()
    return Cut([turned[0], turned[n - 1]], [turned[-1], turned[n]])


def _joined(
    a: Chem.RWMol, b: Chem.RWMol, cut_a: Cut, cut_b: Cut, rng: np.random.Generator
) -> Chem.RWMol | None:
    """The kept parts, joined where they were cut; None if a cut doesn't part what is kept from the rest."""
    n = a.GetNumAtoms()
    both = Chem.RWMol(Chem.CombineMols(a, b))
    kept_b, dropped_b = [i + n for i in cut_b.kept], [i + n for i in cut_b.dropped]
    for kept, dropped in zip([*cut_a.kept, *kept_b], [*cut_a.dropped, *dropped_b], strict=True):
        both.RemoveBond(kept, dropped)
    for i, j in zip(cut_a.kept, kept_b, strict=True):
        # a ring's new bonds are single or double (Jensen); a chain's stays single
        double = len(cut_a.kept) > 1 and rng.random() < 0.5
        both.AddBond(i, j, Chem.BondType.DOUBLE if double else Chem.BondType.SINGLE)
    part = next(part for part in Chem.GetMolFrags(both) if cut_a.kept[0] in part)
    members = set(part)
    if members.intersection([*cut_a.dropped, *dropped_b]):
        return None
    both.BeginBatchEdit()
    for i in range(both.GetNumAtoms()):
        if i not in members:
            both.RemoveAtom(i)
    both.CommitBatchEdit()
    return both
