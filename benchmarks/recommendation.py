"""The preset on ML-1M and Amazon Beauty beside its baselines, with the same loss and budget, in one run.

    python benchmarks/recommendation.py --seeds 0 1 2 --jobs 6
    python benchmarks/recommendation.py --sets ml-1m --set model.n_layers=2 --validation-only
    python benchmarks/recommendation.py --sets ml-1m --seeds 0 --times

Leave-one-out with stable ties, all items ranked, seen items both kept and left out. The network is trained on
each user's events but the last two, its weights are chosen by validation NDCG@10, and the test events are
ranked once. ``SASRec`` and ``GRU4Rec`` are the same code with other blocks (domains/recommendation/peers.py).
Histories are cut to 200 events (Beauty: 50) in training, and read whole in evaluation. ``--times`` trains one
network at a time, ranks no test event and writes ``seconds-to-best`` alone: the training time until the epoch
of the weights kept, validation left out, compilation included. SASRec is timed twice, packed in rows of 512,
as all are, and in rows of ``max_length``, where attention scores fewer pairs; its time is that of the faster.
Runs with ``--set`` or ``--validation-only`` write no rows; others write
results/recommendation.json. A run of the journal is reused only for the same settings and commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from processes import run_all

# What differs from the preset on each set, for all networks alike: PART.FIELD of model, loss and train.
SETTINGS: dict[str, dict[str, Any]] = {
    "ml-1m": {"model.d_model": 192},
    "amazon-beauty": {
        "loss.max_length": 50,
        "model.n_layers": 2,
        "model.dropout": 0.5,
        "model.embedding_dropout": 0.5,
        "train.weight_decay": 0.1,
    },
}
NETWORKS = {"mambakit": None, "SASRec": "sasrec", "GRU4Rec": "gru4rec"}
SHORT_ROWS = {"loss.row_length": 1}  # rows of max_length, the least that are packed
# NDCG@10 / HR@10 under the same protocol: what data/recommendation's sources state.
PUBLISHED = {
    "ml-1m": {
        "unfiltered": {
            "Mamba4Rec (published)": (0.1822, 0.3121),
            "SASRec, RecBole (published)": (0.1662, 0.2952),
        },
        "filtered": {
            "SASRec+ (published)": (0.1821, 0.3152),
            "HSTU-large, stable (published)": (0.2164, 0.3642),
        },
    },
    "amazon-beauty": {
        "unfiltered": {"Mamba4Rec (rerun, published)": (0.0431, 0.0734)},
        "filtered": {"SASRec+SS (published)": (0.0531, 0.0921), "eSASRec (published)": (0.0523, 0.0928)},
    },
}


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one network on one set with one seed and ranks the events of a split."""
    import torch

    from mambakit.core.training import RunFolder, resolve_device
    from mambakit.domains.recommendation.cards import load_interactions
    from mambakit.domains.recommendation.config import PRESET_LOSS, PRESET_MODEL, PRESET_TRAIN
    from mambakit.domains.recommendation.data import leave_one_out
    from mambakit.domains.recommendation.evaluation import evaluate
    from mambakit.domains.recommendation.peers import peer_config
    from mambakit.domains.recommendation.training import train_recommender

    torch.set_num_threads(1)
    interactions = load_interactions(job["set"])
    split = leave_one_out(interactions)
    configs: dict[str, Any] = {
        "model": PRESET_MODEL,
        "loss": PRESET_LOSS,
        "train": dataclasses.replace(PRESET_TRAIN, seed=job["seed"], device=job["device"]),
    }
    for change, value in {**job["settings"], **job["changes"]}.items():
        part, _, field = change.partition(".")
        configs[part] = dataclasses.replace(configs[part], **{field: value})
    peer = NETWORKS[job["network"]]
    if peer is not None:
        configs["model"] = peer_config(peer, configs["model"])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model, result = train_recommender(
            interactions,
            split,
            RunFolder(Path(folder) / "run"),
            model_config=configs["model"],
            loss_config=configs["loss"],
            train_config=configs["train"],
        )
    seconds = time.monotonic() - began
    model = model.to(resolve_device(job["device"]))
    measured = evaluate({job["network"]: model}, interactions, split, which=job["which"])
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "validation": result.best_score,
        "epochs": result.epochs,
        "steps_to_best": result.steps_to_best,
        "seconds_to_best": result.seconds_to_best,
        "seconds": round(seconds, 1),
    }
    return {**job, **found, "rows": {str(row["filter"]): row for row in measured.rows}}


def counted(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The baselines that only count, by filter and name."""
    from mambakit.domains.recommendation.baselines import Bigram, ItemKNN, Popularity
    from mambakit.domains.recommendation.cards import load_interactions
    from mambakit.domains.recommendation.data import leave_one_out
    from mambakit.domains.recommendation.evaluation import evaluate

    interactions = load_interactions(name)
    split = leave_one_out(interactions)
    kinds = {"bigram": Bigram, "item neighbours": ItemKNN, "popularity": Popularity}
    measured = evaluate({key: kind(interactions, split) for key, kind in kinds.items()}, interactions, split)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in measured.rows:
        found.setdefault(str(row["filter"]), {})[str(row["scorer"])] = row
    return found


def result_rows(
    name: str, done: list[dict[str, Any]], seeds: list[int], *, times: bool
) -> list[dict[str, Any]]:
    """Rows of one set: ours beside other networks, what counts, and what is published; or its times."""
    from rows import row

    def beside(what: str, unit: str, values: dict[str, list[float]], digits: int, **more: float) -> Any:
        own = values.pop("mambakit")
        peers = {key: round(statistics.mean(one), digits) for key, one in values.items() if one}
        return row(
            f"recommendation/{name}/{what}",
            round(statistics.mean(own), digits),
            unit,
            peers={**peers, **more},
            spread=round(statistics.pstdev(own), digits),
            seeds=seeds,
        )

    def of_jobs(value: Callable[[dict[str, Any]], float], **changes: Any) -> dict[str, list[float]]:
        own = [job for job in done if job["changes"] == changes]
        return {one: [value(job) for job in own if job["network"] == one] for one in NETWORKS}

    if times:
        seconds, short = (of_jobs(lambda job: job["seconds_to_best"], **rows) for rows in ({}, SHORT_ROWS))
        seconds["SASRec"] = min(seconds["SASRec"], short["SASRec"], key=statistics.mean)
        return [beside("seconds-to-best", "s of training", seconds, 1)]
    baselines = counted(name)
    made = []
    for which in ("unfiltered", "filtered"):
        for place, metric in enumerate(("ndcg@10", "hr@10")):
            more = {key: round(one[metric], 4) for key, one in baselines[which].items()}
            more |= {key: pair[place] for key, pair in PUBLISHED[name][which].items()}
            values = of_jobs(lambda job, which=which, metric=metric: job["rows"][which][metric])
            made.append(beside(f"{metric}/{which}", "of test events", values, 4, **more))
    made.append(beside("parameters", "parameters", of_jobs(lambda job: job["parameters"]), 0))
    return made


def jobs_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What to run, with all that a finished run must share to stand for it."""
    from rows import commit

    pairs = (one.partition("=") for one in arguments.given)
    changes = {key: json.loads(value) for key, _, value in pairs}
    chosen_by = arguments.validation_only or changes or arguments.times
    return [
        {
            "set": name,
            "network": network,
            "seed": seed,
            "device": arguments.device,
            "settings": SETTINGS[name],
            "changes": own,
            "which": "validation" if chosen_by else "test",
            "times": arguments.times,
            "commit": commit(),
        }
        for name in arguments.sets
        for network in arguments.networks
        for own in ([changes, SHORT_ROWS] if arguments.times and network == "SASRec" else [changes])
        for seed in arguments.seeds
    ]


def finished(journal: Path | None, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of the journal that stand for some of the jobs."""
    if journal is None or not journal.exists():
        return []
    known = [json.loads(line) for line in journal.read_text().splitlines()]
    return [one for one in known if any(job.items() <= one.items() for job in jobs)]


def main(words: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--gpus", nargs="*", default=[], help="which accelerators the processes share")
    parser.add_argument("--journal", help="a file of finished runs: what is in it is not run again")
    parser.add_argument("--set", dest="given", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--validation-only", action="store_true", help="rank no test event")
    parser.add_argument("--times", action="store_true", help="time the training alone; one process, no test")
    arguments = parser.parse_args(words)
    alone = arguments.jobs == 1 and not arguments.given and {"mambakit", "SASRec"} <= set(arguments.networks)
    if arguments.times and not alone:
        parser.error("--times: the preset beside SASRec, one process at once")
    jobs = jobs_of(arguments)
    journal = Path(arguments.journal) if arguments.journal else None
    done = finished(journal, jobs)
    jobs = [job for job in jobs if not any(job.items() <= one.items() for one in done)]

    def tell(job: dict[str, Any], seconds: float) -> None:
        if "error" in job:
            print(job["error"], file=sys.stderr)
            return
        if journal is not None:
            with journal.open("a") as file:
                file.write(json.dumps(job) + "\n")
        shown = {
            which: {metric: round(one[metric], 4) for metric in ("hr@10", "ndcg@10")}
            for which, one in job["rows"].items()
        }
        kept = ("set", "network", "changes", "seed", "which", "parameters", "validation", "epochs")
        kept += ("steps_to_best", "seconds_to_best", "seconds")
        print(json.dumps({**{key: job[key] for key in kept}, **shown}), flush=True)

    ran = run_all(run_job, jobs, arguments.jobs, tell=tell, gpus=arguments.gpus)
    done += [job for job in ran if "error" not in job]
    if len(ran) < len(jobs) or any("error" in job for job in ran):
        sys.exit("not all runs were done, so no rows are written")
    if arguments.given or arguments.validation_only or "mambakit" not in arguments.networks:
        return
    from rows import write_rows

    rows = []
    for name in arguments.sets:
        own = [job for job in done if job["set"] == name]
        rows += result_rows(name, own, arguments.seeds, times=arguments.times)
    print(write_rows("recommendation", rows))


if __name__ == "__main__":
    main()
