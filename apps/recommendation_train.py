"""Training and measuring a recommender: what `mambakit recommendation train` and `evaluate` do."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambakit.apps.shared import check_suffix, tell, train_config, words_of, write_table
from mambakit.core.cli import print_json
from mambakit.core.errors import UsageError
from mambakit.core.folders import read_json_object
from mambakit.core.training import TrainConfig
from mambakit.domains.recommendation.config import (
    PRESET_LOSS,
    PRESET_MODEL,
    PRESET_TRAIN,
    Columns,
    LossConfig,
    ModelConfig,
    Peer,
)

if TYPE_CHECKING:
    from mambakit.core.training import FitResult, RunFolder
    from mambakit.domains.recommendation.evaluation import Evaluation
    from mambakit.domains.recommendation.interactions import Interactions, Split
    from mambakit.domains.recommendation.model import Recommender
    from mambakit.domains.recommendation.new_items import Added
    from mambakit.domains.recommendation.scoring import Scorer

SplitKind = Literal["leave-one-out", "time"]
_SPLIT_FILE = "split.json"
_BASELINES = "baselines"
OURS = "mambakit"


def train(
    *,
    data: str = "simulated-shop",
    output: Path = Path("runs/recommendation"),
    split: SplitKind = "leave-one-out",
    validation_at: str | None = None,
    test_at: str | None = None,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    item_features: Path | None = None,
    user_features: Path | None = None,
    min_item_events: int = 0,
    min_user_events: int = 0,
    cold_items: bool = False,
    seed: int = 0,
    device: str = "auto",
    max_time: str | None = None,
    overwrite: bool = False,
    baselines: list[Peer] = [],  # noqa: B006  (only read)
    model: ModelConfig = PRESET_MODEL,
    loss: LossConfig = PRESET_LOSS,
    train: TrainConfig = PRESET_TRAIN,
    json: bool = False,
) -> None:
    """Trains a Mamba recommender and measures it beside popularity, bigrams and item neighbours.

    The output folder holds the run (config, metrics, checkpoints, pictures, report.html) and the model.

    Args:
        data: A card's name (`mambakit data list`), a CSV, Parquet or RecBole .inter file of user, item and
            timestamp, or a folder of such files.
        output: Folder for the run and the model; a killed run continues in it.
        split: leave-one-out foretells each user's last two events; time all events after a moment.
        validation_at: With time, the first moment of validation: an ISO date or seconds.
        test_at: With time, the first moment of test.
        columns: Which column of a file is what; found by the usual names where not given.
        item_features: CSV, Parquet or .item file with a row an item.
        user_features: CSV, Parquet or .user file with a row a user.
        min_item_events: Leave out items with fewer events.
        min_user_events: Leave out users with fewer events.
        cold_items: Items of the features that no event has join the catalogue, known by their features alone.
        seed: Seed of weights, shuffling and dropout.
        device: auto, cpu, cuda or mps.
        max_time: Stop training after so long, such as 90s or 10m.
        overwrite: Remove another run in the output folder first, with its baselines.
        baselines: Networks to train too, into OUTPUT/baselines, with the same data, loss and budget:
            sasrec, gru4rec. They can be added to a run that has finished.
        model: The network; blocks [attention, mlp] is SASRec's.
        loss: What training minimises, and how histories are cut.
        train: The training options.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation train --data ml-latest-small --output runs/ml
        mambakit recommendation train --data events.csv --columns.item sku --item-features items.csv
        mambakit recommendation train --data ml-1m --model.n_layers 4 --loss.loss sampled-softmax
        mambakit recommendation train --data ml-latest-small --output runs/ml --baselines sasrec gru4rec
    """
    from mambakit.core.training import RunFolder
    from mambakit.domains.recommendation import report
    from mambakit.domains.recommendation.model import check_network
    from mambakit.domains.recommendation.peers import PEERS, peer_config
    from mambakit.domains.recommendation.slices import slices_of
    from mambakit.domains.recommendation.training import train_recommender

    source = {"item_features": item_features, "user_features": user_features}
    counts = {
        "min_item_events": min_item_events,
        "min_user_events": min_user_events,
        "cold_items": cold_items,
    }
    interactions = read(data, columns, **source, **counts)
    spec: dict[str, Any] = {"split": split, "validation_at": validation_at, "test_at": test_at, **counts}
    parts = split_of(interactions, spec)
    if parts.moments is not None and (validation_at, test_at) == (None, None):
        # of more data, fractions would give other moments, and test events that were learned from
        spec |= dict(zip(("validation_at", "test_at"), parts.moments, strict=True))
    config = train_config(train, seed, device, max_time)
    networks = {peer: peer_config(peer, model) for peer in PEERS if peer in baselines}
    for network in (model, *networks.values()):
        check_network(network)  # before there is a run folder

    def trained(folder: Path, network: ModelConfig) -> tuple[RunFolder, Recommender, FitResult]:
        run = RunFolder(folder, overwrite=overwrite)
        run.start(
            {"data": data, **spec, "columns": columns, "model": network, "loss": loss, "train": config},
            seed=config.seed,
        )
        recommender, result = train_recommender(
            interactions, parts, run, model_config=network, loss_config=loss, train_config=config
        )
        run.save(recommender)
        (run.path / _SPLIT_FILE).write_text(jsonlib.dumps(spec, indent=2) + "\n", "utf-8")
        return run, recommender, result

    run, recommender, result = trained(output, model)
    for peer in PEERS:
        if peer in networks:
            print(f"baseline: {PEERS[peer]}", file=sys.stderr)
            trained(output / _BASELINES / peer, networks[peer])
        elif overwrite:  # one of the run that was here
            shutil.rmtree(output / _BASELINES / peer, ignore_errors=True)
    evaluation = measure(recommender, interactions, parts, device, load_peers(output, device))
    run.measured(recommender, evaluation.rows, data=data, ours={"scorer": OURS})
    slices = slices_of(evaluation, interactions, parts)
    report.write(run, recommender, interactions, result, evaluation, data, slices)
    if json:
        print_json(
            {"data": data, "validation_ndcg@10": result.best_score, "model": run.path, **evaluation.to_dict()}
        )
    else:
        print(evaluation.text())
        print(f"model: {run.path}\nreport: {run.report_path}")


def evaluate(
    *,
    model: Path,
    data: str,
    columns: Columns = Columns(),  # noqa: B008  (frozen)
    item_features: Path | None = None,
    user_features: Path | None = None,
    slices: str | None = None,
    output: Path | None = None,
    report: Path | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Ranks each test event's item among all items, by a saved model and by its baselines.

    Networks that were trained beside the model (train --baselines) are among them. The split is that of the
    training. Seen items are ranked in one column and left out in the other. Items of the data that came after
    training are known by their features alone, and no baseline counts their events.

    Args:
        model: Folder of the saved model.
        data: The card, file or folder that it was trained on.
        columns: Which column is what, as in training.
        item_features: As in training.
        user_features: As in training.
        slices: Whom it serves worse, between commas: activity (thirds of users), popularity (head, middle
            and long tail of targets), and columns of the users' features, such as gender,age.
        output: CSV or Parquet with the slices, a row a group, scorer and filter.
        report: HTML file with tables and pictures of all that was measured.
        device: auto, cpu, cuda or mps.
        json: Print JSON for machines.

    Examples:
        mambakit recommendation evaluate --model runs/ml --data ml-latest-small --json
        mambakit recommendation evaluate --model runs/ml --data ml-1m --slices activity,popularity,gender,age
    """
    from mambakit.domains.recommendation import report as reports
    from mambakit.domains.recommendation.slices import slices_of

    check_suffix("output", output, (".csv", ".parquet"))
    check_suffix("report", report, (".html",))
    wanted = words_of(slices or "")
    if output is not None and not wanted:
        raise UsageError("output: what is written there is the slices; name them, such as --slices activity")
    recommender, interactions, split, peers = opened(
        model, data, device, columns, item_features=item_features, user_features=user_features
    )
    evaluation = measure(recommender, interactions, split, device, peers)
    found = slices_of(evaluation, interactions, split, wanted) if wanted else None
    if output is not None and found is not None:
        write_table(found.rows, output)
    if report is not None:
        reports.write_evaluation(report, evaluation, data, found)
    if json:
        more = {} if found is None else {"slices": found.to_dict()}
        print_json({"data": data, "model": model, **evaluation.to_dict(), **more})
        return
    print(evaluation.text())
    if found is not None:
        print(found.text(OURS))


def opened(
    model: Path,
    data: str,
    device: str,
    columns: Columns,
    *,
    item_features: Path | None,
    user_features: Path | None,
) -> tuple[Recommender, Interactions, Split, dict[str, Recommender]]:
    """A saved model and its data as it was trained on, with the networks that were trained beside it.

    What differs from the training's data is told.
    """
    from mambakit.domains.recommendation.counting import training_events
    from mambakit.domains.recommendation.new_items import with_new_items

    recommender = load_model(model, device)
    spec = read_split(model)
    counts = {name: spec[name] for name in ("min_item_events", "min_user_events", "cold_items")}
    interactions = read(data, columns, item_features=item_features, user_features=user_features, **counts)
    if [str(name) for name in interactions.items] != recommender.tokenizer.items:
        known = interactions
        recommender, interactions, said = with_new_items(recommender, known)
        if said:
            print(said, file=sys.stderr)
        peers = {name: with_new_items(peer, known)[0] for name, peer in load_peers(model, device).items()}
    else:
        peers = load_peers(model, device)
    tell_of_missing(recommender, interactions)
    split = dataclasses.replace(split_of(interactions, spec), new=recommender.cold.cpu().numpy())
    if (n := int(training_events(interactions, split).sum())) != (
        learned := int(recommender.popularity.sum())
    ):
        print(
            f"note: the model was trained on {learned:,} events; of these data it would be on {n:,}, "
            "and popularity, bigram and item neighbours count those",
            file=sys.stderr,
        )
    return recommender, interactions, split, peers


def read(data: str, columns: Columns, **options: Any) -> Interactions:
    """The interactions of a card, file or folder; what was left out goes to stderr."""
    from mambakit.domains.recommendation.cards import load_interactions

    given = columns if columns != Columns() else None
    interactions = load_interactions(data, columns=given, **options)
    if said := interactions.report():
        print(said, file=sys.stderr)
    return interactions


def split_of(interactions: Interactions, spec: dict[str, Any]) -> Split:
    """The split that a model was trained on."""
    from mambakit.domains.recommendation.data import leave_one_out, time_split

    moments = (spec["validation_at"], spec["test_at"])
    if spec["split"] == "time":
        return time_split(interactions, *moments)
    if moments != (None, None):
        raise UsageError("validation_at, test_at: these are for --split time")
    return leave_one_out(interactions)


def read_split(folder: Path) -> dict[str, Any]:
    """What a model's folder says of its split."""
    path = folder / _SPLIT_FILE
    if not path.exists():
        raise UsageError(f"model: {folder} has no {_SPLIT_FILE}, so its split is not known; train it anew")
    return read_json_object(path)


def load_model(
    folder: Path, device: str, new_items: Path | None = None, columns: Columns | None = None
) -> Recommender:
    """A saved model on a device, with the items of a table that it doesn't know yet."""
    from mambakit.core.training import resolve_device
    from mambakit.domains.recommendation.model import Recommender
    from mambakit.domains.recommendation.new_items import add_items, read_new_items

    model = Recommender.from_pretrained(folder).to(resolve_device(device)).eval()
    if new_items is None:
        return model
    return told(add_items(model, read_new_items(new_items, columns)), new_items).model


def told(added: Added, source: Path) -> Added:
    """What came of new items, said to the person."""
    tell([f"{source}: {len(added.items):,} items are new to the model", *added.notes])
    return added


def tell_of_missing(model: Recommender, interactions: Interactions) -> None:
    """Says if the model reads features of users and none are given: scores are others then."""
    if model.user_table is not None and interactions.user_features is None:
        print(
            "note: the model was trained with features of users, and none are given (--user-features): "
            "it takes all for users of whom nothing is known",
            file=sys.stderr,
        )


def load_peers(folder: Path, device: str) -> dict[str, Recommender]:
    """The networks that were trained beside a model, by the names they are known by."""
    from mambakit.domains.recommendation.peers import PEERS

    places = {name: folder / _BASELINES / peer for peer, name in PEERS.items()}
    return {
        name: load_model(place, device) for name, place in places.items() if (place / _SPLIT_FILE).exists()
    }


def measure(
    model: Recommender,
    interactions: Interactions,
    split: Split,
    device: str,
    peers: Mapping[str, Recommender],
) -> Evaluation:
    """The model beside its baselines on the test events."""
    from mambakit.core.training import resolve_device
    from mambakit.domains.recommendation.baselines import Bigram, ItemKNN, Popularity
    from mambakit.domains.recommendation.evaluation import evaluate as ranked

    model = model.to(resolve_device(device)).eval()
    scorers: dict[str, Scorer] = {
        OURS: model,
        **peers,
        "item neighbours": ItemKNN(interactions, split),
        "bigram": Bigram(interactions, split),
        "popularity": Popularity(interactions, split),
    }
    return ranked(scorers, interactions, split)
