"""Recorded demonstrations of a real arm and of a human hand: how far actions are off on held-out episodes.

    python benchmarks/robotics_demonstrations.py --gpus 0 1 2 3 --jobs 20 --keep runs
    python benchmarks/robotics_demonstrations.py --sets widowx --seeds 0 --limit 4
    python benchmarks/robotics_demonstrations.py --set model.dropout=0.3 --validation-only

The sets are BridgeData's excerpt of a WidowX arm (state, pictures of 64 x 64 pixels, instruction) and the
human demonstrations of Adroit's door; each holds 25 episodes. A seed is a split by episode (a tenth to choose
the weights by, a tenth to test on, the rest to learn from) and the network's; all networks see the same
splits. The error is the mean square of what an action is off, in deviations of the training actions: the
training mean scores about 1. Test episodes are measured once, with the weights that were best on validation.
Rows ``robotics/adroit-door-human/action-error`` and ``robotics/widowx/action-error`` hold the mean over the
splits and their standard deviation; ``.../action-error-ratio`` our mean over the MLP's. Runs with ``--set``,
``--limit`` or ``--validation-only`` write no rows, and touch no test episode but for ``--limit``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from robotics_trials import Job, Stages, complete, flags, read_data, tag, train_job
from trials import device_here, folder_of

SETS = ("widowx", "adroit-door-human")
KINDS = ("bc", "bc-mlp", "decision-transformer")
NAMES = {"bc": "mambakit", "bc-mlp": "bc-mlp", "decision-transformer": "transformer of 20 steps"}
# what differs from the preset, for all networks alike: chosen on three splits' validation episodes
SETTINGS: dict[str, dict[str, Any]] = {
    "widowx": {"model.dropout": 0.4},
    "adroit-door-human": {"model.dropout": 0.3, "train.max_epochs": 4},
}


def error_job(job: Job) -> Job:
    """Trains, and measures the actions' error on held-out episodes."""

    from mambakit.core.training.run_folder import write_atomically
    from mambakit.domains.robotics.policy.model import Policy
    from mambakit.domains.robotics.policy.training import action_error, read_parts

    began = time.time()
    kept = Path(job["folder"]) / f"error-{'test' if job['test'] else 'validation'}.json"
    if kept.exists():
        found: Job = json.loads(kept.read_text("utf-8"))
        if all(found.get(name) == value for name, value in job.items()):
            return found
    trained = train_job(job)
    parts = read_parts(read_data(job), seed=job["seed"])
    held = parts.test if job["test"] else parts.validation
    error = action_error(Policy.from_pretrained(job["folder"]).eval().to(device_here()), held)
    said = {**trained["said"], "error": round(error["scaled_mse"], 4), "seconds": round(time.time() - began)}
    result = {**job, "error_of": error["scaled_mse"], "said": said}
    write_atomically(kept, json.dumps(result))
    return result


def rows_of(found: Sequence[Job], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Result rows of the sets that every network and split is there for."""
    from rows import row

    made = []
    for name in dict.fromkeys(one["data"][0] for one in found):
        groups = complete([one for one in found if one["data"] == [name]], KINDS, seeds)
        if not groups:
            continue
        errors = {NAMES[kind]: [one["error_of"] for one in group] for kind, group in groups.items()}
        ours = errors.pop("mambakit")
        peers = {peer: float(np.mean(values)) for peer, values in errors.items()}
        mean = float(np.mean(ours))
        common = {"seeds": list(seeds)}
        made.append(
            row(
                f"robotics/{name}/action-error",
                round(mean, 4),
                "squared deviations",
                peers={peer: round(value, 4) for peer, value in peers.items()},
                spread=round(float(np.std(ours)), 4),
                **common,
            )
        )
        mlp = peers["bc-mlp"]
        ratios = {peer: round(value / mlp, 3) for peer, value in peers.items()}
        what = f"robotics/{name}/action-error-ratio"
        made.append(row(what, round(mean / mlp, 3), "of bc-mlp's", peers=ratios, **common))
    return made


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = flags(__doc__, seeds=range(10))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    arguments = parser.parse_args(words)
    stages = Stages(arguments)
    with folder_of(arguments.keep) as root:
        jobs = [
            {
                "name": f"{name} {NAMES[kind]} split {seed}",
                "data": [name],
                "kind": kind,
                # asked to go on as well as it went so far, a return tells nothing here
                "model": {"conditioning": ["instruction"] if name == "widowx" else []},
                "settings": SETTINGS[name],
                "seed": seed,
                "limit": arguments.limit,
                "changes": arguments.changes,
                "folder": str(root / "demonstrations" / f"{name}-{kind}-{seed}{tag(arguments)}"),
                "test": not (arguments.validation_only or arguments.changes),
            }
            for seed in arguments.seeds
            for name in arguments.sets
            for kind in KINDS
        ]
        found = stages.run("train", error_job, jobs)
    stages.arguments.only = ["measure"]  # there is one stage here
    return stages.finish(rows_of(found, arguments.seeds) if stages.writes else [])


if __name__ == "__main__":
    sys.exit(main())
