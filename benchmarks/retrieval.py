"""What neighbours of hidden states bring to a recommender and a forecaster, beside the same models without.

    python benchmarks/retrieval.py --seeds 0 1 --jobs 2
    python benchmarks/retrieval.py --parts timeseries --seeds 0 --validation-only

Small models, which a CPU trains in minutes: on every eighth user of ml-1m one layer, 64 wide, 3 epochs; on
ETTh1 two members of the preset, lookback 96, horizon 96, 2 epochs. k, temperature and share are chosen on
validation events and windows, a share of none among them; the test is then measured once with and once
without. Rows ``core/retrieval/ml-1m-eighth/ndcg@10/unfiltered`` and so on, and
``core/retrieval/ETTh1/mse/L96-H96``.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from typing import Any

from trials import add_trial_flags, changed, device_here, measured, read_changes, run_at

PARTS = ("recommendation", "timeseries")
FRACTION = 8


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains a model, gives it neighbours, and measures it with and without."""
    began = time.monotonic()
    of = recommender if job["part"] == "recommendation" else forecaster
    with run_at(job["keep"], "retrieval", job["part"], job["seed"]) as folder:
        found = of(job, device_here(), folder)
    return {**job, **found, "seconds": round(time.monotonic() - began, 1)}


def recommender(job: dict[str, Any], device: str, folder: Any) -> dict[str, Any]:
    """On every eighth user of ml-1m."""
    import numpy as np

    from mambakit.core.training import RunFolder
    from mambakit.domains.recommendation.cards import load_interactions
    from mambakit.domains.recommendation.config import PRESET_LOSS, PRESET_MODEL, PRESET_TRAIN
    from mambakit.domains.recommendation.data import leave_one_out
    from mambakit.domains.recommendation.evaluation import evaluate
    from mambakit.domains.recommendation.retrieval import add_neighbours
    from mambakit.domains.recommendation.training import train_recommender

    configs = changed(
        {
            "model": dataclasses.replace(PRESET_MODEL, d_model=64, n_layers=1),
            "loss": dataclasses.replace(PRESET_LOSS, max_length=100),
            "train": dataclasses.replace(
                PRESET_TRAIN, max_epochs=3, batch_size=16, ema_decay=0.99, seed=job["seed"], device=device
            ),
        },
        job["changes"],
    )
    interactions = some_users(load_interactions("ml-1m"), FRACTION * (job["limit"] or 1))
    split = leave_one_out(interactions)
    model, _ = train_recommender(
        interactions,
        split,
        RunFolder(folder),
        model_config=configs["model"],
        loss_config=configs["loss"],
        train_config=configs["train"],
    )
    model = model.to(device)
    tried = add_neighbours(model, interactions, split)
    found: dict[str, Any] = {}
    neighbours = model.neighbours
    for name, own in (("with", neighbours), ("without", None)):
        model.neighbours = own
        rows = evaluate({name: model}, interactions, split, which=job["which"]).rows
        found[name] = {
            f"{metric}/{row['filter']}": float(np.asarray(row[metric]))
            for row in rows
            for metric in ("ndcg@10", "hr@10")
        }
    return {"errors": found, "mix": dataclasses.asdict(tried[0][0])}


def some_users(interactions: Any, every: int) -> Any:
    """Every so many users with all their events, and the whole catalogue."""
    kept = interactions.user % every == 0
    return dataclasses.replace(
        interactions,
        users=interactions.users[::every],
        user=interactions.user[kept] // every,
        item=interactions.item[kept],
        time=interactions.time[kept],
        user_features=None,
    )


def forecaster(job: dict[str, Any], device: str, folder: Any) -> dict[str, Any]:
    """On ETTh1."""
    from mambakit.core.training import RunFolder
    from mambakit.domains.timeseries.config import PRESET_TRAIN, LossConfig, ModelConfig
    from mambakit.domains.timeseries.data import load_data
    from mambakit.domains.timeseries.evaluation import OURS, evaluate
    from mambakit.domains.timeseries.retrieval import add_neighbours
    from mambakit.domains.timeseries.training import make_values, train_forecaster

    configs = changed(
        {
            "model": ModelConfig(members=2),
            "loss": LossConfig(),
            "train": dataclasses.replace(PRESET_TRAIN, max_epochs=2, seed=job["seed"], device=device),
        },
        job["changes"],
    )
    data, sizes = load_data("ETTh1"), {"lookback": 96, "horizon": 96}
    model, _ = train_forecaster(
        data,
        RunFolder(folder),
        **sizes,
        model_config=configs["model"],
        loss_config=configs["loss"],
        train_config=configs["train"],
    )
    tried = add_neighbours(model.to(device), data, most_keys=20_000 // (job["limit"] or 1))
    values, found = make_values(data, model.tokenizer), {}
    neighbours = model.neighbours
    for name, own in (("with", neighbours), ("without", None)):
        model.neighbours = own
        made = evaluate(model, data, job["which"], values=values, device=device, **sizes)
        row = next(one for one in made.rows if one["forecaster"] == OURS)
        found[name] = {metric: float(row[metric]) for metric in ("mse", "mae", "mase")}
    return {"errors": found, "mix": dataclasses.asdict(tried[0][0])}


def rows_of(found: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows."""
    from rows import row

    made = []
    for part in PARTS:
        runs = sorted((one for one in found if one["part"] == part), key=lambda one: one["seed"])
        for metric in runs[0]["errors"]["with"] if runs else ():
            ours, without = ([one["errors"][name][metric] for one in runs] for name in ("with", "without"))
            of_series = part == "timeseries"
            what = f"ETTh1/{metric}/L96-H96" if of_series else f"ml-1m-eighth/{metric}"
            made.append(
                row(
                    f"core/retrieval/{what}",
                    round(statistics.mean(ours), 4),
                    ("of scaled values" if metric != "mase" else "MASE") if of_series else "of test events",
                    peers={"without neighbours": round(statistics.mean(without), 4)},
                    spread=round(statistics.stdev(ours), 4) if len(ours) > 1 else None,
                    seeds=[one["seed"] for one in runs],
                    command=command,
                )
            )
    return made


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--validation-only", action="store_true", help="look at no test")
    add_trial_flags(parser)
    arguments = parser.parse_args()
    changes = read_changes(arguments.changes)
    jobs = [
        {
            "part": part,
            "seed": seed,
            "changes": changes,
            "limit": arguments.limit,
            "which": "validation" if arguments.validation_only or changes else "test",
            "keep": arguments.keep and str(arguments.keep),
        }
        for part in arguments.parts
        for seed in arguments.seeds
    ]
    return measured(run_job, jobs, arguments, rows_of, "retrieval")


if __name__ == "__main__":
    sys.exit(main())
