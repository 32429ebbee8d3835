"""Molecules as ids: SMILES cut by a regular expression, or SELFIES.

Ids 0, 1 and 2 are PAD, START and END; every encoded molecule stands between START and END, so that a model
of the ids knows where one begins and where it is complete. A language model that learns from canonical SMILES
and from others may tell them apart by their first id: START for canonical ones, REWRITTEN for any writing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from rdkit import Chem

from mambakit.core.adapters import IdAdapter, SampleError, Tokens, VocabularyTokenizer, register_adapter
from mambakit.core.adapters.vocabulary import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from mambakit.core.errors import DataError
from mambakit.core.folders import read_json_object
from mambakit.domains.molecules.structures import canonical, joined, leaves

PAD, START, END = PAD_ID, BOS_ID, EOS_ID
REWRITTEN = UNK_ID  # no molecule has it: an unknown token is an error

# One token: an atom in brackets with all that it says, an atom of the organic subset, a ring closure (%10 and
# %(100) are one), an arrow of a reaction or a dative bond, a bond, a branch, the dot between parts of a
# mixture, or the separator between the components of a row.
SMILES_PATTERN = r"\[[^\[\]\s]+\]|Br|Cl|[BCNOPSFIbcnops*]|%\d\d|%\(\d{1,5}\)|\d|>>|->|<-|>|[-=#$:/\\~.();]"

# What another way of writing the same molecules may need, whether or not the data hold it: a vocabulary of
# canonical SMILES alone meets unknown tokens as soon as the SMILES are randomised.
_ALWAYS = (
    *("C", "c", "N", "n", "O", "o", "S", "s", "P", "p", "B", "b", "F", "Cl", "Br", "I"),
    *("(", ")", "=", "#", "-", ":", "/", "\\", ".", ">>", "*"),
    *(str(i) for i in range(10)),
    *(f"%{i}" for i in range(10, 30)),
)

_VALENCE = re.compile(r"\[(.+ bond\(s\).*)\]")


class SmilesTokenizer(VocabularyTokenizer):
    """SMILES ↔ ids, ``decode(encode(s)) == s``.

    A vocabulary is fitted on data and then closed under rewriting: the organic subset, all bonds, the rings
    up to %29, and of each stereo centre the other hand are in it too. What else the data do not hold is an
    error that names the token and where it stands; ``extend`` adds it.
    """

    kind = "smiles"

    marks_rewritten = False
    """Whether a molecule that need not be written canonically begins with REWRITTEN for the model."""

    def __init__(self) -> None:
        super().__init__(SMILES_PATTERN, bos=True, eos=True)

    def refusal(self, sample: str) -> str:
        """Why it can't hold a molecule that RDKit can read, in a sentence; ``""`` if it can."""
        return ""

    def fit(self, samples: Iterable[str]) -> Self:
        """Make the vocabulary of the training split.

        Raises:
            SampleError: If a string can't be cut into tokens, with its index.
        """
        super().fit(samples)
        assert self.symbols is not None
        self._set_symbols(closed([str(symbol) for symbol in self.symbols]))
        return self

    def extend(self, samples: Iterable[str]) -> list[Any]:
        """Add the tokens of more molecules behind the known ones, whose ids stay; returns the new ones.

        Raises:
            SampleError: If a string can't be cut into tokens, with its index.
        """
        self.require_fitted()
        assert self.symbols is not None
        n_known = len(self.symbols)
        super().extend(samples)
        self._set_symbols(closed([str(symbol) for symbol in self.symbols]))
        return self.symbols[n_known:]

    def unseen(self, samples: Sequence[str], rows: Sequence[int] | None = None) -> dict[str, list[int]]:
        """Tokens outside the vocabulary, and the rows that hold each.

        Strings that can't be cut into tokens are not among them: ``encode_many`` says what is wrong there.

        Args:
            samples: The molecules.
            rows: Where each stands in its source; by default counted from 1.
        """
        self.require_fitted()
        found: dict[str, list[int]] = {}
        for row, sample in zip(range(1, len(samples) + 1) if rows is None else rows, samples, strict=True):
            try:
                symbols = self.pieces(sample)
            except SampleError:
                continue
            for symbol in dict.fromkeys(symbols):
                if symbol not in self._ids:
                    found.setdefault(symbol, []).append(int(row))
        return found

    def pieces(self, sample: str) -> list[str]:
        """The tokens of a molecule as text.

        Raises:
            SampleError: If it can't be cut, with the character and its position.
        """
        return [str(symbol) for _, symbol in self._split(sample)]

    def any_start(self) -> int:
        """The first id of a molecule that may be written in any way."""
        return REWRITTEN if self.marks_rewritten else START

    def encode_any(self, sample: str) -> Tokens:
        """As ``encode``, for a molecule that may be written in any way.

        Raises:
            SampleError: As ``encode``.
        """
        return Tokens(torch.tensor(self.ids_of_any(sample)))

    def ids_of_any(self, sample: str) -> list[int]:
        """What ``encode_any`` gives, as a list.

        Raises:
            SampleError: As ``encode``.
        """
        return [self.any_start(), *self.ids(sample), END]

    def decode(self, tokens: Tokens) -> str:
        """The molecule, whichever start it has.

        Raises:
            SampleError: On an id outside the vocabulary, and on the unknown one anywhere else.
        """
        marked = len(tokens.values) > 0 and int(tokens.values[0]) == REWRITTEN
        return str(super().decode(Tokens(tokens.values[1:]) if marked else tokens))

    def text(self, ids: Sequence[int]) -> str:
        """The molecule of some ids; START, END and PAD count for nothing."""
        return str(self.decode(Tokens(torch.tensor(list(ids), dtype=torch.int64))))

    def state(self) -> dict[str, Any]:
        """The symbols, and whether rewritten molecules are marked."""
        return {"symbols": self.symbols, "marks_rewritten": self.marks_rewritten}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer of ``state()``."""
        tokenizer = cls()
        tokenizer._set_symbols(state["symbols"])
        tokenizer.marks_rewritten = bool(state.get("marks_rewritten", False))
        return tokenizer


class SelfiesTokenizer(SmilesTokenizer):
    """SMILES ↔ ids of SELFIES symbols (Krenn et al. 2020, arXiv:1905.13741): any ids decode to a molecule.

    The way a SMILES is written is not kept, the molecule is: see ``same``.
    """

    kind = "selfies"

    def __init__(self) -> None:
        VocabularyTokenizer.__init__(self, r"\[[^\[\]\s]+\]|[.>;]", bos=True, eos=True)

    def refusal(self, sample: str) -> str:
        """What SELFIES says against a molecule, in a sentence; ``""`` if it can hold it."""
        try:
            self.pieces(canonical(sample))  # nitro groups and the like are written otherwise there
        except SampleError as error:
            return error.reason
        return ""

    def fit(self, samples: Iterable[str]) -> Self:
        """Make the vocabulary of the training split.

        Raises:
            SampleError: If a string is no SMILES that SELFIES can hold, with its index.
        """
        return VocabularyTokenizer.fit(self, samples)

    def extend(self, samples: Iterable[str]) -> list[Any]:
        """Add the symbols of more molecules behind the known ones; returns the new ones.

        Raises:
            SampleError: As ``fit``.
        """
        return VocabularyTokenizer.extend(self, samples)

    def decode(self, tokens: Tokens) -> str:
        """The SMILES that the symbols stand for.

        Raises:
            SampleError: On an id outside the vocabulary, and on the unknown one, which is no symbol.
        """
        import selfies

        text = super().decode(tokens)
        molecules, between = leaves(text)
        try:
            return joined([str(selfies.decoder(one)) if one else "" for one in molecules], between)
        except selfies.DecoderError as error:
            reason = " ".join(str(error).split())
            raise SampleError(f"SELFIES can't read it: {reason}", sample=text) from None

    def same(self, sample: str, other: str) -> bool:
        """Whether two SMILES are of the same molecule."""
        first, second = (Chem.MolFromSmiles(one) for one in (sample, other))
        if first is None or second is None:
            return sample == other
        return bool(Chem.MolToSmiles(first) == Chem.MolToSmiles(second))

    def _split(self, sample: Any) -> list[tuple[int, str | int]]:
        import selfies

        if not isinstance(sample, str):
            raise SampleError(f"expected a string, got {type(sample).__name__}", sample=sample)
        if not sample:
            return []
        try:
            # strict: refuses a valence that SELFIES' own rules would silently change
            molecules, between = leaves(sample)
            text = joined([selfies.encoder(one, strict=True) if one else "" for one in molecules], between)
        except selfies.EncoderError as error:
            # its lines are what happened, the SMILES once more, and of valences which one
            valence = _VALENCE.search(str(error))
            reason = valence[1] if valence else str(error).strip().partition("\n")[0]
            raise SampleError(f"SELFIES can't hold it: {reason}", sample=sample) from None
        return super()._split(text)


TOKENIZERS: dict[str, type[SmilesTokenizer]] = {"smiles": SmilesTokenizer, "selfies": SelfiesTokenizer}


@register_adapter("smiles", tokenizer=SmilesTokenizer)
class SmilesAdapter(IdAdapter):
    """Embeds the ids of ``SmilesTokenizer``."""


def load_tokenizer(folder: str | os.PathLike[str]) -> SmilesTokenizer:
    """The tokenizer in a saved model's folder, of whichever kind it is.

    Raises:
        DataError: If there is none, or it is of another kind.
    """
    path = Path(folder) / "tokenizer.json"
    kind = read_json_object(path).get("kind")
    if kind not in TOKENIZERS:
        raise DataError(f"{path} holds a tokenizer of kind {kind!r}, expected one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[kind].load(folder)


def closed(symbols: Sequence[str]) -> list[str]:
    """A SMILES vocabulary with what other ways of writing the same molecules need behind it."""
    mirrored = [mirror for symbol in symbols if (mirror := _mirror(symbol))]
    return list(dict.fromkeys([*symbols, *_ALWAYS, *mirrored]))


def _mirror(symbol: str) -> str:
    """The atom of the other hand; '' for one without stereo."""
    if not symbol.startswith("[") or "@" not in symbol:
        return ""
    if "@@" in symbol:
        return symbol.replace("@@", "@")
    return re.sub(r"@(?![A-Z]{2}\d)", "@@", symbol)  # @TB1 and the like have other rules
