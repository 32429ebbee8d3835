"""A simulated shop whose best possible recommendations are known: the data set that comes with the package.

Each item belongs to one of ten clusters. A user's visits are sessions; within one, half of the events follow
the last item (a Markov chain inside its cluster); the others, and the first of each session, are drawn from
the user's taste, which likes some clusters and some of their items. A taste is one of twelve, hidden, and may
drift to another when a session begins.

So what comes next depends on the last item, and through the taste on all events before it. The probability
of every item as the next one, given all a recommender can see, follows from a filter over the hidden taste
(the forward algorithm of a hidden Markov model; Rabiner 1989, equations 19 to 21): no model can be better in
expectation. ``Shop.scores`` gives it, so a model's NDCG stands beside the highest there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.domains.recommendation.interactions import Interactions

_BREAK_S = (
    3600.0  # a longer gap begins a session: within one they are at most half an hour, between at least four
)
_WORDS = {
    "kettle": "kitchen", "lamp": "lighting", "boot": "shoes", "novel": "books", "spade": "garden",
    "violin": "music", "puzzle": "toys", "tent": "camping", "scarf": "clothes", "brush": "painting",
}  # fmt: skip
_QUALITIES = ("small", "large", "red", "blue", "green", "plain", "old", "new", "light", "heavy")


@dataclass(frozen=True, eq=False)
class Shop:
    """What the shop's events are drawn from.

    Attributes:
        cluster: Of each item, ``(n_items,)``.
        follow: ``(n_items, n_items)``: which item follows which within a session; rows sum to one, inside a
            cluster, never the item itself.
        draws: ``(n_tastes, n_items)``: which items a taste draws; rows sum to one.
        drift: ``(n_tastes, n_tastes)``: tastes from session to session; rows sum to one.
        follows: Probability that an event inside a session follows the last one, rather than the taste.
        ends: Probability that the next event begins another session.
    """

    cluster: NDArray[np.int64]
    follow: NDArray[np.float64]
    draws: NDArray[np.float64]
    drift: NDArray[np.float64]
    follows: float = 0.5
    ends: float = 0.2

    @property
    def names(self) -> list[str]:
        """The items' names."""
        return [f"i{number:03d}" for number in range(len(self.cluster))]

    def simulate(self, n_users: int, seed: int) -> Interactions:
        """Histories of 5 to 120 events, about 30 on average, from half a year; the same for the same seed."""
        rng = np.random.default_rng(seed)
        lengths = np.clip(np.exp(3.1 + 0.75 * rng.standard_normal(n_users)), 5, 120).astype(np.int64)
        steps = int(lengths.max())
        items = np.zeros((n_users, steps), dtype=np.int64)
        gaps = np.zeros((n_users, steps))
        taste = rng.integers(len(self.draws), size=n_users)
        drifted, drawn, followed = _Draws(self.drift), _Draws(self.draws), _Draws(self.follow)
        for step in range(steps):  # all users at once; what lies past a user's length is cut off
            begins = rng.random(n_users) < self.ends if step else np.ones(n_users, dtype=bool)
            if step:
                taste = np.where(begins, drifted(rng, taste), taste)
            fresh = drawn(rng, taste)
            follower = followed(rng, items[:, step - 1]) if step else fresh
            follows = ~begins & (rng.random(n_users) < self.follows)
            items[:, step] = np.where(follows, follower, fresh)
            within = np.clip(120 * np.exp(0.8 * rng.standard_normal(n_users)), 5, 1800)
            between = 4 * 3600 + 2.5 * 86400 * rng.exponential(size=n_users)
            gaps[:, step] = np.round(np.where(begins, between, within))
        gaps[:, 0] = np.round(1.7e9 + 180 * 86400 * rng.random(n_users))
        seen = np.arange(steps) < lengths[:, None]
        return Interactions(
            users=np.array([f"u{number:04d}" for number in range(n_users)]),
            items=np.array(self.names),
            user=np.repeat(np.arange(n_users), lengths),
            item=items[seen],
            time=np.cumsum(gaps, axis=1)[seen],
            item_features=self.features(),
        )

    def features(self) -> pd.DataFrame:
        """title, category (the cluster by name) and price (which tells the cluster roughly) of each item."""
        rng = np.random.default_rng(len(self.cluster))
        nouns = list(_WORDS)
        own = [nouns[cluster % len(nouns)] for cluster in self.cluster.tolist()]
        quality = rng.integers(len(_QUALITIES), size=(len(own), 2))
        titles = [
            f"{_QUALITIES[one]} {_QUALITIES[other]} {noun}"
            for (one, other), noun in zip(quality.tolist(), own, strict=True)
        ]
        prices = 5.0 * 1.4**self.cluster * np.exp(0.3 * rng.standard_normal(len(own)))
        categories = [_WORDS[noun] for noun in own]
        return pd.DataFrame(
            {
                "title": pd.Series(titles, dtype=object),
                "category": pd.Series(categories, dtype=object),
                "price": prices.round(2),
            }
        )

    def probabilities(self, interactions: Interactions, events: NDArray[np.int64]) -> NDArray[np.float64]:
        """``(len(events), n_items)``: of each item in place of each event, given the user's events before it.

        Items are found by name: of a catalogue that lacks some, the columns that are there.

        Raises:
            DataError: If an item is none of the shop's.
        """
        own = pd.Index(self.names).get_indexer(pd.Index(interactions.items.tolist()))
        if (own < 0).any():
            name = str(interactions.items[int((own < 0).argmax())])
            raise DataError(f"the simulated shop has no item {name!r}: its oracle knows its own events only")
        events = np.asarray(events, dtype=np.int64)
        item = own[interactions.item]
        first = interactions.offsets[interactions.user[events]]
        belief = self._beliefs(interactions, item)[events]
        moved = belief @ self.drift
        last = item[np.maximum(events - 1, 0)]
        fresh = (1 - self.ends) * (1 - self.follows) * belief + self.ends * moved
        found = fresh @ self.draws + (1 - self.ends) * self.follows * self.follow[last]
        start = events == first
        found[start] = belief[start] @ self.draws
        return found[:, own]

    def scores(self, interactions: Interactions, events: NDArray[np.int64]) -> Tensor:
        """The same as a scorer gives it, ``(len(events), n_items)`` float32."""
        return torch.from_numpy(self.probabilities(interactions, events).astype(np.float32))

    def _beliefs(self, interactions: Interactions, item: NDArray[np.int64]) -> NDArray[np.float64]:
        """``(n_events, n_tastes)``: what the events before each say about the taste at the one before it."""
        offsets = interactions.offsets
        belief = np.full((len(item), len(self.draws)), 1 / len(self.draws))
        gap = np.diff(interactions.time, prepend=np.nan)
        for step in range(int(np.diff(offsets).max(initial=0)) - 1):
            at = offsets[:-1][np.diff(offsets) > step + 1] + step  # an event of each user, and one after it
            seen, likely = item[at], self.draws[:, item[at]].T
            now = belief[at]
            if step:
                begins = (gap[at] > _BREAK_S)[:, None]
                follow = self.follow[item[at - 1], seen][:, None]
                inside = self.follows * follow + (1 - self.follows) * likely
                now = np.where(begins, (now @ self.drift) * likely, now * inside)
            else:
                now = now * likely
            belief[at + 1] = now / now.sum(axis=1, keepdims=True)
        return belief


def make_shop(n_items: int = 500, n_clusters: int = 10, n_tastes: int = 12, seed: int = 0) -> Shop:
    """A shop with its own clusters, followers and tastes; the same for the same arguments.

    Raises:
        ValueError: If a cluster would have fewer than five items.
    """
    if n_items < 5 * n_clusters:
        raise ValueError(f"n_items: expected at least 5 a cluster, {5 * n_clusters}, got {n_items}")
    rng = np.random.default_rng(seed)
    cluster = np.arange(n_items) * n_clusters // n_items
    popularity, follow = np.zeros(n_items), np.zeros((n_items, n_items))
    for one in range(n_clusters):
        own = np.flatnonzero(cluster == one)
        ranks = 1.0 + rng.permutation(len(own))
        popularity[own] = ranks**-0.8 / (ranks**-0.8).sum()
        for item in own.tolist():
            others = own[own != item]
            follow[item, others] = 0.1 * popularity[others] / popularity[others].sum()
            follow[item, rng.permutation(others)[:3]] += (0.5, 0.25, 0.15)
    # a taste likes some clusters, and some items of each, beyond what is popular with all
    liking = 1.5 * rng.standard_normal((n_tastes, n_clusters))[:, cluster]
    draws = popularity * np.exp(liking + 1.5 * rng.standard_normal((n_tastes, n_items)))
    draws = 0.95 * draws / draws.sum(axis=1, keepdims=True) + 0.05 / n_items
    drift = np.full((n_tastes, n_tastes), 0.1 / max(1, n_tastes - 1))
    np.fill_diagonal(drift, 0.9 if n_tastes > 1 else 1.0)
    return Shop(cluster, follow, draws, drift)


def load(provider: str) -> Interactions:
    """The interactions of a card's ``embedded`` provider.

    Raises:
        DataError: If the provider is unknown.
    """
    if provider != "mambakit.simulated_shop":
        raise DataError(f"no embedded data set is called {provider!r}; there is: mambakit.simulated_shop")
    return make_shop().simulate(n_users=2000, seed=1)


class _Draws:
    """Draws from one of several distributions over the same places.

    Args:
        weights: ``(n_rows, n_places)``.
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        sums = weights.cumsum(axis=1)
        sums /= sums[:, -1:]
        self.n_places = weights.shape[1]
        # the rows one behind the other, each a unit further on: one search finds the place in a row
        self.sums = (sums + np.arange(len(weights))[:, None]).ravel()

    def __call__(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """A place for each of these rows."""
        place = np.searchsorted(self.sums, rows + rng.random(len(rows)), side="right")
        return np.minimum(place - rows * self.n_places, self.n_places - 1)
