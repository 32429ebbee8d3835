"""The best k items of each user: by the scores of all items, or of those that lie near (``mambakit[ann]``).

score = [hidden, 1, 0] . [item vector, bias, rest], the rest being what gives all items the same length: so
the best items are also the nearest (Bachrach et al. 2014, "Speeding Up the Xbox Recommender System Using a
Euclidean Transformation for Inner-Product Spaces", section 3). For approximate search k-means puts the items
into about root(n_items) cells, and a user's search reads the nearest of them: an inverted file (Jegou, Douze
& Schmid 2011, "Product Quantization for Nearest Neighbor Search", section 4, without the compression), by
FAISS.

An inverted file and not a graph (HNSW), as a batch of recommendations pays for the building: on one core,
100,000 items took 0.7 s to put into one and a minute into usearch's graph. Without the rest of the length
the items gather in the cells of long vectors, and for a recall of 0.95 ten times as many had to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import UsageError, UserError
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Catalogue, Recommender, in_chunks, seen_before

MIN_RECALL = 0.95
# Users on whom the recall of approximate search is measured, and others that its effort is chosen by
RECALL_USERS = 128

# Items beyond k that are fetched at first, to make up for those that the user has had; then ever more
_SPARE, _WIDER, _WIDEST = 32, 4, 4096
_FIRST_PROBES = 4
_POINTS_PER_CELL = 64


class Asked(NamedTuple):
    """Users for whom items are looked for.

    Attributes:
        hidden: Behind their histories, ``(n, d_model)``.
        row, item: What each has had, ``(n_seen,)`` each: places in ``hidden``, and items.
    """

    hidden: Tensor
    row: NDArray[np.int64]
    item: NDArray[np.int64]

    def rows(self, chosen: NDArray[np.int64]) -> Asked:
        """Only these users, increasing places."""
        place = np.full(len(self.hidden), -1)
        place[chosen] = np.arange(len(chosen))
        kept = place[self.row] >= 0
        hidden = self.hidden[torch.from_numpy(chosen).to(self.hidden.device)]
        return Asked(hidden, place[self.row[kept]], self.item[kept])


def ask(
    model: Recommender,
    interactions: Interactions,
    catalogue: Catalogue,
    users: NDArray[np.int64],
    *,
    history: int | None = None,
) -> Asked:
    """What is to be known of some users after all their events, the last ``history`` of which are read."""
    ends = interactions.offsets[users + 1]
    hidden = model.hidden(interactions, users, ends, catalogue, history=history)
    return Asked(hidden, *seen_before(interactions, users, ends))


class Top(NamedTuple):
    """The best items of each user, best first: ``(n, k)`` each; a score of -inf where there are fewer."""

    score: NDArray[np.float32]
    item: NDArray[np.int64]


class ExactSearch:
    """Scores all items.

    Args:
        model: A trained recommender.
        catalogue: Its ``catalogue()``.
        kept: Which items may be shown, ``(n_items,)``.
        filter_seen: Leave out what a user has had.
    """

    def __init__(
        self, model: Recommender, catalogue: Catalogue, kept: NDArray[np.bool_], *, filter_seen: bool
    ) -> None:
        self.model, self.catalogue, self.filter_seen = model, catalogue, filter_seen
        self.kept = kept & catalogue.bias.isfinite().cpu().numpy()  # nothing is known of the others
        self._hidden_items = torch.from_numpy(~self.kept).to(catalogue.bias.device)

    def top(self, asked: Asked, k: int) -> Top:
        """The best k that may be shown."""
        score = self.model.score(asked.hidden, self.catalogue, (asked.row, asked.item))
        if self.filter_seen:
            score[torch.from_numpy(asked.row), torch.from_numpy(asked.item)] = -torch.inf
        score[:, self._hidden_items] = -torch.inf
        best = score.topk(k)
        return Top(best.values.cpu().numpy(), best.indices.cpu().numpy())


class ApproximateSearch:
    """Scores the items of some cells; so many of them that the recall is high enough.

    Filters hold as in exact search: only items that may be shown are in the cells, and more than k are
    fetched until k are left that the user has not had. Where that fails, the user is searched for exactly.

    Args:
        exact: The search that it stands for.

    Attributes:
        n_cells: Of k-means.
        probes: Cells that are read for a user; ``tune`` chooses them.
        recall: Share of the exact best items that were found, once ``tune`` has measured it.
        recall_users: On so many users.
        n_exact: Users who were searched for exactly.

    Raises:
        UserError: If FAISS isn't installed.
        UsageError: If the recommender has neighbours mixed in.
    """

    def __init__(self, exact: ExactSearch) -> None:
        if exact.model.neighbours is not None:
            raise UsageError("search: what neighbours say is not in the index of items; choose exact")
        self.exact = exact
        self.items = np.flatnonzero(exact.kept)
        self.n_cells = max(1, round(math.sqrt(len(self.items))))
        self.probes = min(_FIRST_PROBES, self.n_cells)
        self.recall, self.recall_users, self.n_exact = math.nan, 0, 0
        self._index = _inverted_file(_of_one_length(exact.catalogue, self.items), self.items, self.n_cells)

    def top(self, asked: Asked, k: int) -> Top:
        """The best k that may be shown."""
        n = len(asked.hidden)
        hidden = asked.hidden.float().cpu().numpy()
        query = np.hstack([hidden, np.ones((n, 1)), np.zeros((n, 1))]).astype(np.float32)
        n_items = len(self.exact.kept)
        seen = np.unique(asked.row * n_items + asked.item)
        found = Top(np.full((n, k), -np.inf, dtype=np.float32), np.zeros((n, k), dtype=np.int64))
        left, width, hopeless = np.arange(n), k + _SPARE, [np.zeros(0, dtype=np.int64)]
        while len(left):
            width = min(width, len(self.items))
            score, item = self._nearest(query[left], width)
            ended = ~np.isfinite(score).all(1) | (width == len(self.items))  # a wider search finds no more
            score[np.isin(left[:, None] * n_items + item, seen)] = -np.inf
            best = np.argsort(-score, axis=1, kind="stable")[:, :k]
            score, item = np.take_along_axis(score, best, 1), np.take_along_axis(item, best, 1)
            enough = np.isfinite(score).sum(1) >= k
            found.score[left[enough]], found.item[left[enough]] = score[enough], item[enough]
            width *= _WIDER
            given_up = ~enough & (ended | (width > _WIDEST))
            hopeless.append(left[given_up])
            left = left[~enough & ~given_up]
        if not self.exact.filter_seen:
            found = self._with_seen(found, asked, seen, k)
        exactly = np.sort(np.concatenate(hopeless))
        for part in in_chunks(exactly, n_items):
            found.score[part], found.item[part] = self.exact.top(asked.rows(part), k)
        self.n_exact += len(exactly)
        return found

    def tune(
        self, asked: Callable[[NDArray[np.int64]], Asked], users: NDArray[np.int64], k: int, least: float
    ) -> None:
        """Double ``probes`` until ``least`` of the exact best are found, and measure ``recall``.

        The first for at most 128 of the users, the second for as many others; then all counts begin anew.

        Args:
            asked: What is known of some users.
            users: For whom items will be looked for.
            k: Items for each.
            least: The share that is wanted, 0 to 1.
        """
        sample = users[:: max(1, -(-len(users) // (2 * RECALL_USERS)))]
        measured = sample[1::2] if len(sample) > 1 else sample
        choosing, measuring = (
            [(part, self.exact.top(part, k)) for part in map(asked, in_chunks(half, len(self.exact.kept)))]
            for half in (sample[::2], measured)
        )
        while self._recall(choosing, k) < least and self.probes < self.n_cells:
            self.probes = min(2 * self.probes, self.n_cells)
        self.recall, self.recall_users = self._recall(measuring, k), len(measured)
        self.n_exact = 0

    def save(self, path: Path) -> None:
        """A file for ``faiss.read_index``; its ids are the items' places."""
        self._index.nprobe = self.probes
        _faiss().write_index(self._index, str(path))

    def _recall(self, truths: Sequence[tuple[Asked, Top]], k: int) -> float:
        hits = total = 0
        for asked, truth in truths:
            found = self.top(asked, k)
            there, true = np.isfinite(found.score), np.isfinite(truth.score)
            for row in range(len(true)):
                wanted = truth.item[row, true[row]]
                hits += int(np.isin(wanted, found.item[row, there[row]]).sum())
                total += len(wanted)
        return hits / total if total else 1.0

    def _nearest(self, query: NDArray[np.float32], n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and items, best first, ``(len(query), n)``; -inf where the cells held fewer."""
        self._index.nprobe = self.probes
        score, item = self._index.search(query, n)
        score[item < 0] = -np.inf
        return score, item.clip(min=0)

    def _with_seen(self, found: Top, asked: Asked, seen: NDArray[np.int64], k: int) -> Top:
        """Also what the user has had, whose scores the repeat shift moves away from the index's."""
        row, item = np.divmod(seen, len(self.exact.kept))
        shown = self.exact.kept[item]
        row, item = row[shown], item[shown]
        vectors, bias = self.exact.catalogue
        at, of = torch.from_numpy(row).to(bias.device), torch.from_numpy(item).to(bias.device)
        own = (asked.hidden.float()[at] * vectors.float()[of]).sum(1) + bias.float()[of]
        own = own + self.exact.model.repeat_shift
        rows = np.concatenate([np.repeat(np.arange(len(found.item)), k), row])
        scores = np.concatenate([found.score.ravel(), own.cpu().numpy()])
        items = np.concatenate([found.item.ravel(), item])
        order = np.lexsort((-scores, rows))
        place = np.arange(len(order)) - np.searchsorted(rows[order], rows[order])
        order = order[place < k].reshape(-1, k)
        return Top(scores[order], items[order])


def _of_one_length(catalogue: Catalogue, items: NDArray[np.int64]) -> NDArray[np.float32]:
    """``(len(items), d_model + 2)``: vector, bias, and what is missing to the longest of them."""
    vectors, bias = (one.detach().float().cpu().numpy()[items] for one in catalogue)
    squared = np.square(vectors).sum(1) + np.square(bias)
    return np.column_stack([vectors, bias, np.sqrt(squared.max() - squared)]).astype(np.float32)


def _inverted_file(vectors: NDArray[np.float32], items: NDArray[np.int64], n_cells: int) -> Any:
    faiss = _faiss()
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], n_cells, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, _POINTS_PER_CELL
    index.train(vectors)
    index.add_with_ids(vectors, items)
    return index


def has_faiss() -> bool:
    """Whether approximate search can be had."""
    try:
        _faiss()
    except UserError:
        return False
    return True


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError('approximate search needs FAISS: pip install "mambakit[ann]"') from None
    return faiss
