"""Pixels and words: reach the disc that the instruction names, with pairs of colour and wording never seen.

    python benchmarks/robotics_reaching.py --seeds 0 1 2 --gpus 0 1 2 3 --jobs 6 --cores 32 --keep runs
    python benchmarks/robotics_reaching.py --seeds 0 --limit 4
    python benchmarks/robotics_reaching.py --set train.max_epochs=40 --validation-only --keep runs

The task is mambakit/ColouredReach-v0 (domains/robotics/reaching.py): pictures of 64 x 64 pixels, the arm's
own joints, and an instruction; where the discs lie is in the picture alone. A scripted expert under growing
noise shows it, on three quarters of the pairs. Ours reads pictures by scans that look for what is asked, and
has a memory; the peer is a convolutional network and an MLP (behaviour cloning) with the same options and
data. Weights are chosen on validation seeds of training's pairs; 200 test episodes for each seed are measured
once. Rows: ``robotics/reaching/success/unseen`` and ``.../seen`` (pairs of the training, other places), in
per cent, with the deviation over training seeds. Pictures are drawn in software or on the GPU
(MUJOCO_GL=egl). Runs with ``--set``, ``--limit`` or ``--validation-only`` write no rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from robotics_trials import (
    Job,
    Stages,
    collect_job,
    complete,
    data_at,
    flags,
    measure_job,
    tag,
    train_job,
)
from trials import folder_of

ENV = "mambakit/ColouredReach-v0"
SHARDS, EPISODES_EACH, PIXELS = 80, 50, 64
# of the expert's actions a few hundredths are signal once it is near: half the range of noise drowns them
NOISE = 0.05
# scenes, of which a batch has few, tell more than steps do; windows, so that a batch has more of them. Of the
# rates 3e-3, 1e-3 and 5e-4 (two trainings each, validation) the middle one finds the discs in half of the
# steps; from 2,000 episodes it learns by heart soon afterwards
SETTINGS = {"model.previous_action": False, "train.lr": 1e-3, "train.batch_size": 32, "train.max_epochs": 30}
# two looks before, from 2,000 episodes with a rate of 3e-3, had other scenes than these
FIRST_TEST_SEED = 700_000
KINDS = ("bc", "bc-mlp")
NAMES = {"bc": "mambakit", "bc-mlp": "CNN + MLP"}
PARTS = ("unseen", "seen")


def data_jobs(arguments: Any, root: Path) -> list[Job]:
    """One a shard: each an own run of noises and seeds."""
    n = arguments.limit or EPISODES_EACH
    return [
        {
            "name": f"{ENV} {shard}",
            "env": ENV,
            "level": "noisy",
            "episodes": n,
            "image_size": PIXELS,
            "noise": NOISE,
            "limit": arguments.limit,
            "seed": shard * n,
            "root": str(root),
            "folder": str(data_at(root, arguments, f"reaching-{shard:02d}")),
        }
        for shard in range(1 if arguments.limit else SHARDS)
    ]


def policy_jobs(arguments: Any, root: Path, data: Sequence[Job]) -> list[Job]:
    """One a policy."""
    test = not (arguments.validation_only or arguments.changes)
    return [
        {
            "name": f"reaching {NAMES[kind]} seed {seed}",
            "env": ENV,
            "data": [one["folder"] for one in data],
            "image_size": PIXELS,
            "kind": kind,
            "of_kind": {"bc-mlp": {"pictures": "cnn"}},
            "settings": SETTINGS,
            "seed": seed,
            "limit": arguments.limit,
            "changes": arguments.changes,
            "folder": str(root / "reaching" / f"{kind}-{seed}{tag(arguments)}"),
            "test": test,
            "validation_episodes": 2 if arguments.limit else 20,
            "test_episodes": 3 if arguments.limit else 200,
            "first_test_seed": FIRST_TEST_SEED,
            "n_envs": 10,
        }
        for seed in arguments.seeds
        for kind in KINDS
    ]


def rows_of(found: Sequence[Job], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Result rows of the parts that every network and seed is there for."""
    from rows import row

    made = []
    for part in PARTS:
        groups = complete([one for one in found if one["part"] == part], KINDS, seeds)
        if not groups:
            continue
        shares = {
            NAMES[kind]: [100 * float(np.mean(one["successes"])) for one in group]
            for kind, group in groups.items()
        }
        ours = shares.pop("mambakit")
        made.append(
            row(
                f"robotics/reaching/success/{part}",
                round(float(np.mean(ours)), 1),
                "%",
                peers={name: round(float(np.mean(values)), 1) for name, values in shares.items()},
                spread=round(float(np.std(ours)), 1),
                seeds=list(seeds),
            )
        )
    return made


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = flags(__doc__).parse_args(words)
    stages = Stages(arguments)
    with folder_of(arguments.keep) as root:
        data = data_jobs(arguments, root)
        stages.run("collect", collect_job, data)
        jobs = policy_jobs(arguments, root, data)
        stages.run("train", train_job, jobs)
        measured = [
            {
                **job,
                "name": f"{job['name']}, {part} pairs",
                "part": part,
                "measured_in": {"pairs": {"unseen": "unseen", "seen": "train"}[part]},
            }
            for job in jobs
            for part in (PARTS if job["test"] else PARTS[:1])
        ]
        found = stages.run("measure", measure_job, measured)
    return stages.finish(rows_of(found, arguments.seeds) if stages.writes else [])


if __name__ == "__main__":
    sys.exit(main())
