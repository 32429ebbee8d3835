"""Probing a recommender: what `mambakit recommendation probe` does."""

from __future__ import annotations

from pathlib import Path

from mambakit.apps.probing import Attack, check_attack, check_outputs, show_membership, show_probe
from mambakit.apps.recommendation_train import load_model, opened
from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.config import Columns


def probe(
    *,
    model: Path,
    data: str,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    item_features: Path | None = None,
    user_features: Path | None = None,
    most: int | None = None,
    attack: Attack = "perturb",
    only: list[str] = [],  # noqa: B006  (only read)
    reference: Path | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Measures how NDCG@10 falls as the histories that a model reads are spoilt more and more.

    What is to be foretold, and the catalogue, stay as they were. dt times 1/8 to 8 makes every
    state-space block step as if all happened slower or faster than in training.

    Args:
        model: Folder of the saved model.
        data: The card, file or folder that it was trained on.
        columns: Which column is what, as in training.
        item_features: As in training.
        user_features: As in training.
        most: Measure so many users, drawn at random; all by default.
        attack: perturb, or membership: can the training's cases be told from others by their loss?
        only: Some of the perturbations: drop, replace, shuffle, dt; all by default.
        reference: For membership, folder of a model trained without these cases: losses are judged by its.
        output: CSV or Parquet with a row a level, or an attack.
        plot: PNG, PDF or SVG with a panel a perturbation, or hits over false alarms.
        seed: Of what is drawn; the same seed spoils alike.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation probe --model runs/ml --data ml-latest-small --plot probe.png
        mambakit recommendation probe --model runs/ml --data ml-1m --only drop dt --output probe.csv --json
        mambakit recommendation probe --model runs/ml --data ml-1m --attack membership --plot roc.png
    """
    from mambakit.domains.recommendation.membership import attacked
    from mambakit.domains.recommendation.probing import subject

    check_outputs(output, plot)
    check_attack(attack, only, reference)
    recommender, interactions, split, _ = opened(
        model, data, device, columns, item_features=item_features, user_features=user_features
    )
    if attack == "membership":
        of_model = attacked(recommender, interactions, split, seed=seed)
        beside = None
        if reference is not None:
            other = load_model(reference, device)
            if other.tokenizer.items != recommender.tokenizer.items:
                raise UsageError(f"reference: {reference} has another catalogue than {model}")
            beside = attacked(other, interactions, split, seed=seed)
        show_membership(of_model, beside, name=data, seed=seed, output=output, plot=plot, json=json)
        return
    probed = subject(recommender, interactions, split, f"{data}, test events", most=most)
    show_probe(probed, only=only, seed=seed, output=output, plot=plot, json=json)
