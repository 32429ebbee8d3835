"""What the beams share: texts as a tree of their beginnings, with what is weighed beside the sound."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from mambakit.core.errors import UsageError
from mambakit.core.state import State
from mambakit.domains.speech.recognize.fusion import Fusion, FusionState
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID

NEVER = -math.inf
_FORGOTTEN = FusionState(math.nan, math.nan, None, "", ())


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


class Prefix:
    """A text, as its last symbol and the text before; one object a text, as long as anything uses it.

    Attributes:
        before: The text before; None of the empty one.
        id: The last symbol.
        fusion: What is weighed beside the sound.
        state: Where a network that reads the text stands behind it; None until it was run.
    """

    __slots__ = ("__weakref__", "before", "fusion", "id", "longer", "state")

    def __init__(self, before: Prefix | None, symbol: int, fusion: FusionState) -> None:
        self.before, self.id, self.fusion = before, symbol, fusion
        self.state: State | None = None
        self.longer: WeakValueDictionary[int, Prefix] = WeakValueDictionary()

    def ids(self) -> list[int]:
        """All symbols."""
        found: list[int] = []
        at: Prefix | None = self
        while at is not None and at.before is not None:
            found.append(at.id)
            at = at.before
        return found[::-1]


class Prefixes:
    """The tree, which weighs each new text once.

    Args:
        pieces: The text of every symbol.
        width: Texts that a beam keeps.
        fusion: What is weighed.

    Raises:
        UsageError: If the width is below 1.
    """

    def __init__(self, pieces: Sequence[str], width: int, fusion: Fusion | None) -> None:
        if width < 1:
            raise UsageError(f"beam: expected at least 1, got {width}")
        self.pieces, self.width, self.fusion = pieces, width, fusion or Fusion()

    def root(self) -> Prefix:
        """The empty text."""
        return Prefix(None, BLANK_ID, self.fusion.start())

    def longer(self, prefix: Prefix, symbol: int) -> Prefix:
        """The text with one more symbol."""
        longer = prefix.longer.get(symbol)
        if longer is None:
            longer = Prefix(prefix, symbol, _FORGOTTEN)
            prefix.longer[symbol] = longer
        if longer.fusion is _FORGOTTEN:
            longer.fusion = self.fusion.extended(prefix.fusion, self.pieces[symbol])
        return longer

    def forget(self, before: Collection[Prefix], kept: Collection[Prefix]) -> None:
        """Let go of what networks hold of texts that are in the beam no more: of an hour, gigabytes.

        A text that comes back is read again.

        Args:
            before: The beam before.
            kept: The beam now; what was tried on the way to it lies between the two.
        """
        left = [prefix for prefix in before if prefix not in kept]
        for prefix in kept:
            at = prefix.before
            while at is not None and at not in kept and at not in before and at.fusion is not _FORGOTTEN:
                left.append(at)
                at = at.before
        for prefix in left:
            prefix.fusion, prefix.state = _FORGOTTEN, None

    def finished(self, prefix: Prefix) -> float:
        """What is added to the sound's log-probability if the text ends here."""
        return self.fusion.finished(prefix.fusion).score


def log_add(a: float, b: float) -> float:
    """``log(exp(a) + exp(b))``."""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))
