"""Items that followed similar histories, mixed into a recommender's scores; see ``core.retrieval``.

A key is the hidden state before a training event, its value that event's item. Validation and test events are
in no key and no value.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mambakit.core.retrieval import Mix, Neighbours, grid
from mambakit.core.retrieval.neighbours import mixed_log_probabilities, weights_of
from mambakit.domains.recommendation.counting import training_events
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.model import Recommender, in_chunks, seen_before

_MOST_KEYS = 1_000_000
_MOST_VALIDATION = 2000


@torch.no_grad()
def add_neighbours(model: Recommender, interactions: Interactions, split: Split) -> list[tuple[Mix, float]]:
    """Give a recommender its neighbours, mixed in as serves NDCG@10 of the validation events best.

    Of more than a million training events every so many is kept; of more than 2,000 validation events every
    so many is looked at.

    Returns:
        What was tried and its NDCG@10, best first; that the model counts alone is among it.

    Raises:
        UserError: If FAISS isn't installed.
    """
    model.neighbours = None
    model.eval()
    catalogue = model.catalogue()
    learned = np.flatnonzero(training_events(interactions, split))
    learned = learned[:: -(-len(learned) // _MOST_KEYS)]
    keys = [
        model.hidden(interactions, interactions.user[part], part, catalogue).cpu()
        for part in in_chunks(learned, model.config.n_items)
    ]
    store = Neighbours(torch.cat(keys), torch.from_numpy(interactions.item[learned]))
    events = split.validation[:: -(-len(split.validation) // _MOST_VALIDATION)]
    tried = _tried(model, interactions, events, store)
    model.neighbours = store.with_mix(tried[0][0])
    return tried


def _tried(
    model: Recommender, interactions: Interactions, events: NDArray[np.int64], store: Neighbours
) -> list[tuple[Mix, float]]:
    catalogue = model.catalogue()
    gains = dict.fromkeys(grid(len(store)), 0.0)
    for part in in_chunks(events, model.config.n_items):
        users = interactions.user[part]
        hidden = model.hidden(interactions, users, part, catalogue)
        score = model.score(hidden, catalogue, seen_before(interactions, users, part))
        distance, place = store.search(hidden, max(mix.k for mix in gains))
        target = torch.from_numpy(interactions.item[part]).to(score.device)[:, None]
        for mix in gains:
            labels = store.values[place[:, : mix.k]]
            mixed = mixed_log_probabilities(score, weights_of(distance, mix), labels, mix.share)
            own = mixed.gather(1, target)
            # of those that score alike, half count as before
            rank = (mixed > own).sum(1) + 0.5 * ((mixed == own).sum(1) - 1)
            gains[mix] += float(torch.where(rank < 10, 1 / torch.log2(rank + 2), 0.0).sum())
    # of equals the first, which is the model alone
    return sorted(((mix, gain / len(events)) for mix, gain in gains.items()), key=lambda one: -one[1])
