"""Recommenders that only count: what a network has to beat.

A count of pairs beats several published networks where many events share a moment, as on Amazon's reviews.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.counting import (
    events_before,
    item_counts,
    transitions,
    users_by_items,
)
from mambakit.domains.recommendation.interactions import Interactions, Split

# Items whose neighbours are found at once
_BLOCK = 1024


class Popularity:
    """The items with the most training events, the same ones for everybody.

    Args:
        interactions: All events.
        split: Which of them are counted.
    """

    def __init__(self, interactions: Interactions, split: Split) -> None:
        self.counts = item_counts(interactions, split)

    def scores(self, interactions: Interactions, events: NDArray[np.int64]) -> Tensor:
        """Counts, ``(len(events), n_items)`` float32; see ``Scorer``."""
        return torch.from_numpy(self.counts.astype(np.float32)).repeat(len(events), 1)


class Bigram:
    """The items that came most often straight after the user's last one; of as many, the more popular.

    A first-order Markov chain of counts (Rendle, Freudenthaler & Schmidt-Thieme 2010, section 4.1, without
    its factorisation). Scores are places in that order, whole numbers that float32 holds exactly, so that no
    popularity is lost beside a large count.

    Args:
        interactions: All events.
        split: Which of them are counted.
    """

    def __init__(self, interactions: Interactions, split: Split) -> None:
        levels, popularity = np.unique(item_counts(interactions, split), return_inverse=True)
        self.popularity = popularity.astype(np.float32)
        self.places = transitions(interactions, split)
        self.places.data = len(levels) + _places_in_rows(self.places, popularity)

    def scores(self, interactions: Interactions, events: NDArray[np.int64]) -> Tensor:
        """``(len(events), n_items)`` float32, whole numbers; by popularity where nothing came before."""
        found = np.tile(self.popularity, (len(events), 1))
        has_last = events > interactions.offsets[interactions.user[events]]
        last = self.places[interactions.item[events[has_last] - 1]]
        rows = np.repeat(np.flatnonzero(has_last), np.diff(last.indptr))
        found[rows, last.indices] = last.data
        return torch.from_numpy(found)


class ItemKNN:
    """The items that were had by the same users as the user's last ones.

    Item-based collaborative filtering (Deshpande & Karypis 2004, section 4), later events weighing more. The
    score of an item is the weighted sum of its cosine similarities with the last events' items; the
    similarity of two items is that of their columns in the matrix of who had what in training.

    Args:
        interactions: All events.
        split: Which of them are counted.
        last: Events that are looked back at.
        decay: How much less an event counts than the one after it: 1 is alike, 0.8 a fifth less.
        neighbours: Keep only so many of each item's most similar ones; all by default, which takes 8 bytes
            for each pair of items that some user had.

    Raises:
        UsageError: On numbers below 1, or a decay outside of (0, 1].
    """

    def __init__(
        self,
        interactions: Interactions,
        split: Split,
        *,
        last: int = 10,
        decay: float = 0.8,
        neighbours: int | None = None,
    ) -> None:
        for name, value in (("last", last), ("neighbours", neighbours)):
            if value is not None and value < 1:
                raise UsageError(f"{name}: expected at least 1, got {value}")
        if not 0 < decay <= 1:
            raise UsageError(f"decay: expected above 0 and at most 1, got {decay}")
        self.last, self.decay = last, decay
        self.similarity = _cosines(users_by_items(interactions, split), neighbours)

    def scores(self, interactions: Interactions, events: NDArray[np.int64]) -> Tensor:
        """``(len(events), n_items)`` float32; zero where nothing came before, or nothing is known of it."""
        row, at = events_before(interactions, events, self.last)
        weight = (self.decay ** (events[row] - 1 - at)).astype(np.float32)
        shape = (len(events), interactions.n_items)
        history = sparse.csr_matrix((weight, (row, interactions.item[at])), shape=shape)
        return torch.from_numpy((history @ self.similarity).toarray())


def _places_in_rows(counts: sparse.csr_matrix, popularity: NDArray[np.int64]) -> NDArray[np.float32]:
    """0, 1, ... for each stored number of a row by count and then popularity, equal ones alike."""
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    keys = np.stack([popularity[counts.indices], counts.data.astype(np.int64), row])
    order = np.lexsort(keys)
    ordered = keys[:, order]
    new = np.ones(len(order), dtype=np.int64)
    new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(0)
    running = np.cumsum(new)
    # a row's first number counts from zero
    starts = counts.indptr[ordered[2]]
    places = np.empty(len(order), dtype=np.float32)
    places[order] = running - running[starts] if len(order) else 0
    return places


def _cosines(had: sparse.csr_matrix, neighbours: int | None) -> sparse.csr_matrix:
    """Of every pair of different items, ``(n_items, n_items)`` float32."""
    n_items = had.shape[1]
    length = np.sqrt(np.asarray(had.sum(0), dtype=np.float64)).ravel()
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    unit = (had @ sparse.diags(scale.astype(np.float32))).tocsr()
    by_item = unit.T.tocsr()
    blocks = []
    for start in range(0, n_items, _BLOCK):
        block = (by_item[start : start + _BLOCK] @ unit).tocoo()
        kept = block.col != block.row + start
        row, col, data = block.row[kept], block.col[kept], block.data[kept]
        if neighbours is not None:
            order = np.lexsort((col, -data, row))  # of equally similar ones those that come first
            place = np.arange(len(order)) - np.searchsorted(row[order], row[order])
            order = order[place < neighbours]
            row, col, data = row[order], col[order], data[order]
        blocks.append(sparse.csr_matrix((data, (row, col)), shape=block.shape, dtype=np.float32))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((0, 0), dtype=np.float32)
