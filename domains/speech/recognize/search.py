"""From log-probabilities of frames to symbols: the best path, or a beam of prefixes.

The beam holds texts, not paths: of each prefix the probability of all paths that end in a blank, and of
those that don't (Graves & Jaitly 2014, "Towards End-To-End Speech Recognition with Recurrent Neural
Networks", section 4; Hannun et al. 2014, arXiv:1408.2873, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mambakit.domains.speech.recognize.fusion import Fusion
from mambakit.domains.speech.recognize.prefixes import NEVER, Hypothesis, Prefix, Prefixes, log_add
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID


def best_path(log_probabilities: Tensor) -> Tensor:
    """The likeliest symbol of every frame, ``(..., n_frames)``, of ``(..., n_frames, n_symbols)``."""
    return log_probabilities.argmax(-1)


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
        self._texts, self._least = Prefixes(pieces, width, fusion), least
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the empty text."""
        self._beam: dict[Prefix, tuple[float, float]] = {self._texts.root(): (0.0, NEVER)}

    def feed(self, log_probabilities: Tensor) -> None:
        """Go on by ``(n_frames, n_symbols)``."""
        tried = log_probabilities > self._least
        tried[:, BLANK_ID] = False
        for frame, wanted in zip(log_probabilities.tolist(), tried, strict=True):
            self._frame(frame, wanted.nonzero()[:, 0].tolist())

    def _frame(self, values: list[float], symbols: list[int]) -> None:
        after: dict[Prefix, list[float]] = {}

        def add(prefix: Prefix, place: int, value: float) -> None:
            sums = after.setdefault(prefix, [NEVER, NEVER])
            sums[place] = log_add(sums[place], value)

        for prefix, (blank, other) in self._beam.items():
            total = log_add(blank, other)
            add(prefix, 0, total + values[BLANK_ID])
            if prefix.before is not None:
                add(prefix, 1, other + values[prefix.id])
            for symbol in symbols:
                value = (blank if symbol == prefix.id else total) + values[symbol]
                if value > NEVER:
                    add(self._texts.longer(prefix, symbol), 1, value)
        ranked = sorted(after.items(), key=lambda entry: -(log_add(*entry[1]) + entry[0].fusion.score))
        before = self._beam
        self._beam = {prefix: (sums[0], sums[1]) for prefix, sums in ranked[: self._texts.width]}
        self._texts.forget(before, self._beam)

    def hypotheses(self) -> list[Hypothesis]:
        """All texts of the beam as if the sound ended here, the best first."""
        found = []
        for prefix, sums in self._beam.items():
            value = log_add(*sums)
            score = value + self._texts.finished(prefix)
            found.append(Hypothesis(prefix.ids(), value, score))
        return sorted(found, key=lambda one: -one.score)


def beam_search(
    log_probabilities: Tensor, pieces: Sequence[str], *, width: int = 16, fusion: Fusion | None = None
) -> list[Hypothesis]:
    """The texts of a beam at the end of ``(n_frames, n_symbols)``, the best first."""
    beam = PrefixBeam(pieces, width=width, fusion=fusion)
    beam.feed(log_probabilities.detach().to("cpu", torch.float64))
    return beam.hypotheses()
