"""Where the present does not tell enough: hidden velocities, and actions that take effect late.

    python benchmarks/robotics_memory.py --seeds 0 1 2 --gpus 0 1 2 3 --jobs 20 --cores 60 --keep runs
    python benchmarks/robotics_memory.py --tasks masked --envs Hopper-v5 --seeds 0 --limit 8
    python benchmarks/robotics_memory.py --set model.previous_action=true --validation-only --keep runs

Learns from the medium-expert data of robotics_locomotion.py (``--keep`` may be the same folder), changed as
the wrappers change the environment: velocities read zero, or an action takes effect 2, 4 or 8 steps late.
Policies with a memory (state-space layers, told the return to go or not) beside a decision transformer of 20
steps and an MLP; none is told its previous action. Weights, target returns and which of our two is reported
are chosen on validation seeds; test seeds are measured once. Rows: ``robotics/masked-hopper/return``,
``robotics/delay-4-hopper/return`` (means over seeds of 50 episodes each, and their deviation over training
seeds), and ``.../ratio``, ours over the better of the two peers. Runs with
``--set``, ``--limit`` or ``--validation-only`` write no rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from robotics_locomotion import ENVS, collect_all, policy_jobs, short
from robotics_trials import Job, Stages, complete, flags, measure_job, tag, train_job
from trials import folder_of

TASKS: dict[str, dict[str, Any]] = {
    "masked": {"mask": "velocities"},
    "delay-2": {"action_delay": 2},
    "delay-4": {"action_delay": 4},
    "delay-8": {"action_delay": 8},
}
OURS = ("decision-mamba", "bc")
PEERS = ("decision-transformer", "bc-mlp")
LEVEL = "medium-expert"
# chosen on validation seeds of Hopper: told its previous action, a policy errs less on what was recorded and
# falls sooner
SETTINGS = {"model.previous_action": False}


def rows_of(found: Sequence[Job], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Result rows of the tasks that every kind and seed is there for."""
    from rows import row

    made = []
    for task in dict.fromkeys(one["task"] for one in found):
        groups = complete([one for one in found if one["task"] == task], (*OURS, *PEERS), seeds)
        if not groups:
            continue
        of_each = {kind: [float(np.mean(one["returns"])) for one in group] for kind, group in groups.items()}
        mean = {kind: float(np.mean(values)) for kind, values in of_each.items()}
        ours = max(OURS, key=lambda kind: np.mean([one["validation"] for one in groups[kind]]))
        best = max(mean[kind] for kind in PEERS)
        peers = {kind: round(value, 1) for kind, value in mean.items() if kind != ours}
        peers["mean episode of the data"] = round(float(groups[ours][0]["mean_of_data"]), 1)
        common = {"seeds": list(seeds)}
        spread = round(float(np.std(of_each[ours])), 1)
        made.append(
            row(
                f"robotics/{task}/return",
                round(mean[ours], 1),
                f"mean return, {ours}",
                peers=peers,
                spread=spread,
                **common,
            )
        )
        if best > 0:  # a ratio to less than nothing says nothing
            ratios = {kind: round(value / best, 3) for kind, value in mean.items() if kind != ours}
            made.append(
                row(
                    f"robotics/{task}/ratio",
                    round(mean[ours] / best, 3),
                    "of the better peer's",
                    peers=ratios,
                    **common,
                )
            )
    return made


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = flags(__doc__)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=ENVS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args(words)
    arguments.kinds = [*OURS, *PEERS]
    stages = Stages(arguments)
    with folder_of(arguments.keep) as root:
        data = collect_all(arguments, stages, root, [(env, LEVEL) for env in arguments.envs])
        jobs = [
            changed_job(one, task, root, arguments)
            for task in arguments.tasks
            for one in policy_jobs(arguments, root, data)
        ]
        stages.run("train", train_job, jobs)
        found = stages.run("measure", measure_job, jobs)
    return stages.finish(rows_of(found, arguments.seeds) if stages.writes else [])


def changed_job(one: Job, task: str, root: Path, arguments: Any) -> Job:
    """A policy's job in a changed environment."""
    name = f"{task}-{short(one['env'])}"
    folder = root / "memory" / f"{name}-{one['kind']}-{one['seed']}{tag(arguments)}"
    more = {"task": name, "wrappers": TASKS[task], "folder": str(folder), "settings": SETTINGS}
    return {**one, "name": f"{task} {one['name']}", **more}


if __name__ == "__main__":
    sys.exit(main())
