"""What is counted in the events that are learned from: items, pairs of items, and who had what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.recommendation.interactions import Interactions, Split

if TYPE_CHECKING:
    from scipy import sparse


def training_events(interactions: Interactions, split: Split) -> NDArray[np.bool_]:
    """Which events are learned from, ``(n_events,)``."""
    known = events_until(interactions, split.train_end)
    return known if split.new is None else known & ~split.new[interactions.item]


def events_until(interactions: Interactions, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which events are before their user's end, ``(n_events,)``; ``ends`` are places of events."""
    return np.arange(len(interactions)) < ends[interactions.user]


def item_counts(interactions: Interactions, split: Split) -> NDArray[np.int64]:
    """Training events of each item, ``(n_items,)``."""
    items = interactions.item[training_events(interactions, split)]
    return np.bincount(items, minlength=interactions.n_items).astype(np.int64)


def transitions(interactions: Interactions, split: Split) -> sparse.csr_matrix:
    """How often item j came straight after item i in training, ``(n_items, n_items)`` float64 at (i, j)."""
    from scipy import sparse  # here, as a live update counts nothing, and must not wait for it

    known = training_events(interactions, split)
    pairs = known[1:] & known[:-1] & (interactions.user[1:] == interactions.user[:-1])
    before, after = interactions.item[:-1][pairs], interactions.item[1:][pairs]
    n = interactions.n_items
    return sparse.coo_matrix((np.ones(len(after)), (before, after)), shape=(n, n)).tocsr()


def users_by_items(interactions: Interactions, split: Split) -> sparse.csr_matrix:
    """1 where a user had an item in training, however often, ``(n_users, n_items)`` float32."""
    from scipy import sparse

    known = training_events(interactions, split)
    user, item = interactions.user[known], interactions.item[known]
    shape = (interactions.n_users, interactions.n_items)
    found = sparse.coo_matrix((np.ones(len(item), dtype=np.float32), (user, item)), shape=shape).tocsr()
    found.data[:] = 1.0
    return found


def events_before(
    interactions: Interactions,
    events: NDArray[np.int64],
    most: int | None = None,
    *,
    users: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The events that each event's user had before it, the last ``most`` of them.

    Args:
        interactions: All events.
        events: ``(n,)``; with ``users`` also one past a user's last event.
        most: Of each at most; all by default.
        users: Whose each is, ``(n,)``; by default the event's own.

    Returns:
        Rows into ``events``, non-decreasing, and the events before, in order: ``(n_pairs,)`` int64 each.
    """
    first = interactions.offsets[interactions.user[events] if users is None else users]
    if most is not None:
        first = np.maximum(first, events - most)
    return np.repeat(np.arange(len(events)), events - first), stretches(first, events)


def stretches(begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """``begin[0], begin[0] + 1, ..., end[0] - 1, begin[1], ...``."""
    counts = end - begin
    return np.arange(counts.sum()) + np.repeat(begin - (np.cumsum(counts) - counts), counts)
