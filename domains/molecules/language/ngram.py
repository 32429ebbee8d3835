"""The baseline of a language model: how often a token followed the few before it."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate

from mambakit.domains.molecules.tokenizer import END, START


class NGram:
    """Tokens drawn by their counts after the longest context that was seen, of at most ``order - 1`` tokens.

    Args:
        order: Tokens of an n-gram.
    """

    def __init__(self, order: int = 6) -> None:
        self.order = order
        self._drawn: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}

    def fit(self, molecules: Iterable[Sequence[int]]) -> NGram:
        """Count.

        Args:
            molecules: Ids of each, START and END included.
        """
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for ids in molecules:
            ids = tuple(ids)
            for i in range(1, len(ids)):
                counts[ids[max(0, i - self.order + 1) : i]][ids[i]] += 1
        self._drawn = {
            context: (list(found), list(accumulate(found.values()))) for context, found in counts.items()
        }
        return self

    def sample(self, n: int, *, seed: int = 0, max_length: int = 512) -> list[list[int]]:
        """Ids of so many molecules, without START and END."""
        draw = random.Random(seed)
        return [self._one(draw, max_length) for _ in range(n)]

    def _one(self, draw: random.Random, max_length: int) -> list[int]:
        ids = [START]
        while len(ids) <= max_length:
            # every context met while sampling was seen in training: it ends as some n-gram there does
            tokens, sums = self._drawn[tuple(ids[max(0, len(ids) - self.order + 1) :])]
            token = draw.choices(tokens, cum_weights=sums)[0]
            if token == END:
                break
            ids.append(token)
        return ids[1:]
