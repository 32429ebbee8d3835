"""From molecules to what the networks read: token ids of one way of writing each, and features."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem
from torch import Tensor

from mambakit.core.adapters import SampleError
from mambakit.core.adapters.vocabulary import N_SPECIAL, UNK_ID
from mambakit.core.errors import DataError
from mambakit.domains.molecules.config import ModelConfig
from mambakit.domains.molecules.features import descriptors, ecfp_counts
from mambakit.domains.molecules.model import Batch
from mambakit.domains.molecules.structures import canonical, is_reaction, sides, structure
from mambakit.domains.molecules.tokenizer import END, PAD, START, SmilesTokenizer

# Ways of writing a molecule that training draws from: beyond some dozens another epoch brings nothing new.
WAYS = 32


class MoleculeInputs:
    """Molecules in every form that the networks read; ways of writing them are made when they are asked for.

    Args:
        smiles: Molecules that RDKit can read, ``(n,)``.
        config: Which features are wanted, and how long a sequence may be.
        ways: How many ways of writing each molecule there are, the canonical one first.
        seed: Of the other ways.
        n_jobs: Processes that compute descriptors, where there are hundreds of molecules; -1: one a core.

    Attributes:
        mols: RDKit's molecules.
        descriptors: ``(n, n_descriptors)`` float64; without columns where they are not wanted.
        fragments: Counts of ECFP fragments, ``(n, n_bits)``: what similarity is measured by, wanted or not.
        cut: Places of molecules that are longer than the sequence model reads.

    Raises:
        DataError: If RDKit can't read one of them.
    """

    def __init__(
        self, smiles: Sequence[str], config: ModelConfig, *, ways: int, seed: int = 0, n_jobs: int = 1
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
        self.descriptors: NDArray[np.float64] = (
            np.asarray(descriptors(self.mols, n_jobs=n_jobs), np.float64)
            if config.reads_descriptors
            else np.zeros((n, 0))
        )
        self.fragments = np.asarray(ecfp_counts(self.mols))
        self.cut: set[int] = set()
        self._written: dict[int, list[str]] = {}
        self._ids: dict[tuple[int, int], NDArray[np.int16]] = {}
        self._symbols: dict[str, int] = {}
        self._tokenizer: SmilesTokenizer | None = None

    def __len__(self) -> int:
        return len(self.mols)

    @property
    def tokenizer(self) -> SmilesTokenizer:
        """What cuts the SMILES."""
        if self._tokenizer is None:
            raise RuntimeError("MoleculeInputs: set its tokenizer first")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: SmilesTokenizer) -> None:
        self._tokenizer = tokenizer
        self._symbols = {str(s): N_SPECIAL + i for i, s in enumerate(tokenizer.symbols or ())}
        self._ids.clear()

    def written(self, place: int, way: int) -> str:
        """A molecule's SMILES: the canonical one (0), or another that RDKit wrote from an atom at random.

        Of a reaction each side is written anew.
        """
        known = self._written.setdefault(place, [canonical(self.smiles[place])])
        if way and len(known) == 1 and self.ways > 1:
            # by the molecule, not by its place: the same molecule is written alike in whatever company. RDKit
            # takes 0 for no seed at all.
            seed = (zlib.crc32(known[0].encode()) ^ self.seed) % (2**31 - 1) + 1
            parts = [
                Chem.MolToRandomSmilesVect(mol, self.ways - 1, randomSeed=seed) if mol else [""] * self.ways
                for mol in self._sides(place)
            ]
            known += [">".join(one) for one in zip(*parts, strict=False)]
        return known[way]

    def _sides(self, place: int) -> list[Chem.Mol | None]:
        """The molecule itself, or reactants, agents and products of a reaction."""
        if not is_reaction(self.smiles[place]):
            return [self.mols[place]]
        return [structure(one)[0] if one else None for one in sides(self.smiles[place])]

    def ids(self, place: int, way: int = 0) -> NDArray[np.int16]:
        """The ids of a molecule in one way of writing it; tokens that are not in the vocabulary are UNK."""
        key = (place, way)
        if key not in self._ids:
            ids = [self._symbols.get(piece, UNK_ID) for piece in self._pieces(self.written(place, way))]
            if len(ids) + 2 > self.config.max_tokens:
                self.cut.add(place)
                ids = ids[: self.config.max_tokens - 2]
            self._ids[key] = np.array([START, *ids, END], dtype=np.int16)
        return self._ids[key]

    def _pieces(self, smiles: str) -> list[str]:
        try:
            return self.tokenizer.pieces(smiles)
        except SampleError:  # a kind of bond or atom that the pattern doesn't know: one unknown token
            return [smiles]

    def batch(self, places: Sequence[int], ways: Sequence[int] | None = None) -> Batch:
        """Molecules by their places, each written in the way given (canonical by default).

        Ids are padded to the longest of them.
        """
        rows = list(places)
        if self.config.sequence:
            made = [self.ids(p, w) for p, w in zip(rows, ways or [0] * len(rows), strict=True)]
        else:
            made = [np.array([START], np.int16)] * len(rows)
        lengths = [len(one) for one in made]
        ids = np.full((len(rows), max(lengths, default=0)), PAD, dtype=np.int64)
        for row, one in zip(ids, made, strict=True):
            row[: len(one)] = one
        ecfp = self.fragments[rows] if self.config.reads_ecfp else np.zeros((len(rows), 0))
        return Batch(
            torch.from_numpy(ids),
            torch.tensor(lengths, dtype=torch.int64),
            torch.from_numpy(self.descriptors[rows]),
            torch.from_numpy(np.asarray(ecfp, np.float32)),
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
