"""Hopper, HalfCheetah and Walker2d on data of three levels: policies with a state beside those without.

    python benchmarks/robotics_locomotion.py --seeds 0 1 2 --gpus 0 1 2 3 --jobs 20 --cores 60 --keep runs
    python benchmarks/robotics_locomotion.py --envs Hopper-v5 --levels medium --seeds 0 --limit 8
    python benchmarks/robotics_locomotion.py --envs Hopper-v5 --set train.max_epochs=40 --validation-only

Experts are linear policies that are searched for (domains/robotics/experts); ``medium`` earns about half of
what they do, ``medium-replay`` is all that the search tried on the way there, ``medium-expert`` is half and
half. The data are collected once into ``--keep``, and every policy is trained on the same episodes with the
same options. Which weights are taken (best on held-out episodes, or last) and the target return of those that
are told one are chosen on validation seeds; test seeds are measured once, 50 episodes for each training seed.
Rows ``robotics/hopper-medium/score`` hold the interquartile mean over all episodes of scores normalised by
D4RL's references (but in v5 environments: not D4RL scores), and as spread half of its 95 % bootstrap
interval; ``.../return`` the mean return and its deviation over training seeds. Beside them: decision
transformer, behaviour cloning with and without memory, IQL, and the data's best and mean episode. Runs with
``--set``, ``--limit`` or ``--validation-only`` write no rows; the first and the last touch no test seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from robotics_trials import (
    SEARCH_WORKERS,
    Job,
    Stages,
    collect_job,
    complete,
    data_at,
    flags,
    measure_job,
    search_job,
    tag,
    train_job,
)
from trials import folder_of

ENVS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5")
EPISODES = {"medium": 200, "medium-replay": 400, "medium-expert": 200}
KINDS = ("decision-mamba", "decision-transformer", "bc", "bc-mlp", "iql")
OURS = "decision-mamba"


def short(env: str) -> str:
    """Such as hopper."""
    return env.rpartition("-v")[0].lower()


def data_jobs(arguments: Any, root: Path, pairs: Sequence[tuple[str, str]]) -> list[Job]:
    """One a data set: of each pair of environment and level."""
    return [
        {
            "name": f"{env} {level}",
            "env": env,
            "level": level,
            "episodes": arguments.limit or EPISODES[level],
            "limit": arguments.limit,
            "seed": 0,
            "root": str(root),
            "folder": str(data_at(root, arguments, f"{short(env)}-{level}")),
        }
        for env, level in pairs
    ]


def collect_all(arguments: Any, stages: Stages, root: Path, pairs: Sequence[tuple[str, str]]) -> list[Job]:
    """Experts first, then the data sets; returns the data sets' jobs."""
    jobs = data_jobs(arguments, root, pairs)
    cores = arguments.cores or arguments.jobs
    envs = list(dict.fromkeys(env for env, _ in pairs))
    at_once = min(len(envs), max(1, cores // SEARCH_WORKERS))
    share = {"workers": max(1, min(SEARCH_WORKERS, cores // at_once))}
    searches = [
        {"name": f"{env} expert", "env": env, "limit": arguments.limit, "root": str(root), **share}
        for env in envs
    ]
    stages.run("collect", search_job, searches, at_once)
    stages.run("collect", collect_job, jobs)
    return jobs


def policy_jobs(arguments: Any, root: Path, data: Sequence[Job]) -> list[Job]:
    """One a policy: of each data set, kind and seed."""
    return [
        {
            "name": f"{one['name']} {kind} seed {seed}",
            "task": f"{short(one['env'])}-{one['level']}",
            "env": one["env"],
            "data": [one["folder"]],
            "kind": kind,
            "seed": seed,
            "limit": arguments.limit,
            "changes": arguments.changes,
            "folder": str(
                root / "locomotion" / f"{short(one['env'])}-{one['level']}-{kind}-{seed}{tag(arguments)}"
            ),
            "test": not (arguments.validation_only or arguments.changes),
            "validation_episodes": 2 if arguments.limit else 8,
            "test_episodes": 3 if arguments.limit else 50,
        }
        for seed in arguments.seeds
        for one in data
        for kind in arguments.kinds
    ]


def rows_of(found: Sequence[Job], seeds: Sequence[int], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Result rows of the tasks that every kind and seed is there for."""
    from mambakit.domains.robotics.evaluation import bootstrap_interval, interquartile_mean, normalised_score
    from mambakit.domains.robotics.scores import reference_of
    from rows import row

    made = []
    for task in dict.fromkeys(one["task"] for one in found):
        groups = complete([one for one in found if one["task"] == task], kinds, seeds)
        if OURS not in groups:
            continue
        first = groups[OURS][0]
        reference = reference_of(first["env"])
        assert reference is not None

        def scores(returns: Any, reference: Any = reference) -> Any:
            return normalised_score(returns, reference.random, reference.expert)

        of_data = {"best episode of the data": "best_of_data", "mean episode of the data": "mean_of_data"}
        middle = {
            kind: float(interquartile_mean(scores([one["returns"] for one in group])))
            for kind, group in groups.items()
        }
        middle |= {name: float(scores(first[field])) for name, field in of_data.items()}
        low, high = bootstrap_interval([scores(one["returns"]) for one in groups[OURS]])
        whole = {kind: [float(np.mean(one["returns"])) for one in group] for kind, group in groups.items()}
        mean = {kind: float(np.mean(values)) for kind, values in whole.items()}
        mean |= {name: float(first[field]) for name, field in of_data.items()}
        for what, unit, of, spread in (
            ("score", "normalised score (v5, IQM)", middle, (high - low) / 2),
            ("return", "mean return", mean, float(np.std(whole[OURS]))),
        ):
            peers = {name: round(value, 1) for name, value in of.items() if name != OURS}
            made.append(
                row(
                    f"robotics/{task}/{what}",
                    round(of[OURS], 1),
                    unit,
                    peers=peers,
                    spread=round(spread, 1),
                    seeds=list(seeds),
                )
            )
    return made


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = flags(__doc__)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=ENVS)
    parser.add_argument("--levels", nargs="+", default=list(EPISODES), choices=list(EPISODES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    arguments = parser.parse_args(words)
    stages = Stages(arguments)
    with folder_of(arguments.keep) as root:
        pairs = [(env, level) for env in arguments.envs for level in arguments.levels]
        data = collect_all(arguments, stages, root, pairs)
        jobs = policy_jobs(arguments, root, data)
        stages.run("train", train_job, jobs)
        found = stages.run("measure", measure_job, jobs)
    return stages.finish(rows_of(found, arguments.seeds, arguments.kinds) if stages.writes else [])


if __name__ == "__main__":
    sys.exit(main())
