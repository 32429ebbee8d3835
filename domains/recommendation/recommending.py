"""The items to show each user: the best k of what may be shown, for all users of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender, in_chunks, seen_before


@dataclass(frozen=True)
class Shown:
    """Which items may be recommended."""

    filter_seen: bool = True
    """Leave out what the user has had."""
    allow: Sequence[str] | None = None
    """Only these items; all of the catalogue by default."""
    deny: Sequence[str] = ()
    """Not these."""
    min_popularity: int = 0
    """Only items with at least so many training events."""


def allowed_items(model: Recommender, shown: Shown) -> NDArray[np.bool_]:
    """Which items of the catalogue may be shown, ``(n_items,)``; none of which nothing is known.

    Raises:
        UsageError: If a name is not in the catalogue, or nothing is left.
    """
    index, n_items = model.tokenizer.index, model.config.n_items
    for option, names in (("allow", shown.allow or ()), ("deny", shown.deny)):
        unknown = [name for name in names if name not in index]
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UsageError(
                f"{option}: item {unknown[0]!r}{more} is not in the catalogue of {n_items} items"
            )
    kept = np.ones(n_items, dtype=bool)
    if shown.allow is not None:
        kept[:] = False
        kept[[index[name] for name in shown.allow]] = True
    kept[[index[name] for name in shown.deny]] = False
    kept &= model.popularity.cpu().numpy() >= shown.min_popularity
    kept &= ~model.unknown.cpu().numpy()  # there is nothing to score them by
    if not kept.any():
        raise UsageError(
            "the catalogue is empty after allow, deny and min_popularity: nothing is left to recommend"
        )
    return kept


@torch.no_grad()
def recommend(
    model: Recommender,
    interactions: Interactions,
    k: int = 10,
    *,
    users: Sequence[str] | None = None,
    shown: Shown | None = None,
    history: int | None = None,
) -> pd.DataFrame:
    """The best k items of each user after all their events.

    Args:
        model: A trained recommender.
        interactions: The users' events, of the model's catalogue (``on_catalogue``).
        k: Items for each user.
        users: Names of the users; all by default.
        shown: Which items may be shown.
        history: Events that are read of each user at most, the last ones; all by default.

    Returns:
        A table ``user, rank, item, score``, k rows a user, fewer where fewer items may be shown.

    Raises:
        UsageError: If k is below 1 or above the items that may be shown, or a user is not there.
        DataError: If the interactions are of another catalogue.
    """
    shown = shown or Shown()
    if interactions.n_items != model.config.n_items:
        raise DataError(
            f"items: the model knows {model.config.n_items}, these interactions have {interactions.n_items}"
        )
    kept = allowed_items(model, shown)
    if not 1 <= k <= kept.sum():
        raise UsageError(f"k: expected 1 to {kept.sum()}, the items that may be shown, got {k}")
    chosen = np.arange(interactions.n_users)
    if users is not None:
        place = {str(name): i for i, name in enumerate(interactions.users)}
        missing = [name for name in users if name not in place]
        if missing:
            raise UsageError(f"users: {missing[0]!r} has no events here")
        chosen = np.array([place[name] for name in users], dtype=np.int64)
    catalogue, tables = model.eval().catalogue(), []
    hidden_items = torch.from_numpy(~kept).to(catalogue.bias.device)
    for part in in_chunks(chosen, interactions.n_items):
        ends = interactions.offsets[part + 1]
        hidden = model.hidden(interactions, part, ends, catalogue, history=history)
        row, item = seen_before(interactions, part, ends)
        score = model.score(hidden, catalogue, (row, item))
        if shown.filter_seen:
            score[torch.from_numpy(row), torch.from_numpy(item)] = -torch.inf
        score[:, hidden_items] = -torch.inf
        best = score.topk(k)
        tables.append(_table(interactions, part, best.values.cpu(), best.indices.cpu()))
    return pd.concat(tables, ignore_index=True)


def on_catalogue(model: Recommender, interactions: Interactions) -> tuple[Interactions, int]:
    """The interactions with the model's catalogue, and how many events of unknown items were left out.

    Features of items stay where every item of the catalogue has its own.
    """
    theirs, ours = pd.Index(interactions.items.tolist()), pd.Index(model.tokenizer.items)
    item = ours.get_indexer(theirs)[interactions.item]
    known = item >= 0
    row, features = theirs.get_indexer(ours), interactions.item_features
    if features is not None:
        features = None if (row < 0).any() else features.iloc[row].reset_index(drop=True)
    found = dataclasses.replace(
        interactions,
        items=np.array(model.tokenizer.items),
        user=interactions.user[known],
        item=item[known],
        time=interactions.time[known],
        item_features=features,
    )
    return found, int((~known).sum())


def _table(
    interactions: Interactions, users: NDArray[np.int64], scores: Tensor, items: Tensor
) -> pd.DataFrame:
    k = scores.shape[1]
    frame = pd.DataFrame(
        {
            "user": np.repeat(interactions.users[users], k),
            "rank": np.tile(np.arange(1, k + 1), len(users)),
            "item": interactions.items[items.flatten().numpy()],
            "score": scores.flatten().numpy(),
        }
    )
    return frame[np.isfinite(frame["score"])]
