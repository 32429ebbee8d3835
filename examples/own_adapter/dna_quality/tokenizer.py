"""The data side: a read to ids and back."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch

from mambakit.core.adapters import SampleError, Tokenizer, Tokens

LETTERS = "ACGTN"
# FASTQ writes a Phred score as the character of code 33 + score
QUALITY_OFFSET = 33
MAX_QUALITY = 93


class Read(NamedTuple):
    """One read: letters, and for each letter the character of its quality score."""

    sequence: str
    quality: str


class DnaTokenizer(Tokenizer[Read]):
    """Reads to ids ``(length, 2)``: the letter (A C G T N are 0 to 4) and its Phred score (0 to 93)."""

    kind = "dna-quality"

    def encode(self, sample: Read) -> Tokens:
        """Ids of a read.

        Raises:
            SampleError: If it is no read, a letter or quality character can't be, or there are more of
                one than of the other.
        """
        if not isinstance(sample, Read):
            raise SampleError(f"expected a Read, got {type(sample).__name__}", sample=sample)
        sequence, quality = sample
        if len(sequence) != len(quality):
            raise SampleError(f"{len(sequence)} letters, but {len(quality)} quality scores", sample=sample)
        for position, (letter, mark) in enumerate(zip(sequence, quality, strict=True)):
            if letter not in LETTERS:
                raise SampleError(
                    f"letter {letter!r} at position {position} is none of {LETTERS}", sample=sample
                )
            if not 0 <= ord(mark) - QUALITY_OFFSET <= MAX_QUALITY:
                raise SampleError(
                    f"quality {mark!r} at position {position} is no Phred+33 character", sample=sample
                )
        letters = [LETTERS.index(letter) for letter in sequence]
        scores = [ord(mark) - QUALITY_OFFSET for mark in quality]
        return Tokens(torch.tensor([letters, scores], dtype=torch.int64).T.contiguous())

    def decode(self, tokens: Tokens) -> Read:
        """The read."""
        pairs = tokens.values.tolist()
        return Read(
            "".join(LETTERS[letter] for letter, _ in pairs),
            "".join(chr(score + QUALITY_OFFSET) for _, score in pairs),
        )

    def state(self) -> dict[str, Any]:
        """Nothing: it learns nothing."""
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """A new one."""
        return cls()
