"""From log-probabilities of frames to symbols: the best path, or a beam of prefixes.

The beam holds texts, not paths: of each prefix the probability of all paths that end in a blank, and of
those that don't (Graves & Jaitly 2014, "Towards End-To-End Speech Recognition with Recurrent Neural
Networks", section 4; Hannun et al. 2014, arXiv:1408.2873, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.domains.speech.recognize.fusion import Fusion, FusionState
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID

_NEVER = -math.inf


class Hypothesis(NamedTuple):
    """One text of a beam.

    Attributes:
        ids: Its symbols.
        log_probability: Of the sound, given them.
        score: With what else is weighed; the beam's order.
    """

    ids: list[int]
    log_probability: float
    score: float


def best_path(log_probabilities: Tensor) -> Tensor:
    """The likeliest symbol of every frame, ``(..., n_frames)``, of ``(..., n_frames, n_symbols)``."""
    return log_probabilities.argmax(-1)


class _Prefix:
    """A text, as its last symbol and the text before; one object a text, as long as anything uses it."""

    __slots__ = ("__weakref__", "before", "fusion", "id", "longer")

    def __init__(self, before: _Prefix | None, symbol: int, fusion: FusionState) -> None:
        self.before, self.id, self.fusion = before, symbol, fusion
        self.longer: WeakValueDictionary[int, _Prefix] = WeakValueDictionary()

    def ids(self) -> list[int]:
        found: list[int] = []
        at: _Prefix | None = self
        while at is not None and at.before is not None:
            found.append(at.id)
            at = at.before
        return found[::-1]


class PrefixBeam:
    """A beam that goes on frame by frame, so that it serves a stream as well as a whole recording.

    Args:
        pieces: The text of every symbol.
        width: Texts that are kept.
        fusion: What else is weighed.
        least: Symbols of a log-probability below are not tried in a frame.

    Raises:
        UsageError: If the width is below 1.
    """

    def __init__(
        self, pieces: Sequence[str], *, width: int = 16, fusion: Fusion | None = None, least: float = -9.0
    ) -> None:
        if width < 1:
            raise UsageError(f"beam: expected at least 1, got {width}")
        self._pieces, self._width, self._least = pieces, width, least
        self._fusion = fusion or Fusion()
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the empty text."""
        root = _Prefix(None, BLANK_ID, self._fusion.start())
        self._beam: dict[_Prefix, tuple[float, float]] = {root: (0.0, _NEVER)}

    def feed(self, log_probabilities: Tensor) -> None:
        """Go on by ``(n_frames, n_symbols)``."""
        tried = log_probabilities > self._least
        tried[:, BLANK_ID] = False
        for frame, wanted in zip(log_probabilities.tolist(), tried, strict=True):
            self._frame(frame, wanted.nonzero()[:, 0].tolist())

    def _frame(self, values: list[float], symbols: list[int]) -> None:
        after: dict[_Prefix, list[float]] = {}

        def add(prefix: _Prefix, place: int, value: float) -> None:
            sums = after.setdefault(prefix, [_NEVER, _NEVER])
            sums[place] = _log_add(sums[place], value)

        for prefix, (blank, other) in self._beam.items():
            total = _log_add(blank, other)
            add(prefix, 0, total + values[BLANK_ID])
            if prefix.before is not None:
                add(prefix, 1, other + values[prefix.id])
            for symbol in symbols:
                value = (blank if symbol == prefix.id else total) + values[symbol]
                if value > _NEVER:
                    add(self._longer(prefix, symbol), 1, value)
        ranked = sorted(after.items(), key=lambda entry: -(_log_add(*entry[1]) + entry[0].fusion.score))
        self._beam = {prefix: (sums[0], sums[1]) for prefix, sums in ranked[: self._width]}

    def _longer(self, prefix: _Prefix, symbol: int) -> _Prefix:
        longer = prefix.longer.get(symbol)
        if longer is None:
            longer = _Prefix(prefix, symbol, self._fusion.extended(prefix.fusion, self._pieces[symbol]))
            prefix.longer[symbol] = longer
        return longer

    def hypotheses(self) -> list[Hypothesis]:
        """All texts of the beam as if the sound ended here, the best first."""
        found = []
        for prefix, sums in self._beam.items():
            value = _log_add(*sums)
            score = value + self._fusion.finished(prefix.fusion).score
            found.append(Hypothesis(prefix.ids(), value, score))
        return sorted(found, key=lambda one: -one.score)


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == _NEVER else a + math.log1p(math.exp(b - a))


def beam_search(
    log_probabilities: Tensor, pieces: Sequence[str], *, width: int = 16, fusion: Fusion | None = None
) -> list[Hypothesis]:
    """The texts of a beam at the end of ``(n_frames, n_symbols)``, the best first."""
    beam = PrefixBeam(pieces, width=width, fusion=fusion)
    beam.feed(log_probabilities.detach().to("cpu", torch.float64))
    return beam.hypotheses()
