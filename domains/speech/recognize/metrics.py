"""Word and character error rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mambakit.domains.speech.recognize.tokenizer import normalised


class ErrorRates(NamedTuple):
    """Errors of transcripts over what was said, in shares of 1.

    Attributes:
        wer: Substituted, deleted and inserted words over words said (Levenshtein); may exceed 1.
        cer: The same of characters, spaces among them.
        substitutions, deletions, insertions: Words.
        words: That were said.
    """

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int


def error_rates(said: Sequence[str], written: Sequence[str]) -> ErrorRates:
    """Over all transcripts together, without regard to case, by jiwer.

    Raises:
        ValueError: If the numbers of transcripts differ, or nothing was said in one.
    """
    import jiwer

    said, written = [normalised(text) for text in said], [normalised(text) for text in written]
    if len(said) != len(written):
        raise ValueError(f"written: expected {len(said)} transcripts, got {len(written)}")
    if not said or not all(said):
        raise ValueError("said: every transcript must have a word, for rates are shares of words")
    words = jiwer.process_words(said, written)
    return ErrorRates(
        wer=words.wer,
        cer=jiwer.process_characters(said, written).cer,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        words=words.hits + words.substitutions + words.deletions,
    )
