"""How property models read structures: as SMILES, SELFIES or graphs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mambakit.core.adapters import SampleError
from mambakit.core.errors import UsageError
from mambakit.core.folders import read_json_object
from mambakit.domains.molecules.config import Notation
from mambakit.domains.molecules.graph import GraphTokenizer
from mambakit.domains.molecules.tokenizer import TOKENIZERS, SmilesTokenizer, load_tokenizer

if TYPE_CHECKING:
    from mambakit.domains.molecules.inputs import MoleculeInputs
    from mambakit.domains.molecules.language.model import MoleculeModel

PropertyTokenizer = SmilesTokenizer | GraphTokenizer
# Ways of writing the training molecules that the vocabulary is fitted on.
_VOCABULARY_WAYS = 4


def notation_of(asked: Notation | None, language: MoleculeModel | None) -> Notation:
    """How structures are read: as asked for, or as a pretrained language model does; SMILES by default.

    Raises:
        UsageError: If the language model reads them otherwise.
    """
    if language is None:
        return asked or "smiles"
    known: Notation = "selfies" if language.tokenizer.kind == "selfies" else "smiles"
    if asked not in (None, known):
        raise UsageError(f"tokenizer: the pretrained language model reads {known}, got {asked!r}")
    return known


def fit_notation(kind: Notation, inputs: MoleculeInputs, n_train: int) -> PropertyTokenizer:
    """A tokenizer with the vocabulary of the first molecules, those of training."""
    if kind == "graph":
        return GraphTokenizer().fit_graphs(inputs.graph(place) for place in range(n_train))
    return TOKENIZERS[kind]().fit(vocabulary(inputs, n_train, TOKENIZERS[kind]()))


def vocabulary(inputs: MoleculeInputs, n_train: int, tokenizer: SmilesTokenizer) -> list[str]:
    """Some ways of writing each training molecule that a tokenizer can hold."""
    ways = min(_VOCABULARY_WAYS, inputs.ways)
    found = []
    for place in range(n_train):
        for way in range(ways):
            written = inputs.written(place, way)
            # what SELFIES can't hold in one way of writing it may do in another
            with contextlib.suppress(SampleError):
                tokenizer.pieces(written)
                found.append(written)
    return found


def load_notation(folder: str | os.PathLike[str]) -> PropertyTokenizer:
    """The tokenizer in a property model's folder, of whichever kind it is.

    Raises:
        DataError: If there is none, or it is of another kind.
    """
    if read_json_object(Path(folder) / "tokenizer.json").get("kind") == GraphTokenizer.kind:
        return GraphTokenizer.load(folder)
    return load_tokenizer(folder)
