"""The ranks and top lists that a scorer gives to cases, chunk by chunk, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.domains.recommendation import metrics
from mambakit.domains.recommendation.cases import Cases
from mambakit.domains.recommendation.counting import events_before
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.scoring import Scorer

FILTERS = ("unfiltered", "filtered")
# Scores held at once: cases x items; a few times that is needed for their order
_MOST_NUMBERS = 8_000_000
_MOST_CASES = 1024

Sampled = tuple[int, metrics.Negatives]


@dataclass(frozen=True, eq=False)
class Ranked:
    """What one scorer made of the cases, by filter.

    Attributes:
        ranks: Of the targets, ``(n_cases,)``.
        lists: The first items, best first, ``(n_cases, list_length)``; -1 where a list is shorter.
        sampled: Ranks among sampled negatives, by their number and kind.
    """

    ranks: dict[str, NDArray[np.float64]]
    lists: dict[str, NDArray[np.int64]]
    sampled: dict[str, dict[Sampled, NDArray[np.float64]]]


@torch.no_grad()
def ranked(
    name: str,
    scorer: Scorer,
    interactions: Interactions,
    cases: Cases,
    *,
    columns: NDArray[np.int64],
    list_length: int,
    sampled: Sequence[Sampled] = (),
    counts: NDArray[np.int64],
    seed: int = 0,
) -> Ranked:
    """Ranks the target of every case among the items of the catalogue.

    Args:
        name: The scorer's, for errors.
        scorer: Asked for the scores of some cases at a time.
        interactions: All events.
        cases: What is foretold.
        columns: The items of the catalogue, increasing, the targets among them.
        list_length: Length of the top lists.
        sampled: Numbers and kinds of negatives, see ``metrics``.
        counts: Training events of each item, ``(n_items,)``: how likely a popularity negative is.
        seed: Of the negatives.

    Raises:
        DataError: If scores are NaN or of another shape.
    """
    n = len(cases.event)
    found = Ranked(
        {column: np.empty(n) for column in FILTERS},
        {column: np.empty((n, list_length), dtype=np.int64) for column in FILTERS},
        {column: {wanted: np.empty(n) for wanted in sampled} for column in FILTERS},
    )
    size = max(1, min(_MOST_CASES, _MOST_NUMBERS // interactions.n_items))
    place = np.full(interactions.n_items, -1)
    place[columns] = np.arange(len(columns))
    for start in range(0, n, size):
        part = slice(start, start + size)
        events = cases.event[part]
        scores = _checked(name, scorer.scores(interactions, events), interactions, events)
        device = scores.device
        if len(columns) < interactions.n_items:
            scores = scores[:, torch.from_numpy(columns).to(device)]
        row, before = events_before(interactions, events)
        item = place[interactions.item[before]]
        seen = (torch.from_numpy(row[item >= 0]).to(device), torch.from_numpy(item[item >= 0]).to(device))
        target = torch.from_numpy(place[cases.target[part]]).to(device)
        masked = scores.clone()
        masked[seen] = -torch.inf
        masked.scatter_(1, target[:, None], scores.gather(1, target[:, None]))
        ranks = metrics.target_ranks(scores, target, seen)
        for column, own, rankable in zip(FILTERS, ranks, (scores, masked), strict=True):
            found.ranks[column][part] = own.cpu().numpy()
            top = metrics.top_items(rankable, list_length).cpu().numpy()
            found.lists[column][part] = np.where(top >= 0, columns[top], -1)
            for wanted in sampled:
                among = _Negatives(wanted, counts[columns], seed)
                unseen = None if column == "unfiltered" else seen
                found.sampled[column][wanted][part] = among.ranks(scores, target, events, unseen)
    return found


class _Negatives:
    """Drawn with the event's own seed: the same ones for every scorer, in any chunks."""

    def __init__(self, wanted: Sampled, counts: NDArray[np.int64], seed: int) -> None:
        self.n, kind = wanted
        self.weights = counts.astype(np.float64) if kind == "popularity" else None
        self.seed = seed

    def ranks(
        self,
        scores: Tensor,
        target: Tensor,
        events: NDArray[np.int64],
        seen: tuple[Tensor, Tensor] | None,
    ) -> NDArray[np.float64]:
        """The targets' ranks among themselves and their negatives, which are none of the seen items."""
        rows, items = (one.cpu().numpy() for one in seen) if seen is not None else (np.empty(0), None)
        bounds = np.searchsorted(rows, np.arange(len(events) + 1))
        found = np.empty(len(events))
        for i, event in enumerate(events):
            allowed = np.ones(scores.shape[1], dtype=bool)
            if items is not None:
                allowed[items[bounds[i] : bounds[i + 1]]] = False
            own = int(target[i])
            allowed[own] = False
            drawn = metrics.sample_negatives(
                allowed, self.n, weights=self.weights, seed=[self.seed, int(event)]
            )
            among = torch.from_numpy(np.r_[own, drawn]).to(scores.device)
            rank, _ = metrics.target_ranks(scores[i, among][None], among.new_zeros(1))
            found[i] = float(rank)
        return found


def _checked(name: str, scores: Tensor, interactions: Interactions, events: NDArray[np.int64]) -> Tensor:
    expected = (len(events), interactions.n_items)
    if tuple(scores.shape) != expected:
        raise DataError(f"{name}: expected scores of shape {expected}, got {tuple(scores.shape)}")
    bad = scores.isnan().any(1).nonzero()
    if len(bad):
        user = interactions.users[interactions.user[events[int(bad[0, 0])]]]
        raise DataError(f"{name}: a score of user {str(user)!r} is NaN, which has no place in a ranking")
    return scores
