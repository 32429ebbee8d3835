"""The edits of a mutation (Jensen 2019, Chem. Sci. 10, 3567): an atom or a bond more, less, or another.

Each edits a Kekulé structure in place and returns whether it could; whether the result is a sound molecule is
for its caller to see. Atoms with a charge, and those doubly bonded to one, are let alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rdkit import Chem

_ELEMENTS = (6, 7, 8, 9, 16, 17, 35)
_ELEMENT_SHARES = np.array([0.4, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05]).cumsum()
_VALENCES = {6: 4, 7: 3, 8: 2, 16: 2}
_RING_SIZES, _RING_SHARES = (3, 4, 5, 6), np.array([0.05, 0.05, 0.45, 0.45]).cumsum()
_ORDERS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
_ORDER_OF = {bond_type: order for order, bond_type in _ORDERS.items()}


def append_atom(mol: Chem.RWMol, rng: np.random.Generator) -> bool:
    """A new atom on one that has a hydrogen, by a single, double or triple bond as the valences allow."""
    open_to = _open_atoms(mol)
    if not open_to:
        return False
    at, element = open_to[rng.integers(len(open_to))], _element(rng)
    most = min(3, mol.GetAtomWithIdx(at).GetTotalNumHs(), _VALENCES.get(element, 1))
    order = 1 if rng.random() < 0.6 else 1 + int(rng.integers(most))
    mol.AddBond(at, mol.AddAtom(Chem.Atom(element)), _ORDERS[order])
    return True


def insert_atom(mol: Chem.RWMol, rng: np.random.Generator) -> bool:
    """A new atom in the middle of a single bond."""
    bonds = [bond for bond in _bonds(mol) if bond.GetBondType() == Chem.BondType.SINGLE]
    element = _element(rng)
    if not bonds or element not in _VALENCES:
        return False
    bond = bonds[rng.integers(len(bonds))]
    i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    mol.RemoveBond(i, j)
    new = mol.AddAtom(Chem.Atom(element))
    mol.AddBond(i, new, Chem.BondType.SINGLE)
    mol.AddBond(new, j, Chem.BondType.SINGLE)
    return True


def delete_atom(mol: Chem.RWMol, rng: np.random.Generator) -> bool:
    """An atom less; one of its neighbours takes its bonds to the others."""
    atoms = _neutral(mol)
    if mol.GetNumAtoms() < 2 or not atoms:
        return False
    at = atoms[rng.integers(len(atoms))]
    around = [atom.GetIdx() for atom in mol.GetAtomWithIdx(at).GetNeighbors()]
    heir = around.pop(rng.integers(len(around)))
    for other in around:
        if mol.GetBondBetweenAtoms(heir, other) is None:
            mol.AddBond(heir, other, Chem.BondType.SINGLE)
    mol.RemoveAtom(at)
    return True


def change_order(mol: Chem.RWMol, rng: np.random.Generator) -> bool:
    """A bond made single, double or triple."""
    bonds = _bonds(mol)
    if not bonds:
        return False
    bond = bonds[rng.integers(len(bonds))]
    others = [order for order, one in _ORDERS.items() if one != bond.GetBondType()]
    order = others[0] if rng.random() < 0.8 else others[1]  # a triple bond seldom
    spare = min(atom.GetTotalNumHs() for atom in (bond.GetBeginAtom(), bond.GetEndAtom()))
    if order - _ORDER_OF.get(bond.GetBondType(), 1) > spare:
        return False
    bond.SetBondType(_ORDERS[order])
    return True


def change_element(mol: Chem.RWMol, rng: np.random.Generator) -> bool:
    """An atom of another element."""
    atoms = _neutral(mol)
    if not atoms:
        return False
    atom, element = mol.GetAtomWithIdx(atoms[rng.integers(len(atoms))]), _element(rng)
    used = atom.GetTotalValence() - atom.GetTotalNumHs()
    if element == atom.GetAtomicNum() or used > _VALENCES.get(element, 1):
        return False
    atom.SetAtomicNum(element)
    atom.SetIsotope(0)
    return True


def add_ring(mol: Chem.RWMol, rng: np.random.Generator) -> bool:
    """A single bond that closes a ring, mostly of five or six atoms."""
    open_to = _open_atoms(mol)
    size = _RING_SIZES[min(int(np.searchsorted(_RING_SHARES, rng.random())), len(_RING_SIZES) - 1)]
    if len(open_to) < 2:
        return False
    apart = Chem.GetDistanceMatrix(mol)[np.ix_(open_to, open_to)]
    pairs = np.argwhere(np.triu(apart == size - 1))
    if not len(pairs):
        return False
    i, j = pairs[rng.integers(len(pairs))]
    mol.AddBond(open_to[i], open_to[j], Chem.BondType.SINGLE)
    return True


def delete_ring(mol: Chem.RWMol, rng: np.random.Generator) -> bool:
    """A ring opened at one of its bonds."""
    bonds = [bond for bond in _bonds(mol) if bond.IsInRing()]
    if not bonds:
        return False
    bond = bonds[rng.integers(len(bonds))]
    mol.RemoveBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
    return True


Mutation = Callable[[Chem.RWMol, np.random.Generator], bool]
MUTATIONS: Sequence[Mutation] = (
    append_atom,
    insert_atom,
    delete_atom,
    change_order,
    change_element,
    add_ring,
    delete_ring,
)
"""As likely as one another; Jensen's shares are 0.14 and 0.15."""


def _element(rng: np.random.Generator) -> int:
    return _ELEMENTS[min(int(np.searchsorted(_ELEMENT_SHARES, rng.random())), len(_ELEMENTS) - 1)]


def _neutral(mol: Chem.RWMol) -> list[int]:
    charged = {atom.GetIdx() for atom in mol.GetAtoms() if atom.GetFormalCharge()}
    bound = {
        bond.GetOtherAtomIdx(i)
        for i in charged
        for bond in mol.GetAtomWithIdx(i).GetBonds()
        if bond.GetBondType() != Chem.BondType.SINGLE
    }
    return [i for i in range(mol.GetNumAtoms()) if i not in charged and i not in bound]


def _open_atoms(mol: Chem.RWMol) -> list[int]:
    return [i for i in _neutral(mol) if mol.GetAtomWithIdx(i).GetTotalNumHs() > 0]


def _bonds(mol: Chem.RWMol) -> list[Chem.Bond]:
    """Bonds of which no end has a charge."""
    return [
        bond
        for bond in mol.GetBonds()
        if bond.GetBeginAtom().GetFormalCharge() == 0 and bond.GetEndAtom().GetFormalCharge() == 0
    ]
