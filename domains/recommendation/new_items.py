"""Items that came after training: known by their features, recommended and read in histories like any other.

vector of a new item = its features' vectors / root of their number; scores of the other items don't change

Training knows some items of each step by their features alone (``LossConfig.id_dropout``), so it has learned
to tell items by those.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.data.frames import shortened
from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.cards import dated
from mambakit.domains.recommendation.features import Features, read_features
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.naming import Columns, find_column
from mambakit.domains.recommendation.recommending import on_catalogue
from mambakit.domains.recommendation.tokenizer import EventTokenizer


class Added(NamedTuple):
    """A recommender with further items.

    Attributes:
        model: A copy, its catalogue longer at the end; the given one if nothing was added.
        items: The further items, by name.
        notes: Which items were not added, and why.
    """

    model: Recommender
    items: list[str]
    notes: list[str]


def read_new_items(source: Path | str | pd.DataFrame, columns: Columns | None = None) -> Features:
    """A table with a row an item, as training reads it.

    Raises:
        DataError: If it can't be read, names none, or one twice.
    """
    asked = columns or Columns()
    return read_features(source, lambda names, at: find_column(names, asked, "item", at), "items")


def add_items(model: Recommender, items: Features) -> Added:
    """The recommender with the items that it doesn't know yet, by their features alone.

    Items of its catalogue keep what was learned of them. One without any word that was there in training
    is not added: nothing would be known of it.

    Args:
        model: A trained recommender; it stays as it is.
        items: What is known of the new ones.

    Raises:
        UsageError: If the model reads no features of items.
        DataError: If a column holds text that held numbers in training.
    """
    tokenizer = model.tokenizer
    if model.item_table is None:
        raise UsageError(
            f"item_features: the model was trained without features of items, so it can't know new ones by "
            f"theirs ({items.source}); train it with item_features"
        )
    if "year" in tokenizer.item_words.edges and "year" not in items.frame:
        items = dated(items) or items  # as films' titles were read in training
    encoded = torch.from_numpy(tokenizer.item_words.encode(items.frame, len(items.names)))
    had = torch.tensor([name in tokenizer.index for name in items.names], dtype=torch.bool)
    blank = ~had & ~(encoded > 0).any(1)
    notes = []
    if had.any():
        notes.append(
            f"{items.source}: {int(had.sum()):,} items are in the model's catalogue and keep what it learned"
        )
    if blank.any():
        lost = [items.names[place] for place in blank.nonzero()[:, 0].tolist()]
        notes.append(
            f"{items.source}: {len(lost):,} items have no feature that the model was trained with, and are "
            f"left out: {shortened(lost)}"
        )
    new = (~had & ~blank).nonzero()[:, 0]
    names = [items.names[place] for place in new.tolist()]
    return Added(_longer(model, names, encoded[new]) if names else model, names, notes)


def with_new_items(model: Recommender, interactions: Interactions) -> tuple[Recommender, Interactions, str]:
    """The recommender with the interactions' further items, the interactions on its catalogue, what to say.

    Nothing is said, and no feature is needed, where the interactions have its items in another order.

    Args:
        model: A trained recommender.
        interactions: Events of all items that it was trained on, and of others with features.

    Raises:
        UsageError: If items of the training are not there, or features of the others are not.
    """
    known, there = model.tokenizer.index, {str(name) for name in interactions.items}
    new = [place for place, name in enumerate(interactions.items) if str(name) not in known]
    if there == set(known):
        return model, on_catalogue(model, interactions)[0], ""
    if interactions.item_features is None or model.item_table is None or not there.issuperset(known):
        raise UsageError(
            f"data: it has another catalogue ({interactions.n_items} items, {len(new)} of them new) than the "
            f"model was trained on ({len(known)}, of which {len(known.keys() - there)} are not there); "
            "evaluate on the data of the training, or on the same with further items and their features"
        )
    features = Features(
        "the data", [str(interactions.items[i]) for i in new], interactions.item_features.iloc[new], "items"
    )
    added = add_items(model, features)
    given, n_lost = on_catalogue(added.model, interactions)
    lost = f"; {n_lost:,} events of others are left out" if n_lost else ""
    said = f"{len(added.items):,} items that came after training are known by their features alone{lost}"
    return added.model, given, "\n".join(f"note: {line}" for line in [said, *added.notes])


def lasting_numbers(items: Sequence[str], n_trained: int) -> Tensor:
    """A number for each item that no other list of new items changes, ``(n_items,)`` int64.

    The place in the catalogue, if the item was trained; behind those, 62 bits of a hash of its name.
    """
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in items[n_trained:])
    hashed = [n_trained + (int.from_bytes(one) >> 2) for one in digests]
    return torch.cat([torch.arange(n_trained), torch.tensor(hashed, dtype=torch.int64)])


def _longer(model: Recommender, names: list[str], words: Tensor) -> Recommender:
    """A copy with further items, of zero vectors and biases; START and UNKNOWN move behind them."""
    n, more, old = model.config.n_items, len(names), model.tokenizer
    width = max(model.item_words.shape[1], words.shape[1])
    state = model.state_dict()
    vectors = state["ids.weight"]
    state |= {
        "ids.weight": torch.cat([vectors[:n], vectors.new_zeros(more, vectors.shape[1]), vectors[n:]]),
        "bias": F.pad(state["bias"], (0, more)),
        "popularity": F.pad(state["popularity"], (0, more)),
        "cold": F.pad(state["cold"], (0, more), value=True),
        "item_words": torch.cat(
            [F.pad(one, (0, width - one.shape[1])) for one in (state["item_words"], words.to(vectors.device))]
        ),
    }
    made = Recommender(dataclasses.replace(model.config, n_items=n + more, most_item_words=width))
    made.load_state_dict(state)
    made.tokenizer = EventTokenizer([*old.items, *names], old.gap_unit, old.item_words, old.user_words)
    made.calibrators = model.calibrators
    return made.to(vectors.device).train(model.training)
