"""A tokenizer over a fitted vocabulary: letters, words, regex pieces or items."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, Literal, Self

import torch

from mambakit.core.adapters.tokenizer import SampleError, Tokenizer
from mambakit.core.adapters.tokens import Tokens

# The ids below 4 are the same in every vocabulary, whether used or not.
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)
N_SPECIAL = 4
UNK_SYMBOL = "<unk>"

Symbol = str | int


class VocabularyTokenizer(Tokenizer[Any]):
    """Symbols to ids: pad 0, bos 1, eos 2, unk 3, then the symbols from frequent to rare.

    Args:
        split: How a sample falls into symbols: ``"characters"`` of a string, ``"words"`` between
            white space, ``"items"`` of a sequence of strings or integers, or a regular expression
            whose matches must cover the string (a SMILES pattern, say).
        bos: Puts id 1 in front.
        eos: Puts id 2 at the end.
        unknown: What a symbol outside the vocabulary is: an ``"error"`` that names it and its
            position, or the ``"unk"`` id.
        min_count: Symbols seen less often in ``fit`` are left out.
        max_symbols: At most so many symbols, the most frequent; None sets no limit.

    Raises:
        ValueError: On an option that can't be.
    """

    kind = "vocabulary"

    def __init__(
        self,
        split: str = "characters",
        *,
        bos: bool = False,
        eos: bool = False,
        unknown: Literal["error", "unk"] = "error",
        min_count: int = 1,
        max_symbols: int | None = None,
    ) -> None:
        if unknown not in ("error", "unk"):
            raise ValueError(f"unknown: expected 'error' or 'unk', got {unknown!r}")
        if min_count < 1 or (max_symbols is not None and max_symbols < 1):
            raise ValueError(
                f"min_count, max_symbols: expected at least 1, got {min_count} and {max_symbols}"
            )
        self.split = split
        self.bos = bos
        self.eos = eos
        self.unknown = unknown
        self.min_count = min_count
        self.max_symbols = max_symbols
        self.symbols: list[Symbol] | None = None
        self._ids: dict[Symbol, int] = {}
        self._pattern: re.Pattern[str] | None = None
        if split not in ("characters", "words", "items"):
            try:
                self._pattern = re.compile(split)
            except re.error as error:
                raise ValueError(
                    "split: expected 'characters', 'words', 'items' or a regular expression, "
                    f"got {split!r} ({error})"
                ) from None

    @property
    def lossy(self) -> str:
        """White space between words, and symbols outside the vocabulary where they become unk."""
        losses = ["the kind of white space between words"] if self.split == "words" else []
        losses += ["symbols outside the vocabulary"] if self.unknown == "unk" else []
        return " and ".join(losses)

    @property
    def is_fitted(self) -> bool:
        """True once there is a vocabulary."""
        return self.symbols is not None

    @property
    def n_ids(self) -> int:
        """Size of an embedding table: the special ids and the symbols.

        Raises:
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        assert self.symbols is not None
        return N_SPECIAL + len(self.symbols)

    def fit(self, samples: Iterable[Any]) -> Self:
        """Make the vocabulary of the training split; the same for any order of the samples.

        Raises:
            SampleError: If a sample can't be split, with its index.
        """
        counts = self._count(samples)
        kept = [symbol for symbol, count in counts.items() if count >= self.min_count]
        kept.sort(key=lambda symbol: (-counts[symbol], isinstance(symbol, str), symbol))
        self._set_symbols(kept[: self.max_symbols])
        return self

    def extend(self, samples: Iterable[Any]) -> list[Symbol]:
        """Add the symbols of more samples behind the known ones, whose ids stay; returns the new ones.

        For transfer: load a tokenizer, extend it, and grow the embedding table to ``n_ids``.

        Raises:
            SampleError: If a sample can't be split, with its index.
        """
        self.require_fitted()
        assert self.symbols is not None
        counts = self._count(samples)
        new = [symbol for symbol in counts if symbol not in self._ids]
        new.sort(key=lambda symbol: (-counts[symbol], isinstance(symbol, str), symbol))
        self._set_symbols(self.symbols + new)
        return new

    def encode(self, sample: Any) -> Tokens:
        """Ids, ``(length,)`` int64.

        Raises:
            SampleError: On a sample of another type, one the pattern doesn't cover, or an unknown symbol.
            NotFittedError: Before ``fit``.
        """
        ids = [*([BOS_ID] if self.bos else []), *self.ids(sample), *([EOS_ID] if self.eos else [])]
        return Tokens(torch.tensor(ids, dtype=torch.int64))

    def ids(self, sample: Any) -> list[int]:
        """The ids of a sample's symbols, without bos and eos.

        Raises:
            SampleError: As ``encode``.
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        ids = []
        for position, symbol in self._split(sample):
            number = self._ids.get(symbol)
            if number is None:
                if self.unknown == "error":
                    raise SampleError(
                        f"unknown symbol {symbol!r} at position {position} (not among the "
                        f"{len(self._ids)} symbols fitted on the training split)",
                        sample=sample,
                    )
                number = UNK_ID
            ids.append(number)
        return ids

    def decode(self, tokens: Tokens) -> Any:
        """The string (or, with ``split="items"``, the list); pad, bos and eos ids are left out.

        Raises:
            SampleError: On an id outside the vocabulary.
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        assert self.symbols is not None
        symbols: list[Symbol] = []
        for position, number in enumerate(tokens.values.tolist()):
            if number >= self.n_ids:
                raise SampleError(
                    f"id {number} at position {position} is outside the {self.n_ids} ids there are"
                )
            if number == UNK_ID:
                symbols.append(UNK_SYMBOL)
            elif number >= N_SPECIAL:
                symbols.append(self.symbols[number - N_SPECIAL])
        if self.split == "items":
            return symbols
        return (" " if self.split == "words" else "").join(str(symbol) for symbol in symbols)

    def same(self, sample: Any, other: Any) -> bool:
        """Equality; of the elements, for items."""
        return list(sample) == list(other) if self.split == "items" else bool(sample == other)

    def state(self) -> dict[str, Any]:
        """Options and symbols."""
        return {
            "split": self.split,
            "bos": self.bos,
            "eos": self.eos,
            "unknown": self.unknown,
            "min_count": self.min_count,
            "max_symbols": self.max_symbols,
            "symbols": self.symbols,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer of ``state()``."""
        options = dict(state)
        symbols = options.pop("symbols")
        tokenizer = cls(**options)
        if symbols is not None:
            tokenizer._set_symbols(symbols)
        return tokenizer

    def _set_symbols(self, symbols: Sequence[Symbol]) -> None:
        self._ids = {symbol: N_SPECIAL + i for i, symbol in enumerate(symbols)}
        if len(self._ids) != len(symbols):
            raise ValueError("symbols: expected each once")
        self.symbols = list(symbols)

    def _count(self, samples: Iterable[Any]) -> Counter[Symbol]:
        counts: Counter[Symbol] = Counter()
        for index, sample in enumerate(samples):
            try:
                counts.update(symbol for _, symbol in self._split(sample))
            except SampleError as error:
                raise SampleError(error.reason, sample=sample, index=index) from None
        return counts

    def _split(self, sample: Any) -> list[tuple[int, Symbol]]:
        """Position and symbol; positions count characters, or words or items."""
        if self.split == "items":
            if isinstance(sample, str) or not isinstance(sample, Sequence):
                raise SampleError(f"expected a sequence of items, got {type(sample).__name__}", sample=sample)
            for position, symbol in enumerate(sample):
                # bool is an int, and would come back from JSON as another symbol
                if not isinstance(symbol, str | int) or isinstance(symbol, bool):
                    raise SampleError(
                        f"item at position {position} is {type(symbol).__name__}, expected str or int",
                        sample=sample,
                    )
            return list(enumerate(sample))
        if not isinstance(sample, str):
            raise SampleError(f"expected a string, got {type(sample).__name__}", sample=sample)
        if self.split == "words":
            return list(enumerate(sample.split()))
        if self._pattern is None:
            return list(enumerate(sample))
        if not self._pattern.groups:  # the fast way, if nothing lies between the matches
            found = self._pattern.findall(sample)
            if sum(map(len, found)) == len(sample):
                starts = accumulate(map(len, found), initial=0)
                return [(start, symbol) for start, symbol in zip(starts, found, strict=False) if symbol]
        pieces: list[tuple[int, Symbol]] = []
        end = 0
        for match in self._pattern.finditer(sample):
            if match.start() != end:
                break
            if match.end() > end:
                pieces.append((end, match.group()))
            end = match.end()
        if end != len(sample):
            raise SampleError(
                f"the symbol pattern matches nothing at position {end}, {sample[end]!r}", sample=sample
            )
        return pieces
