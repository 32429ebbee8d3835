"""Text to ids for recognition: characters, or pieces of words by byte-pair encoding. Id 0 is CTC's blank.

Text is taken in lower case with single spaces, so that a transcript's case and line breaks are no symbols.
"""

from __future__ import annotations

import base64
import io
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch

from mambakit.core.adapters import IdAdapter, SampleError, Tokenizer, Tokens, register_adapter
from mambakit.core.errors import DataError, UsageError

BLANK_ID = 0
Units = Literal["characters", "bpe", "phones"]

_WORD_START = "\u2581"  # how sentencepiece writes a space


def normalised(text: str) -> str:
    """Lower case, and one space between words."""
    return " ".join(text.lower().split())


class TextTokenizer(Tokenizer[str]):
    """What all kinds share: ids from 1 on, the text of each, and the characters they can't write.

    Attributes:
        wanting: What ``unknown`` lists.
    """

    wanting = "characters that no training transcript has"

    @property
    def lossy(self) -> str:
        """Case, and the kind and number of spaces."""
        return "case, and white space other than single spaces"

    @property
    @abstractmethod
    def pieces(self) -> list[str]:
        """The text of every id; of the blank none. A space stands where a word begins (or between words)."""

    @property
    @abstractmethod
    def characters(self) -> set[str]:
        """The characters that can be written."""

    @property
    def n_ids(self) -> int:
        """The blank and the symbols."""
        return len(self.pieces)

    def decode(self, tokens: Tokens) -> str:
        """The text; blanks are left out.

        Raises:
            SampleError: On an id that there isn't.
            NotFittedError: Before ``fit``.
        """
        return self.text(tokens.values.tolist())

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        self.require_fitted()
        wrong = [i for i in ids if not 0 <= i < self.n_ids]
        if wrong:
            raise SampleError(f"id {wrong[0]} is outside the {self.n_ids} ids there are")
        letters = "".join(self.pieces[i] for i in ids)
        return " ".join(self.spelled(word) for word in letters.split())

    def letters(self, text: str) -> str:
        """What stands for a text in joined pieces."""
        return normalised(text)

    def spelled(self, letters: str) -> str:
        """The word that joined pieces stand for."""
        return letters

    def same(self, sample: str, other: str) -> bool:
        """Equality but for case and spaces."""
        return normalised(sample) == normalised(other)

    def unknown(self, text: str) -> list[str]:
        """The characters of a text that can't be written, each once, in their order."""
        return list(dict.fromkeys(c for c in normalised(text) if c not in self.characters))

    def _refuse(self, sample: object) -> str:
        self.require_fitted()
        if not isinstance(sample, str):
            raise SampleError(f"expected a text, got {type(sample).__name__}", sample=sample)
        text = normalised(sample)
        bad = self.unknown(text)
        if bad:
            raise SampleError(
                f"unknown character {bad[0]!r} at position {text.index(bad[0])} (not among the "
                f"{len(self.characters)} of the training transcripts)",
                sample=sample,
            )
        return text


class CharacterTokenizer(TextTokenizer):
    """One id a character of the training transcripts, in their alphabetical order."""

    kind = "speech-characters"

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._ids: dict[str, int] = {}

    @property
    def is_fitted(self) -> bool:
        """True once there are characters."""
        return bool(self._pieces)

    @property
    def pieces(self) -> list[str]:
        """Nothing for the blank, then the characters."""
        return self._pieces

    @property
    def characters(self) -> set[str]:
        """Those of the training transcripts."""
        return set(self._ids)

    def fit(self, samples: Iterable[str]) -> Self:
        """Take the characters of the training transcripts; a space is always among them."""
        self._set(sorted({" ", *(c for text in samples for c in normalised(text))}))
        return self

    def encode(self, sample: str) -> Tokens:
        """Ids, ``(length,)`` int64.

        Raises:
            SampleError: On a character that no training transcript has, with its position.
            NotFittedError: Before ``fit``.
        """
        text = self._refuse(sample)
        return Tokens(torch.tensor([self._ids[c] for c in text], dtype=torch.int64))

    def state(self) -> dict[str, Any]:
        """The characters."""
        return {"characters": self._pieces[1:]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """From ``state()``."""
        tokenizer = cls()
        tokenizer._set(list(state["characters"]))
        return tokenizer

    def _set(self, characters: list[str]) -> None:
        self._pieces = ["", *characters]
        self._ids = {c: i for i, c in enumerate(self._pieces) if i}


class BpeTokenizer(TextTokenizer):
    """Pieces of words by byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909), by sentencepiece.

    Args:
        n_pieces: At most so many; fewer where the transcripts hold no more.
    """

    kind = "speech-bpe"

    def __init__(self, n_pieces: int = 256) -> None:
        if n_pieces < 2:
            raise UsageError(f"n_pieces: expected at least 2, got {n_pieces}")
        self.n_pieces = n_pieces
        self._model = b""
        self._processor: Any = None
        self._pieces: list[str] = []

    @property
    def is_fitted(self) -> bool:
        """True once there are pieces."""
        return bool(self._model)

    @property
    def pieces(self) -> list[str]:
        """Nothing for the blank, then the pieces; a space where one begins a word."""
        return self._pieces

    @property
    def characters(self) -> set[str]:
        """Those that some piece is."""
        return {" ", *(piece.strip() for piece in self._pieces if len(piece.strip()) == 1)}

    def fit(self, samples: Iterable[str]) -> Self:
        """Learn the pieces of the training transcripts.

        Raises:
            DataError: If they hold no text.
        """
        import sentencepiece

        texts = [text for text in map(normalised, samples) if text]
        if not texts:
            raise DataError("there is no transcript to learn pieces of words from")
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type="bpe",
            vocab_size=self.n_pieces,
            hard_vocab_limit=False,
            character_coverage=1.0,
            # id 0 is what sentencepiece can't write, which encode refuses: here it is free for the blank
            unk_id=BLANK_ID,
            bos_id=-1,
            eos_id=-1,
            normalization_rule_name="identity",
            minloglevel=2,
        )
        self._set(written.getvalue())
        return self

    def encode(self, sample: str) -> Tokens:
        """Ids, ``(length,)`` int64.

        Raises:
            SampleError: On a character that no training transcript has, with its position.
            NotFittedError: Before ``fit``.
        """
        text = self._refuse(sample)
        return Tokens(torch.tensor(self._processor.encode(text), dtype=torch.int64))

    def state(self) -> dict[str, Any]:
        """The options and sentencepiece's model."""
        return {"n_pieces": self.n_pieces, "model": base64.b64encode(self._model).decode("ascii")}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """From ``state()``."""
        tokenizer = cls(int(state["n_pieces"]))
        tokenizer._set(base64.b64decode(state["model"], validate=True))
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return self.state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(int(state["n_pieces"]))  # type: ignore[misc]
        if state["model"]:
            self._set(base64.b64decode(state["model"]))

    def _set(self, model: bytes) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise ValueError(f"not a sentencepiece model: {error}") from error
        self._model = model
        pieces = [self._processor.id_to_piece(i) for i in range(len(self._processor))]
        self._pieces = ["", *(piece.replace(_WORD_START, " ") for piece in pieces[1:])]


@register_adapter("speech-text", tokenizer=CharacterTokenizer)
class TextAdapter(IdAdapter):
    """Embeds a transcript's characters, for a decoder or a language model of them."""


def unknown_characters(tokenizer: TextTokenizer, texts: Mapping[int, str]) -> dict[str, list[int]]:
    """The characters (of phones: words) that can't be written, the commonest first, each with its rows.

    Args:
        tokenizer: Fitted.
        texts: Transcripts by row.
    """
    rows: dict[str, list[int]] = {}
    for row, text in texts.items():
        for character in tokenizer.unknown(text):
            rows.setdefault(character, []).append(row)
    counts = Counter({character: len(places) for character, places in rows.items()})
    return {character: rows[character] for character, _ in counts.most_common()}


def unknown_sentence(unknown: Mapping[str, Sequence[int]], wanting: str = TextTokenizer.wanting) -> str:
    """What was found, in one sentence that begins with what it is; nothing where nothing was."""
    if not unknown:
        return ""
    said = []
    for character, rows in list(unknown.items())[:5]:
        shown = ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
        said.append(f"{character!r} (row{'s' if len(rows) > 1 else ''} {shown})")
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return f"{wanting}: {', '.join(said)}{more}"
