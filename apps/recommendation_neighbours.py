"""Neighbours for a saved recommender: what `mambakit recommendation neighbours` does."""

from __future__ import annotations

import sys
from pathlib import Path

from mambakit.apps.recommendation_train import load_model, read, read_split, split_of
from mambakit.apps.shared import print_neighbours
from mambakit.domains.recommendation.config import Columns


def neighbours(
    *,
    model: Path,
    data: str,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    item_features: Path | None = None,
    user_features: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Lets a saved model look up which items followed similar histories (mambakit[ann]).

    The hidden states before all training events are kept beside the model, in a folder neighbours; how many
    neighbours are asked, how sharply they are weighed and what they count is chosen by NDCG@10 of validation
    events, none of which is kept. From then on evaluate, recommend and update use them; remove the folder to
    be without.

    Args:
        model: Folder of the saved model.
        data: The card, file or folder that it was trained on.
        columns: Which column is what, as in training.
        item_features: As in training.
        user_features: As in training.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation neighbours --model runs/ml --data ml-1m
    """
    from mambakit.core.errors import DataError
    from mambakit.core.retrieval.neighbours import FOLDER
    from mambakit.domains.recommendation.retrieval import add_neighbours

    recommender = load_model(model, device)
    spec = read_split(model)
    counts = {name: spec[name] for name in ("min_item_events", "min_user_events", "cold_items")}
    interactions = read(data, columns, item_features=item_features, user_features=user_features, **counts)
    if [str(name) for name in interactions.items] != recommender.tokenizer.items:
        raise DataError(f"{data} has other items than {model} was trained on")
    tried = add_neighbours(recommender, interactions, split_of(interactions, spec))
    assert recommender.neighbours is not None
    recommender.neighbours.save(model / FOLDER, recommender)
    print_neighbours(recommender.neighbours, tried, "validation ndcg@10", json=json)
    print(f"neighbours: {model / FOLDER}", file=sys.stderr)
