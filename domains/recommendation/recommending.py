"""The items to show each user: the best k of what may be shown, for all users of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender, in_chunks
from mambakit.domains.recommendation.search import MIN_RECALL, ApproximateSearch, ExactSearch, Top, ask

Searching = Literal["exact", "approximate"]


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
    search: Searching = "exact",
    min_recall: float = MIN_RECALL,
) -> pd.DataFrame:
    """The best k items of each user after all their events.

    Args:
        model: A trained recommender.
        interactions: The users' events, of the model's catalogue (``on_catalogue``).
        k: Items for each user.
        users: Names of users, each of whom counts once; all of them by default.
        shown: What may be recommended.
        history: Events that are read of each user at most; None for all.
        search: exact scores all items; approximate those near a user, see ``ApproximateSearch``.
        min_recall: Share of the exact best items that approximate search is to find.

    Returns:
        ``user, rank, item, score``, best first; fewer than k rows of a user who has had almost everything.
        ``attrs`` holds ``search``, and of an approximate one ``recall``, the share of the exact best items
        that it found for ``recall_users`` of these users, 128 at most; ``searched_exactly``, the users for
        whom it fell back to exact search; and ``cells_read``, the share of all cells that it read for each.

    Raises:
        UsageError: If k is below 1 or above the items that may be shown, or a user is not there, or
            none is named.
        DataError: If the interactions are of another catalogue.
        UserError: If approximate search isn't installed.
    """
    shown = shown or Shown()
    if interactions.n_items != model.config.n_items:
        raise DataError(
            f"items: the model knows {model.config.n_items}, these interactions have {interactions.n_items}"
        )
    if search not in ("exact", "approximate"):
        raise UsageError(f"search: expected exact or approximate, got {search!r}")
    if not 0 < min_recall <= 1:
        raise UsageError(f"min_recall: expected a share above 0 and at most 1, got {min_recall}")
    kept = allowed_items(model, shown)
    if not 1 <= k <= kept.sum():
        raise UsageError(f"k: expected 1 to {kept.sum()}, the items that may be shown, got {k}")
    chosen = np.arange(interactions.n_users)
    if users is not None:
        if not users:
            raise UsageError("users: expected at least one name, got none")
        place = {str(name): i for i, name in enumerate(interactions.users)}
        missing = [name for name in users if name not in place]
        if missing:
            raise UsageError(f"users: {missing[0]!r} has no events here")
        chosen = np.array([place[name] for name in dict.fromkeys(users)], dtype=np.int64)
    catalogue = model.eval().catalogue()
    asked = partial(ask, model, interactions, catalogue, history=history)
    exact = ExactSearch(model, catalogue, kept, filter_seen=shown.filter_seen)
    if search == "exact":
        answers = [(part, exact.top(asked(part), k)) for part in in_chunks(chosen, interactions.n_items)]
        said: dict[str, object] = {"search": search}
    else:
        near = ApproximateSearch(exact)
        near.tune(asked, chosen, k, min_recall)
        answers = [(part, near.top(asked(part), k)) for part in in_chunks(chosen, 1)]
        said = {
            "search": search,
            "recall": near.recall,
            "recall_users": near.recall_users,
            "searched_exactly": near.n_exact,
            "cells_read": near.probes / near.n_cells,
        }
    tables = [_table(interactions, part, top) for part, top in answers]
    frame = pd.concat(tables, ignore_index=True)
    frame.attrs = said
    return frame


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


def _table(interactions: Interactions, users: NDArray[np.int64], top: Top) -> pd.DataFrame:
    k = top.item.shape[1]
    frame = pd.DataFrame(
        {
            "user": np.repeat(interactions.users[users], k),
            "rank": np.tile(np.arange(1, k + 1), len(users)),
            "item": interactions.items[top.item.ravel()],
            "score": top.score.ravel(),
        }
    )
    return frame[np.isfinite(frame["score"])]
