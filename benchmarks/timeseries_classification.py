"""The frozen preset on labelled series, beside its baselines, in one run.

    python benchmarks/timeseries_classification.py --seeds 0 1 2 3 4

Trains a classifier for every set and seed with the app's own code (epochs chosen on folds of the training
series), classifies every test series once, and writes rows into results/timeseries-classification.json.
``--set augment.jitter=0.2`` changes the preset for a trial; such runs, and those with ``--validation-only``,
read no test series and write no rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mambakit.core.training import RunFolder
from mambakit.domains.timeseries.classification import config as presets
from mambakit.domains.timeseries.classification.evaluation import evaluate_classifier
from mambakit.domains.timeseries.classification.training import train_classifier
from mambakit.domains.timeseries.tables.labelled import load_labelled
from rows import row, write_rows

# MambaSL (ICLR 2026): scripts/classification/MambaSL.out in thuml/Time-Series-Library at 4e938a1.
PUBLISHED = {"JapaneseVowels": {"MambaSL (published)": 0.9865}, "ItalyPowerDemand": {}}


def run_one(name: str, seed: int, changes: dict[str, Any], *, test: bool) -> dict[str, Any]:
    """Trains and measures one set and seed."""
    configs: dict[str, Any] = {
        "model": presets.PRESET_CLASSIFIER,
        "augment": presets.PRESET_AUGMENT,
        "selection": presets.PRESET_SELECTION,
        "train": dataclasses.replace(presets.PRESET_CLASSIFIER_TRAIN, seed=seed, device="cpu"),
    }
    for key, value in changes.items():
        part, _, field = key.partition(".")
        configs[part] = dataclasses.replace(configs[part], **{field: value})
    if not test:
        configs["selection"] = dataclasses.replace(configs["selection"], refit=False)
    train = load_labelled(name, "train")
    with tempfile.TemporaryDirectory() as folder:
        model, result = train_classifier(
            train,
            RunFolder(Path(folder) / "run"),
            **{f"{part}_config": config for part, config in configs.items()},
        )
    found: dict[str, Any] = {"set": name, "seed": seed, **dataclasses.asdict(result)}
    if test:
        found["rows"] = evaluate_classifier(model, load_labelled(name, "test"), train=train).rows
    return found


def rows_of(found: list[dict[str, Any]], command: str) -> list[dict[str, Any]]:
    """Result rows: the mean over the seeds of each set's scores."""
    made = []
    for name in dict.fromkeys(one["set"] for one in found):
        mine = [one for one in found if one["set"] == name]
        units = {"accuracy": "share", "balanced_accuracy": "share", "macro_f1": "F1", "coverage": "share"}
        for metric, unit in units.items():
            values = [one["rows"][0][metric] for one in mine]
            peers = {peer["classifier"]: peer.get(metric) for peer in mine[0]["rows"][1:]}
            peers = {peer: round(value, 4) for peer, value in peers.items() if value is not None}
            made.append(
                row(
                    # the README's table of time series shows the accuracy alone
                    f"timeseries{'' if metric == 'accuracy' else '-classification'}/{name}/{metric}",
                    round(statistics.mean(values), 4),
                    unit,
                    peers=peers | (PUBLISHED[name] if metric == "accuracy" else {}),
                    spread=round(statistics.pstdev(values), 4),
                    seeds=[one["seed"] for one in mine],
                    command=command,
                )
            )
    return made


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="PART.FIELD=JSON")
    parser.add_argument("--validation-only", action="store_true", help="read no test series")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (c.partition("=") for c in arguments.changes)}
    test = not (arguments.validation_only or changes)
    torch.set_num_threads(1)
    found = []
    for name in arguments.sets:
        for seed in arguments.seeds:
            found.append(run_one(name, seed, changes, test=test))
            one = found[-1]
            print(json.dumps(one), flush=True)
        mine = [one for one in found if one["set"] == name]
        held_out = statistics.mean(one["validation_accuracy"] for one in mine)
        loss = statistics.mean(one["validation_loss"] for one in mine)
        print(f"{name}: held-out accuracy {held_out:.4f}, log-loss {loss:.4f}, {len(mine)} seeds", flush=True)
    if test:
        seeds = " ".join(str(seed) for seed in arguments.seeds)
        made = rows_of(found, f"python benchmarks/timeseries_classification.py --seeds {seeds}")
        print(f"{len(made)} rows written to {write_rows('timeseries-classification', made)}")
        for one in made:
            print(one["what"], one["value"], "+-", one["spread"], one["peers"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
