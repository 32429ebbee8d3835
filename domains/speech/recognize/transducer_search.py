"""Beam search of a transducer: texts, each with the probability of all its alignments so far.

Within a frame texts grow by one symbol a round, up to a limit, and a blank takes each to the next frame;
equal texts are one (Graves 2012, arXiv:1211.3711, section 2.5, made frame-synchronous as in Saon et al. 2020,
"Alignment-Length Synchronous Decoding for RNN Transducer").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambakit.core.state import State
from mambakit.domains.speech.recognize.fusion import Fusion
from mambakit.domains.speech.recognize.predictor import MOST_A_FRAME, Transducer
from mambakit.domains.speech.recognize.prefixes import NEVER, Hypothesis, Prefix, Prefixes, log_add
from mambakit.domains.speech.recognize.words import Spoken


class _Emitted(NamedTuple):
    """The symbols of a text's likeliest alignment, the last first."""

    before: _Emitted | None
    symbol: Spoken


class _Sum(NamedTuple):
    value: float = NEVER
    best: float = NEVER
    path: _Emitted | None = None

    def plus(self, other: _Sum) -> _Sum:
        likelier = other if other.best > self.best else self
        return _Sum(log_add(self.value, other.value), likelier.best, likelier.path)

    def on(self, value: float, path: _Emitted | None) -> _Sum:
        return _Sum(self.value + value, self.best + value, path)


class TransducerBeam:
    """A beam that goes on frame by frame.

    Args:
        model: The transducer.
        pieces: The text of every symbol.
        width: Texts that are kept.
        fusion: What else is weighed.
        least: Symbols of a log-probability below are not tried.

    Raises:
        UsageError: If the width is below 1.
    """

    def __init__(
        self,
        model: Transducer,
        pieces: Sequence[str],
        *,
        width: int = 8,
        fusion: Fusion | None = None,
        least: float = -9.0,
    ) -> None:
        self._model, self._least = model, least
        self._texts = Prefixes(pieces, width, fusion)
        root = self._texts.root()
        root.state = model.init_state(1)
        self._beam: dict[Prefix, _Sum] = {root: _Sum(0.0, 0.0)}
        self._n = 0

    @torch.no_grad()
    def feed(self, x: Tensor) -> None:
        """Go on by ``(n_frames, d_encoder)``."""
        for sound in self._model.of_sound(x):
            self._frame(sound)
            self._n += 1

    def _frame(self, sound: Tensor) -> None:
        growing, ended = self._beam, {}  # type: tuple[dict[Prefix, _Sum], dict[Prefix, _Sum]]
        for n in range(MOST_A_FRAME + 1):
            rows = self._model.log_probabilities(sound, self._read(growing)).tolist()
            longer: dict[Prefix, _Sum] = {}
            for (prefix, total), values in zip(growing.items(), rows, strict=True):
                ended[prefix] = ended.get(prefix, _Sum()).plus(total.on(values[0], total.path))
                if n == MOST_A_FRAME:
                    continue
                for symbol, value in enumerate(values):
                    if symbol and value > self._least:
                        spoken = Spoken(symbol, self._n, self._n + 1, value)
                        said = total.on(value, _Emitted(total.path, spoken))
                        text = self._texts.longer(prefix, symbol)
                        longer[text] = longer.get(text, _Sum()).plus(said)
            growing = self._best(longer)
            ended = self._best(ended)
            if not growing or (len(ended) >= self._texts.width and not self._hopeful(growing, ended)):
                break
        self._texts.forget(self._beam, ended)
        self._beam = ended

    def _hopeful(self, growing: dict[Prefix, _Sum], ended: dict[Prefix, _Sum]) -> bool:
        """Whether a text that still grows is better than the last that would be kept."""
        least = min(total.value + prefix.fusion.score for prefix, total in ended.items())
        return any(total.value + prefix.fusion.score > least for prefix, total in growing.items())

    def _best(self, texts: dict[Prefix, _Sum]) -> dict[Prefix, _Sum]:
        ranked = sorted(texts.items(), key=lambda entry: -(entry[1].value + entry[0].fusion.score))
        return dict(ranked[: self._texts.width])

    def _read(self, texts: dict[Prefix, _Sum]) -> Tensor:
        """What the prediction network makes of texts, ``(n, d_model)``; new ones are run together."""
        new = [prefix for prefix in texts if prefix.state is None]
        if new:
            before = State.cat([prefix.before.state for prefix in new])  # type: ignore[union-attr, misc]
            ids = torch.tensor([prefix.id for prefix in new], device=self._model.out.weight.device)
            after = self._model.advance(ids, before)
            for i, prefix in enumerate(new):
                prefix.state = after.index_select([i])
        return torch.cat([prefix.state["text"] for prefix in texts])  # type: ignore[index]

    def hypotheses(self) -> list[Hypothesis]:
        """All texts of the beam as if the sound ended here, the best first."""
        found = [
            Hypothesis(prefix.ids(), total.value, total.value + self._texts.finished(prefix))
            for prefix, total in self._beam.items()
        ]
        return sorted(found, key=lambda one: -one.score)

    def best(self) -> list[Spoken]:
        """The symbols of the best text, where its likeliest alignment says them."""
        total = max(self._beam.items(), key=lambda one: one[1].value + self._texts.finished(one[0]))[1]
        found: list[Spoken] = []
        at = total.path
        while at is not None:
            found.append(at.symbol)
            at = at.before
        return found[::-1]
