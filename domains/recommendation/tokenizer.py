"""Events as ids: the item, and how long after the event before it happened; features as words.

Index 0 to n_items - 1 is an item, then come START, which every history begins with, and UNKNOWN, an item that
the catalogue does not have. A gap is a bin: 0 for not known, 1 for the first event, 2 for at once, and then
one for every doubling of seconds.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from mambakit.core.adapters import SampleError, Tokenizer, Tokens
from mambakit.core.errors import DataError
from mambakit.domains.recommendation.counting import events_until
from mambakit.domains.recommendation.interactions import Interactions

N_GAP_BINS = 36
_FIRST, _AT_ONCE = 1, 2
_TITLE = "title"
_MOST_WORDS = 32
_NUMBER_BINS = 8
_LEAST_COUNT = 2


class History(NamedTuple):
    """What a user did: items by name, and when, in seconds; without times all gaps are unknown."""

    items: Sequence[str]
    time: ArrayLike | None = None


class Words:
    """Features of items or users as words of a fixed vocabulary; word 0 is none.

    A category is a word, of several (``Comedy|Drama``) each; a number is the word of its bin; a ``title`` is
    its words. A word that was not there at ``fit`` is left out, so new items are known by what they share.
    """

    def __init__(
        self, index: Mapping[str, int] | None = None, edges: Mapping[str, list[float]] | None = None
    ):
        self.index = dict(index or {})
        self.edges = {name: list(values) for name, values in (edges or {}).items()}

    def __len__(self) -> int:
        return len(self.index)

    def fit(self, features: pd.DataFrame | None) -> Self:
        """Learn the vocabulary: words of at least two rows, and quantile bins of numbers."""
        self.index, self.edges = {}, {}
        if features is None:
            return self
        for name in features.columns:
            if pd.api.types.is_numeric_dtype(features[name]) and not _is_tag(features[name]):
                found = features[name].dropna().quantile(np.linspace(0, 1, _NUMBER_BINS + 1)[1:-1])
                self.edges[str(name)] = sorted(set(found.astype(float)))
        counts: Counter[str] = Counter()
        for row, code, words in self._spelled(features):
            of_rows = np.unique(row * len(words) + code) % max(1, len(words))  # twice in a title is one row
            counts.update(dict(zip(words, np.bincount(of_rows, minlength=len(words)).tolist(), strict=True)))
        kept = sorted(word for word, n in counts.items() if n >= _LEAST_COUNT)
        self.index = {word: i + 1 for i, word in enumerate(kept)}
        return self

    def encode(self, features: pd.DataFrame | None, n: int) -> NDArray[np.int64]:
        """``(n, at most 32)``, the words of each row, then zeros."""
        if features is None or not self.index:
            return np.zeros((n, 0), dtype=np.int64)
        rows, ids = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for row, code, words in self._spelled(features):
            known = np.array([self.index.get(word, 0) for word in words], dtype=np.int64)[code]
            rows.append(row[known > 0])
            ids.append(known[known > 0])
        whole = np.concatenate(rows)
        order = np.argsort(whole, kind="stable")  # the columns' order within a row
        whole = whole[order]
        place = np.arange(len(whole)) - np.searchsorted(whole, whole)
        there = place < _MOST_WORDS
        made = np.zeros((n, int(place[there].max(initial=-1)) + 1), dtype=np.int64)
        made[whole[there], place[there]] = np.concatenate(ids)[order][there]
        return made

    def _spelled(self, features: pd.DataFrame) -> Iterator[_Spelled]:
        return (self._column(str(name), features[name]) for name in features.columns)

    def _column(self, name: str, values: pd.Series) -> _Spelled:
        if name in self.edges:
            try:
                numbers = values.astype(float)
            except (TypeError, ValueError):
                raise DataError(
                    f"features: column {name!r} held numbers in training, but text here"
                ) from None
            row = np.flatnonzero(values.notna())
            bins = np.searchsorted(self.edges[name], numbers.to_numpy()[row], side="right")
            return _Spelled(row, bins, [f"{name}={b}" for b in range(len(self.edges[name]) + 1)])
        if _is_tag(values):
            row = np.flatnonzero(values.to_numpy())
            return _Spelled(row, np.zeros(len(row), dtype=np.int64), [name])
        row = np.flatnonzero(values.notna())
        texts = [_spell(value) for value in values.to_numpy()[row]]
        if name == _TITLE:
            words = [re.findall(r"\w+", text.lower()) for text in texts]
            row = np.repeat(row, [len(one) for one in words])
            texts = [f"title:{word}" for one in words for word in one]
        else:
            row = row[[bool(text) for text in texts]]
            texts = [f"{name}={text}" for text in texts if text]
        code, names = pd.factorize(np.array(texts, dtype=object))
        return _Spelled(row, code, list(names))


class _Spelled(NamedTuple):
    """The words of a column: whose each is, ``(n,)``, and which of ``words``, ``(n,)``; row by row."""

    row: NDArray[np.int64]
    code: NDArray[np.int64]
    words: list[str]


def _spell(value: object) -> str:
    """Categories that are numbers in one table may be text in another: 7.0 is ``7``."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _is_tag(values: pd.Series) -> bool:
    return values.dtype == np.int8  # as features are read: 0 or 1, from lists such as Comedy|Drama


class EventTokenizer(Tokenizer[History]):
    """Histories to ``(item, gap)`` ids with times; see the module.

    Args:
        items: Names of the catalogue.
        gap_unit: Seconds of an ordinary gap.
        item_words, user_words: Vocabularies of their features.
    """

    kind = "recommendation-events"
    lossy = "items outside the catalogue, and fractions of gaps"

    def __init__(
        self,
        items: Sequence[str] = (),
        gap_unit: float = 1.0,
        item_words: Words | None = None,
        user_words: Words | None = None,
    ) -> None:
        self.items = [str(name) for name in items]
        self.index = {name: i for i, name in enumerate(self.items)}
        self.gap_unit = gap_unit
        self.item_words, self.user_words = item_words or Words(), user_words or Words()

    @property
    def start(self) -> int:
        """Index of what every history begins with."""
        return len(self.items)

    @property
    def unknown(self) -> int:
        """Index of items that are not in the catalogue."""
        return len(self.items) + 1

    @property
    def is_fitted(self) -> bool:
        """Whether there is a catalogue."""
        return bool(self.items)

    @classmethod
    def of(cls, interactions: Interactions, train_end: NDArray[np.int64]) -> EventTokenizer:
        """Learn the catalogue, its features' words and the ordinary gap of the training events.

        Words are those of items and users that have a training event: no other's would ever be learned.
        """
        trained = events_until(interactions, train_end)
        items, users = np.unique(interactions.item[trained]), np.unique(interactions.user[trained])
        gaps = gaps_of(interactions)[trained]
        ordinary = gaps[gaps > 0]
        return cls(
            [str(name) for name in interactions.items],
            float(np.median(ordinary)) if len(ordinary) else 1.0,
            Words().fit(
                None if interactions.item_features is None else interactions.item_features.iloc[items]
            ),
            Words().fit(
                None if interactions.user_features is None else interactions.user_features.iloc[users]
            ),
        )

    def encode(self, sample: History) -> Tokens:
        """START and the history, ``(1 + length, 2)`` int64."""
        self.require_fitted()
        items = [self.index.get(str(name), self.unknown) for name in sample.items]
        time = np.full(len(items), np.nan) if sample.time is None else np.asarray(sample.time, dtype=float)
        if time.shape != (len(items),):
            raise SampleError(f"time: expected one for each of {len(items)} events, got shape {time.shape}")
        steps = np.diff(time)
        if (steps < 0).any():
            at = int(np.flatnonzero(steps < 0)[0]) + 1
            raise SampleError(
                f"time: event {at} ({sample.items[at]}) is before event {at - 1}; sort events by time"
            )
        gaps = np.concatenate([[-1.0 if np.isfinite(time[:1]).all() else np.nan], steps])[: len(items)]
        bins = np.concatenate([[0], gap_bins(gaps)])
        values = np.stack([np.array([self.start, *items]), bins], 1)
        return Tokens(torch.from_numpy(values))

    def decode(self, tokens: Tokens) -> History:
        """The items by name; times begin at zero and follow the bins."""
        ids, bins = tokens.values[1:, 0].tolist(), tokens.values[1:, 1].numpy()
        gaps = np.where(bins > _AT_ONCE, 2.0 ** (bins - _AT_ONCE - 1), 0.0)
        known = bool((bins > 0).all())
        return History(
            [self.items[i] if i < len(self.items) else "" for i in ids], gaps.cumsum() if known else None
        )

    def state(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        words = {"item": self.item_words, "user": self.user_words}
        kept = {name: {"index": one.index, "edges": one.edges} for name, one in words.items()}
        return {"items": self.items, "gap_unit": self.gap_unit, "words": kept}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of ``state``."""
        words = (Words(**state["words"][name]) for name in ("item", "user"))
        return cls(state["items"], state["gap_unit"], *words)


def gap_bins(gaps: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bins of gaps in seconds: NaN is not known, below zero the first event."""
    known = np.nan_to_num(gaps, nan=0.0).clip(min=0)
    doubled = np.floor(np.log2(known.clip(min=1.0))).astype(np.int64) + _AT_ONCE + 1
    bins = np.where(known > 0, doubled.clip(max=N_GAP_BINS - 1), _AT_ONCE)
    return np.where(np.isnan(gaps), 0, np.where(gaps < 0, _FIRST, bins)).astype(np.int64)


def gaps_of(interactions: Interactions, events: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Seconds since the user's event before; -1 for the first, NaN where not known.

    Args:
        interactions: All events.
        events: Of which, places of events; all by default.
    """
    places = np.arange(len(interactions)) if events is None else events
    time = interactions.time[places]
    gaps = time - interactions.time[places - 1]
    first = interactions.offsets[interactions.user[places]] == places
    return np.where(first, np.where(np.isnan(time), np.nan, -1.0), gaps)


def bin_elapsed(unit: float) -> NDArray[np.float32]:
    """What each gap bin multiplies dt by, ``(n_bins,)``: 1 for an ordinary gap, its logarithm elsewhere."""
    seconds = 1.5 * 2.0 ** (np.arange(N_GAP_BINS) - _AT_ONCE - 1)
    drive = np.log1p(seconds / unit) / math.log(2)
    drive[:_AT_ONCE] = 1.0
    drive[_AT_ONCE] = 0.0
    return drive.clip(0.1, 16.0).astype(np.float32)
