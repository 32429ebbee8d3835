"""Instructions as numbers of words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.robotics.policy.config import PolicyConfig, Words

MOST_WORDS = 32
_UNKNOWN = 1
_FIRST = 2


class WordNumbers:
    """Words of an instruction to numbers: 0 is no word, 1 one that training never said.

    Args:
        kind: ``hash`` or ``vocabulary``.
        n_words: Rows of the table of hashed words.
        instructions: Of the training data; they are the vocabulary.
    """

    def __init__(self, kind: Words, n_words: int, instructions: Iterable[str]) -> None:
        self.kind, self.n_words = kind, n_words
        known = sorted({word for text in instructions for word in split_words(text)})
        self.vocabulary = {word: _FIRST + i for i, word in enumerate(known)}

    @classmethod
    def of(cls, config: PolicyConfig, instructions: Sequence[str]) -> WordNumbers:
        """What a policy's config says."""
        return cls(config.words, config.n_words, instructions)

    @property
    def size(self) -> int:
        """Rows of the table, that of no word among them."""
        return self.n_words + _FIRST if self.kind == "hash" else len(self.vocabulary) + _FIRST

    def __call__(self, text: str | None) -> NDArray[np.int64]:
        """``(32,)``: the instruction's first words, then zeros; all zeros for none."""
        numbers = np.zeros(MOST_WORDS, dtype=np.int64)
        for i, word in enumerate(split_words(text or "")[:MOST_WORDS]):
            if self.kind == "hash":  # CRC-32 is the same in every process, unlike Python's own hash
                numbers[i] = _FIRST + zlib.crc32(word.encode()) % self.n_words
            else:
                numbers[i] = self.vocabulary.get(word, _UNKNOWN)
        return numbers


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())
