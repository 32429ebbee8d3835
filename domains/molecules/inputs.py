"""From molecules to what the networks read: token ids of one way of writing each, graphs, and features."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from torch import Tensor

from mambakit.core.adapters import SampleError
from mambakit.core.adapters.vocabulary import N_SPECIAL, UNK_ID
from mambakit.core.errors import DataError
from mambakit.domains.molecules.atoms import atoms_of_tokens
from mambakit.domains.molecules.components import ONE_MOLECULE, features_by_component
from mambakit.domains.molecules.config import ModelConfig
from mambakit.domains.molecules.features import descriptors, ecfp_counts
from mambakit.domains.molecules.graph import GraphBatch, GraphTokenizer, MoleculeGraph, collated, graph_of
from mambakit.domains.molecules.model import Batch
from mambakit.domains.molecules.notations import PropertyTokenizer
from mambakit.domains.molecules.structures import canonical, joined, leaves, structure
from mambakit.domains.molecules.tokenizer import END, PAD, START

# Ways of writing a molecule that training draws from: beyond some dozens another epoch brings nothing new.
WAYS = 32


class MoleculeInputs:
    """Molecules in every form that the networks read; ways of writing them are made when they are asked for.

    Args:
        smiles: Molecules that RDKit can read, ``(n,)``.
        config: Which features are wanted, and how long a sequence may be.
        ways: How many ways of writing each molecule there are, the canonical one first; of graphs, orders of
            their atoms.
        seed: Of the other ways.
        form: What each row is, as ``components.form_of`` says it.
        n_jobs: Processes that compute descriptors, where there are hundreds of molecules; -1: one a core.

    Attributes:
        mols: RDKit's molecules.
        descriptors: ``(n, n_descriptors)`` float64; without columns where they are not wanted.
        fragments: Counts of ECFP fragments, ``(n, n_bits)``: what similarity is measured by, wanted or not;
            of reactions and components those of the whole as one mixture.
        ecfp: The counts that networks read, of each component; without columns where they are not wanted.
        cut: Places of molecules that are longer than the sequence model reads.

    Raises:
        DataError: If RDKit can't read one of them.
    """

    def __init__(
        self,
        smiles: Sequence[str],
        config: ModelConfig,
        *,
        ways: int,
        seed: int = 0,
        form: str = ONE_MOLECULE,
        n_jobs: int = 1,
    ) -> None:
        self.config, self.ways, self.seed = config, ways, seed
        self.smiles = [str(one).strip() for one in smiles]
        self.mols: list[Chem.Mol] = []
        for place, one in enumerate(smiles):
            mol, reason = structure(str(one))
            if mol is None:
                raise DataError(f"molecule {place + 1}, {one}: {reason}")
            self.mols.append(mol)
        n = len(self.mols)
        self.descriptors: NDArray[np.float64] = np.zeros((n, 0))
        if config.reads_descriptors:
            describe = partial(descriptors, n_jobs=n_jobs)
            self.descriptors = np.asarray(
                features_by_component(self.smiles, self.mols, form, describe), np.float64
            )
        self.fragments = np.asarray(ecfp_counts(self.mols))
        self.ecfp: NDArray[np.generic] = np.zeros((n, 0), np.float32)
        if config.reads_ecfp:
            whole = form == ONE_MOLECULE
            self.ecfp = (
                self.fragments if whole else features_by_component(self.smiles, self.mols, form, ecfp_counts)
            )
        self.cut: set[int] = set()
        self._written: dict[int, list[str]] = {}
        self._ids: dict[tuple[int, int], NDArray[np.int16]] = {}
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._graphs: dict[int, MoleculeGraph] = {}
        self._symbols: dict[str, int] = {}
        self._tokenizer: PropertyTokenizer | None = None

    def __len__(self) -> int:
        return len(self.mols)

    @property
    def table(self) -> NDArray[np.float32]:
        """The features that are read, as a forest wants them, ``(n, n_ecfp + n_descriptors)``."""
        return np.concatenate([self.ecfp, self.descriptors], axis=1).astype(np.float32)

    @property
    def tokenizer(self) -> PropertyTokenizer:
        """What cuts the molecules into tokens."""
        if self._tokenizer is None:
            raise RuntimeError("MoleculeInputs: set its tokenizer first")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PropertyTokenizer) -> None:
        self._tokenizer = tokenizer
        if self.reads_graphs and self.config.order == "canonical":
            self.ways = 1
        self._symbols = {str(s): N_SPECIAL + i for i, s in enumerate(tokenizer.symbols or ())}
        self._ids.clear()
        self._orders.clear()

    def written(self, place: int, way: int) -> str:
        """A molecule's SMILES: the canonical one (0), or another that RDKit wrote from an atom at random.

        Of reactions and components each molecule is written anew.
        """
        known = self._written.setdefault(place, [canonical(self.smiles[place])])
        if way and len(known) == 1 and self.ways > 1:
            seed = self._seed(known[0])
            inside, between = leaves(self.smiles[place])
            mols = [structure(one)[0] if one else None for one in inside] if between else [self.mols[place]]
            parts = [
                Chem.MolToRandomSmilesVect(mol, self.ways - 1, randomSeed=seed) if mol else [""] * self.ways
                for mol in mols
            ]
            known += [joined(one, between) for one in zip(*parts, strict=False)]
        return known[way]

    @property
    def reads_graphs(self) -> bool:
        """Whether tokens are atoms."""
        return isinstance(self._tokenizer, GraphTokenizer)

    def graph(self, place: int) -> MoleculeGraph:
        """A molecule as a graph."""
        if place not in self._graphs:
            self._graphs[place] = graph_of(self.written(place, 0), n_walks=self.config.n_walks)
        return self._graphs[place]

    def ids(self, place: int, way: int = 0) -> NDArray[np.int16]:
        """The ids of a molecule in one way of writing it; tokens that are not in the vocabulary are UNK."""
        key = (place, way)
        if key not in self._ids:
            if self.reads_graphs:
                graph = self.graph(place)
                order = graph.order(self.config.order, way, self.seed)
                self._orders[key] = order[: self.config.max_tokens - 2]
                pieces = [graph.symbols[i] for i in order]
            else:
                pieces = self._pieces(place, way)
            ids = [self._symbols.get(piece, UNK_ID) for piece in pieces]
            if len(ids) + 2 > self.config.max_tokens:
                self.cut.add(place)
                ids = ids[: self.config.max_tokens - 2]
            self._ids[key] = np.array([START, *ids, END], dtype=np.int16)
        return self._ids[key]

    def token_atoms(self, place: int, way: int = 0) -> NDArray[np.float64]:
        """Shares of the molecule's atoms in each of ``ids``, ``(n_tokens, n_atoms)``; none in START and END.

        Atoms are counted as in ``mols``: as the SMILES that was given has them. Not of reactions.
        """
        mol, text = Chem.Mol(self.mols[place]), self.written(place, way)
        if way:  # RDKit tells the order of the last one that it wrote
            again = Chem.MolToRandomSmilesVect(mol, way, randomSeed=self._seed(self.written(place, 0)))[-1]
        else:
            again = Chem.MolToSmiles(mol)
        assert again == text
        order = list(mol.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
        as_written = atoms_of_tokens(self._pieces(place, way), len(order))
        shares = np.zeros((len(self.ids(place, way)), len(order)))
        n = len(shares) - 2  # fewer than the pieces where the sequence is cut
        shares[1:-1, order] = as_written[:n]
        return shares

    def _seed(self, known: str) -> int:
        """By the molecule, not by its place: the same molecule is written alike in whatever company.

        RDKit takes 0 for no seed at all.
        """
        return (zlib.crc32(known.encode()) ^ self.seed) % (2**31 - 1) + 1

    def _pieces(self, place: int, way: int) -> list[str]:
        for one in dict.fromkeys((way, 0)):  # SELFIES may not hold another way of writing what it can hold
            try:
                return self.tokenizer.pieces(self.written(place, one))
            except SampleError:
                continue
        return [self.written(place, way)]  # an atom or bond that the pattern doesn't know: one unknown token

    def batch(
        self, places: Sequence[int], ways: Sequence[int] | None = None, *, length_multiple: int = 1
    ) -> Batch:
        """Molecules by their places, each written in the way given (canonical by default).

        Ids are padded to the longest of them, or to the next multiple.
        """
        rows = list(places)
        keys = list(zip(rows, ways or [0] * len(rows), strict=True))
        if self.config.sequence:
            made = [self.ids(*key) for key in keys]
        else:
            made = [np.array([START], np.int16)] * len(rows)
        lengths = [len(one) for one in made]
        width = -(-max(lengths, default=0) // length_multiple) * length_multiple
        ids = np.full((len(rows), width), PAD, dtype=np.int64)
        for row, one in zip(ids, made, strict=True):
            row[: len(one)] = one
        graph: GraphBatch | None = None
        if self.config.sequence and self.reads_graphs:
            orders = [self._orders[key] for key in keys]
            graph = collated([self.graph(place) for place in rows], orders, ids.shape[1])
        return Batch(
            torch.from_numpy(ids),
            torch.tensor(lengths, dtype=torch.int64),
            torch.from_numpy(self.descriptors[rows]),
            torch.from_numpy(np.asarray(self.ecfp[rows], np.float32)),
            graph,
        )

    def batches(self, way: int, most_tokens: int) -> list[Tensor]:
        """Places in batches of like lengths, each of so many tokens at most (or of one molecule)."""
        lengths = [len(self.ids(p, way)) if self.config.sequence else 1 for p in range(len(self))]
        found: list[list[int]] = []
        for place in np.argsort(lengths, kind="stable"):
            # sorted, so that this one is the longest of its batch
            if not found or (len(found[-1]) + 1) * lengths[place] > most_tokens or len(found[-1]) >= 512:
                found.append([])
            found[-1].append(int(place))
        return [torch.tensor(one, dtype=torch.int64) for one in found]
