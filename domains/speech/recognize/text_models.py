"""Language models that a beam search can weigh, from where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from mambakit.domains.speech.recognize.ngram import NgramModel


class TextScores(Protocol):
    """What is asked of a language model.

    Attributes:
        unit: What its items are.
    """

    unit: Literal["words", "characters"]

    @property
    def start(self) -> Any:
        """The place before a text."""

    def scored(self, item: str, place: Any) -> tuple[float, Any]:
        """The log-probability of the next item, or of the end, at a place; and the place behind it."""


def load_text_model(path: Path) -> TextScores:
    """The network in a folder, or n-grams of a file.

    Raises:
        DataError: If it is neither.
    """
    if path.is_dir():
        from mambakit.domains.speech.language.model import CharacterScores

        return CharacterScores.load(path)
    return NgramModel.load(path)
