"""Molecules as graphs in a row: one token an atom, in an order that any way of writing the molecule shares.

The order is that of RDKit's canonical SMILES, or by degree (Graph-Mamba: Wang et al. 2024, arXiv:2402.00789,
section 3): a scan sees the more of a molecule the later an atom comes, so atoms of many bonds come last.
Atoms of one degree are told apart by nothing but chance in training, and by averaging over several orders in
predictions. Of reactions and several components the atoms stand molecule by molecule, and a token of its own
between them.

Where an atom stands is said by random walks: how likely one is back after 1, 2, ... steps (Dwivedi et al.
2022, arXiv:2110.07875), which, other than eigenvectors of the Laplacian, has no signs to choose.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import BondStereo, BondType, ChiralType, HybridizationType
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from mambakit.core.adapters import SampleError, VocabularyTokenizer
from mambakit.domains.molecules.config import Order
from mambakit.domains.molecules.structures import canonical, leaves, structure

_HYBRIDS = (
    HybridizationType.S,
    HybridizationType.SP,
    HybridizationType.SP2,
    HybridizationType.SP3,
    HybridizationType.SP3D,
    HybridizationType.SP3D2,
)
_CHIRAL = (ChiralType.CHI_TETRAHEDRAL_CW, ChiralType.CHI_TETRAHEDRAL_CCW)
_BONDS = (BondType.SINGLE, BondType.DOUBLE, BondType.TRIPLE, BondType.AROMATIC, BondType.DATIVE)
_STEREO = (BondStereo.STEREOE, BondStereo.STEREOZ, BondStereo.STEREOCIS, BondStereo.STEREOTRANS)
_MOST_BONDS, _MOST_CHARGE, _MOST_HYDROGENS, _LARGEST_RING = 6, 4, 4, 8
# How many values each feature has. 0 is no atom: an arrow, a separator, the beginning and the end.
ATOM_FEATURES = {
    "degree": 2 + _MOST_BONDS,
    "charge": 2 + 2 * _MOST_CHARGE,
    "hydrogens": 2 + _MOST_HYDROGENS,
    "aromatic": 3,
    "hybridisation": 2 + len(_HYBRIDS),
    "ring": 2 + _LARGEST_RING,
    "chirality": 6,
}
BOND_FEATURES = {
    "kind": 1 + len(_BONDS),
    "stereo": 1 + len(_STEREO),
    "conjugated": 2,
    "ring": 2,
}


class GraphBatch(NamedTuple):
    """Graphs as a network reads them, beside the ids of their elements.

    Attributes:
        atoms: Features of each token, ``(batch, length, n_atom_features)`` int64; 0 where there is no atom.
        walks: Chances to be back, ``(batch, length, n_walks)`` float32.
        neighbours: Where in the row the bonded atoms stand, ``(batch, length, most_bonds)`` int64; 0, the
            place of the beginning, is none.
        bonds: Features of the bonds to them, ``(batch, length, most_bonds, n_bond_features)`` int64.
    """

    atoms: Tensor
    walks: Tensor
    neighbours: Tensor
    bonds: Tensor

    def to(self, device: torch.device | str) -> GraphBatch:
        """On another device."""
        return GraphBatch(*(one.to(device) for one in self))


@dataclass(frozen=True, eq=False)
class MoleculeGraph:
    """One row of structures as tokens in canonical order; shapes as ``GraphBatch`` has them, without batch.

    Attributes:
        name: The canonical SMILES.
        symbols: Elements (with isotopes), arrows and separators, ``(n,)``.
        molecule: Which molecule or separator each token is of, ``(n,)``, counted through.
        neighbours: Tokens from 0; -1 is none.
    """

    name: str
    symbols: list[str]
    molecule: NDArray[np.int64]
    atoms: NDArray[np.int64]
    walks: NDArray[np.float32]
    neighbours: NDArray[np.int64]
    bonds: NDArray[np.int64]

    def order(self, kind: Order, way: int = 0, seed: int = 0) -> NDArray[np.int64]:
        """The tokens in an order; the canonical one breaks ties in the way 0, chance in any other."""
        n = len(self.symbols)
        if kind == "canonical":
            return np.arange(n)
        ties = np.arange(n)
        if way:  # by the molecule, so that it is read alike in whatever company
            ties = np.random.default_rng([zlib.crc32(self.name.encode()), seed, way]).permutation(n)
        return np.lexsort((ties, self.atoms[:, 0], self.molecule))


class GraphTokenizer(VocabularyTokenizer):
    """The elements of a molecule's atoms as ids, in canonical order; all else of an atom is its features.

    Lossy: bonds are not among the ids, so that no molecule comes back of them.
    """

    kind = "graph"

    def __init__(self) -> None:
        super().__init__("items", bos=True, eos=True)

    @property
    def lossy(self) -> str:
        """The bonds, and what else is a feature."""
        return "bonds, charges, hydrogens and stereochemistry, which are features beside the ids"

    def refusal(self, sample: str) -> str:
        """Nothing that RDKit can read is refused."""
        return ""

    def pieces(self, sample: str) -> list[str]:
        """Elements, arrows and separators.

        Raises:
            SampleError: If RDKit can't read it.
        """
        return [str(symbol) for _, symbol in self._split(sample)]

    def state(self) -> dict[str, Any]:
        """The symbols."""
        return {"symbols": self.symbols}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer of ``state()``."""
        tokenizer = cls()
        tokenizer._set_symbols(state["symbols"])
        return tokenizer

    def fit_graphs(self, graphs: Iterable[MoleculeGraph]) -> Self:
        """Make the vocabulary of graphs that are there already."""
        symbols = {symbol for graph in graphs for symbol in graph.symbols}
        self._set_symbols(sorted(symbols))
        return self

    def _split(self, sample: Any) -> list[tuple[int, str | int]]:
        _, reason = structure(sample)
        if reason:
            raise SampleError(reason, sample=sample)
        return list(enumerate(graph_of(canonical(sample), n_walks=0).symbols))


def graph_of(name: str, *, n_walks: int) -> MoleculeGraph:
    """A row of structures as a graph.

    Args:
        name: Canonical SMILES: the order of the atoms is its own.
        n_walks: Steps of the random walks.

    Raises:
        SampleError: If RDKit can't read it.
    """
    molecules, between = leaves(name)
    symbols: list[str] = []
    molecule: list[int] = []
    atoms: list[list[int]] = []
    ends: list[tuple[int, int]] = []
    features: list[list[int]] = []
    for place, text in enumerate(molecules):
        if place:
            symbols.append(between[place - 1])
            molecule.append(2 * place - 1)
            atoms.append([0] * len(ATOM_FEATURES))
        if not text:  # a reaction may lack a side
            continue
        mol, reason = structure(text)
        if mol is None:
            raise SampleError(reason, sample=text)
        begin = len(symbols)
        rings = mol.GetRingInfo()
        for atom in mol.GetAtoms():
            symbols.append(f"{atom.GetIsotope() or ''}{atom.GetSymbol()}")
            molecule.append(2 * place)
            atoms.append(_atom(atom, rings))
        for bond in mol.GetBonds():
            pair = (begin + bond.GetBeginAtomIdx(), begin + bond.GetEndAtomIdx())
            said = _bond(bond)
            ends += [pair, pair[::-1]]
            features += [said, said]
    n = len(symbols)
    neighbours, bonds = _tables(n, ends, features)
    return MoleculeGraph(
        name,
        symbols,
        np.array(molecule, dtype=np.int64),
        np.array(atoms, dtype=np.int64).reshape(n, len(ATOM_FEATURES)),
        _walks(n, ends, n_walks),
        neighbours,
        bonds,
    )


def collated(graphs: Sequence[MoleculeGraph], orders: Sequence[NDArray[np.int64]], length: int) -> GraphBatch:
    """Graphs behind the token of the beginning, padded; bonds to tokens that an order leaves out are cut.

    Args:
        graphs: Molecules.
        orders: Which tokens of each, in their order.
        length: Of the rows.
    """
    batch = len(graphs)
    most = max((graph.neighbours.shape[1] for graph in graphs), default=0)
    n_walks = graphs[0].walks.shape[1] if graphs else 0
    atoms = np.zeros((batch, length, len(ATOM_FEATURES)), dtype=np.int64)
    walks = np.zeros((batch, length, n_walks), dtype=np.float32)
    neighbours = np.zeros((batch, length, most), dtype=np.int64)
    bonds = np.zeros((batch, length, most, len(BOND_FEATURES)), dtype=np.int64)
    for row, (graph, order) in enumerate(zip(graphs, orders, strict=True)):
        n, width = len(order), graph.neighbours.shape[1]
        stands = np.zeros(len(graph.symbols) + 1, dtype=np.int64)  # the last is that of none, and stays 0
        stands[order] = np.arange(1, n + 1)
        atoms[row, 1 : n + 1] = graph.atoms[order]
        walks[row, 1 : n + 1] = graph.walks[order]
        neighbours[row, 1 : n + 1, :width] = stands[graph.neighbours[order]]
        bonds[row, 1 : n + 1, :width] = graph.bonds[order]
    return GraphBatch(*(torch.from_numpy(one) for one in (atoms, walks, neighbours, bonds)))


def _atom(atom: Chem.Atom, rings: Chem.RingInfo) -> list[int]:
    size = rings.MinAtomRingSize(atom.GetIdx())
    charge = max(-_MOST_CHARGE, min(_MOST_CHARGE, atom.GetFormalCharge()))
    # R and S don't depend on how a molecule is written. Where there is neither, as in cis and trans rings,
    # the turn in the canonical SMILES tells hands apart
    code = atom.GetProp("_CIPCode") if atom.HasProp("_CIPCode") else ""
    turn = 3 + _CHIRAL.index(atom.GetChiralTag()) if atom.GetChiralTag() in _CHIRAL else 0
    return [
        1 + min(atom.GetDegree(), _MOST_BONDS),
        1 + charge + _MOST_CHARGE,
        1 + min(atom.GetTotalNumHs(), _MOST_HYDROGENS),
        1 + atom.GetIsAromatic(),
        1 + _place(atom.GetHybridization(), _HYBRIDS),
        1 + min(size, _LARGEST_RING),
        1 + ({"R": 1, "S": 2}.get(code) or turn),
    ]


def _bond(bond: Chem.Bond) -> list[int]:
    return [
        _place(bond.GetBondType(), _BONDS),
        _place(bond.GetStereo(), _STEREO),
        int(bond.GetIsConjugated()),
        int(bond.IsInRing()),
    ]


def _place(value: object, known: Sequence[object]) -> int:
    """From 1; 0 for another."""
    return known.index(value) + 1 if value in known else 0


def _tables(
    n: int, ends: list[tuple[int, int]], features: list[list[int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each token its neighbours and the bonds to them, padded to the most."""
    counts = np.bincount([a for a, _ in ends], minlength=n) if ends else np.zeros(n, dtype=np.int64)
    neighbours = np.full((n, int(counts.max(initial=0))), -1, dtype=np.int64)
    bonds = np.zeros((*neighbours.shape, len(BOND_FEATURES)), dtype=np.int64)
    filled = [0] * n
    for (a, b), said in zip(ends, features, strict=True):
        neighbours[a, filled[a]], bonds[a, filled[a]] = b, said
        filled[a] += 1
    return neighbours, bonds


def _walks(n: int, ends: list[tuple[int, int]], steps: int) -> NDArray[np.float32]:
    """The diagonals of the powers of the walk's matrix, ``(n, steps)``."""
    found = np.zeros((n, steps), dtype=np.float32)
    if not ends or not steps:
        return found
    a, b = np.array(ends).T
    chance = 1.0 / np.bincount(a, minlength=n)[a]
    step = csr_array(coo_array((chance, (a, b)), shape=(n, n)))
    power = step
    for k in range(steps):
        found[:, k] = power.diagonal()
        if k < steps - 1:
            power = power @ step
    return found
