"""A Mamba language model of characters, and how a beam search asks it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from mambakit.core.language_model import LanguageModel
from mambakit.core.state import State
from mambakit.domains.speech.about import TEXT
from mambakit.domains.speech.recognize.ngram import END
from mambakit.domains.speech.recognize.tokenizer import CharacterTokenizer, normalised

EDGE_ID = 0
"""Stands before the first character of a text and behind its last; the tokenizer has no character there."""
_UNSEEN = math.log(1e-6)  # of a character that no training text has


class TextModel(LanguageModel):
    """``LanguageModel`` of characters, and its tokenizer beside it in its folder."""

    about = TEXT

    tokenizer: CharacterTokenizer

    def save_extra(self, folder: Path) -> None:
        """The tokenizer."""
        self.tokenizer.save(folder)

    def load_extra(self, folder: Path) -> None:
        """The tokenizer."""
        self.tokenizer = CharacterTokenizer.load(folder)


class _Place:
    """Behind a text: a state that is worked out when it is first asked for."""

    __slots__ = ("_before", "_id", "_read")

    def __init__(self, before: _Place | None, symbol: int) -> None:
        self._before, self._id = before, symbol
        self._read: tuple[list[float], State] | None = None

    def read(self, model: TextModel) -> tuple[list[float], State]:
        """Log-probabilities of what comes next, and the state."""
        if self._read is None:
            state = model.init_state(1) if self._before is None else self._before.read(model)[1]
            ids = torch.tensor([self._id], device=model.head.weight.device)
            logits, state = model.step(ids, state)
            self._read, self._before = (logits[0].double().log_softmax(0).tolist(), state), None
        return self._read


class CharacterScores:
    """What ``Fusion`` asks: the log-probability of each next character, in a state that goes on.

    Args:
        model: In evaluation mode.
    """

    unit: Literal["words", "characters"] = "characters"

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._ids = {c: i for i, c in enumerate(model.tokenizer.pieces) if i} | {END: EDGE_ID}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a saved ``TextModel``."""
        return cls(TextModel.from_pretrained(folder).eval())

    @property
    def start(self) -> _Place:
        """Before the first character."""
        return _Place(None, EDGE_ID)

    @torch.no_grad()
    def scored(self, item: str, place: Any) -> tuple[float, Any]:
        """The log-probability of a character, or of the end, at a place; and the place behind it."""
        symbol = self._ids.get(item)
        if symbol is None:
            return _UNSEEN, place
        return place.read(self._model)[0][symbol], _Place(place, symbol)

    def perplexity(self, texts: Iterable[str]) -> float:
        """A character, of texts with their ends."""
        total, n = 0.0, 0
        for text in texts:
            place = self.start
            for item in [*normalised(text), END]:
                value, place = self.scored(item, place)
                total, n = total + value, n + 1
        return math.exp(-total / max(n, 1))


def character_losses(model: TextModel, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Mean nats a character and how many there are, of texts ``(batch, length)`` with their ends."""
    before = torch.nn.functional.pad(ids, (1, 0), value=EDGE_ID)
    wanted = torch.nn.functional.pad(ids, (0, 1), value=EDGE_ID)  # padding is the edge, too
    logits, _ = model(before, lengths=lengths + 1)
    there = torch.arange(wanted.shape[1], device=ids.device) <= lengths[:, None]
    return model.loss(logits, wanted, there), there.sum()
