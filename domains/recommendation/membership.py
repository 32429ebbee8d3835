"""Losses of events that a recommender learned from, and of those that it was tested on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.core.trust.membership import Attacked
from mambakit.domains.recommendation.counting import item_counts, training_events
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.model import Recommender

_AT_ONCE = 512


def attacked(
    model: Recommender, interactions: Interactions, split: Split, *, most: int = 2000, seed: int = 0
) -> Attacked:
    """An event that was learned from, the last of its user, or one that is foretold in the test.

    The loss is the negative log-probability of the event's item among all items, from what came before it.

    Args:
        model: Trained.
        interactions: All events.
        split: Of the training.
        most: Events of each kind, drawn with ``seed``.
        seed: Of the draws.

    Raises:
        DataError: If there are none of a kind.
    """
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(training_events(interactions, split))
    last = np.append(np.diff(interactions.user[known]) != 0, True)
    first = interactions.offsets[interactions.user]
    inside = known[last]
    inside = inside[inside > first[inside]]
    # of items that it has learned of: others would be told by that alone
    outside = split.test[item_counts(interactions, split)[interactions.item[split.test]] > 0]
    kinds = [_some(inside, most, rng), _some(outside, most, rng)]
    if not all(map(len, kinds)):
        raise DataError("there is no event that was learned from, or none to be foretold")
    notes = [
        "training events come before test events of the same users: that tastes move on tells them apart too"
    ]
    members, others = (_losses(model, interactions, one) for one in kinds)
    return Attacked(members, others, "an event", notes)


def _losses(model: Recommender, interactions: Interactions, events: NDArray[np.int64]) -> NDArray[np.float64]:
    found = []
    for start in range(0, len(events), _AT_ONCE):
        part = events[start : start + _AT_ONCE]
        log_p = model.scores(interactions, part).double().log_softmax(-1)
        target = torch.from_numpy(interactions.item[part])
        found.append(-log_p.gather(1, target[:, None])[:, 0].numpy())
    return np.concatenate(found)


def _some(events: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return events if len(events) <= most else np.sort(rng.choice(events, most, replace=False))
