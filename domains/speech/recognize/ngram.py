"""n-gram language models of words or characters, with Witten-Bell smoothing.

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))

where h' is h without its first word, c counts and T(h) is how many different words follow h (Witten & Bell
1991; Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques", section 2.6). The lowest order is
spread evenly over the vocabulary and one word for all that were not seen.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.recognize.tokenizer import normalised

START, END = "<s>", "</s>"
Unit = Literal["words", "characters"]


class NgramModel:
    """Log-probabilities of the next word or character.

    Args:
        order: Words that are looked at, the next one among them.
        unit: Of words, or of characters (a space is one).

    Raises:
        UsageError: If the order is below 1, or the unit another.
    """

    def __init__(self, order: int = 3, unit: Unit = "words") -> None:
        if order < 1:
            raise UsageError(f"order: expected at least 1, got {order}")
        if unit not in ("words", "characters"):
            raise UsageError(f"unit: expected words or characters, got {unit!r}")
        self.order, self.unit = order, unit
        self.counts: dict[tuple[str, ...], Counter[str]] = {}
        self.vocabulary: set[str] = set()

    @property
    def start(self) -> tuple[str, ...]:
        """What stands before the first word."""
        return (START,) * (self.order - 1)

    def fit(self, texts: Iterable[str]) -> NgramModel:
        """Count texts, which replaces what was counted.

        Raises:
            DataError: If there is none.
        """
        counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for text in texts:
            items = self.split(text)
            if not items:
                continue
            line = [*self.start, *items, END]
            for i in range(self.order - 1, len(line)):
                for n in range(self.order):
                    counts[tuple(line[i - n : i])][line[i]] += 1
        if not counts:
            raise DataError("there is no text to make a language model of")
        self.counts = dict(counts)
        self.vocabulary = set(self.counts[()])
        return self

    def split(self, text: str) -> Sequence[str]:
        """The words or characters of a text."""
        return normalised(text).split() if self.unit == "words" else list(normalised(text))

    def log_probability(self, word: str, history: tuple[str, ...]) -> float:
        """Of ``word`` after ``history``, of which the last ``order - 1`` count."""
        probability = 1.0 / (len(self.vocabulary) + 1)
        history = history[len(history) - min(len(history), self.order - 1) :]
        for n in range(len(history) + 1):
            seen = self.counts.get(history[len(history) - n :])
            if seen is None:
                break
            total, kinds = seen.total(), len(seen)
            probability = (seen[word] + kinds * probability) / (total + kinds)
        return math.log(probability)

    def scored(self, word: str, history: tuple[str, ...]) -> tuple[float, tuple[str, ...]]:
        """The log-probability of the next word, and the history behind it."""
        keep = self.order - 1
        return self.log_probability(word, history), (*history, word)[-keep:] if keep else ()

    def perplexity(self, texts: Iterable[str]) -> float:
        """Of texts, their ends among the words."""
        total, n = 0.0, 0
        for text in texts:
            history = self.start
            for word in [*self.split(text), END]:
                value, history = self.scored(word, history)
                total += value
                n += 1
        return math.exp(-total / max(n, 1))

    def save(self, path: Path) -> None:
        """As JSON."""
        content = {
            "order": self.order,
            "unit": self.unit,
            "counts": [[list(history), dict(seen)] for history, seen in self.counts.items()],
        }
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> NgramModel:
        """What ``save`` wrote; or, of a ``.txt`` file with a sentence a line, a model of words of order 3.

        Raises:
            DataError: If it is neither.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: can't be read as a language model ({error})") from error
        if path.suffix.lower() == ".txt":
            try:
                return cls().fit(text.splitlines())
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
        try:
            content = json.loads(text)
            model = cls(int(content["order"]), content["unit"])
            model.counts = {tuple(history): Counter(seen) for history, seen in content["counts"]}
            model.vocabulary = set(model.counts[()])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no saved language model ({type(error).__name__}: {error}); "
                "give one, or a .txt file with a sentence a line"
            ) from error
        return model
