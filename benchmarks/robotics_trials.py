"""What the benchmarks of robot control share: data that are collected once, training, measuring, rows.

They go in three stages, each a list of jobs for ``processes.run_all``: ``collect`` (on the CPU's cores),
``train`` (on the GPUs) and ``measure`` (environments on the cores again, the networks beside them there, as
their steps are small). What a stage leaves lies in the folder ``--keep``, so that killed runs go on, stages
may run on different machines, and benchmarks share their data.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from processes import run_all
from trials import add_trial_flags, changed, device_here, is_trial, publish, read_changes

Job = dict[str, Any]
STAGES = ("collect", "train", "measure")
FIRST_TEST_SEED = 500_000
"""Episodes that are measured count up from here: no collected and no validation episode has such a seed."""
SEARCH_WORKERS = 16
"""Of a search, whose iterations try 16 or 32 policies."""


def flags(description: str | None, seeds: Sequence[int] = (0, 1, 2)) -> argparse.ArgumentParser:
    """The flags that all have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_trial_flags(parser)
    parser.set_defaults(seeds=list(seeds))
    parser.add_argument("--cores", type=int, help="processes that collect and measure; by default --jobs")
    parser.add_argument("--only", nargs="+", default=list(STAGES), choices=STAGES, help="of the stages")
    parser.add_argument(
        "--validation-only", action="store_true", help="measure on validation seeds or episodes instead"
    )
    return parser


class Stages:
    """Runs a benchmark's stages and remembers what failed.

    Args:
        arguments: The command line's.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.began, self.failed, self.missing = time.time(), 0, 0
        self.broken: set[str] = set()

    def run(
        self, stage: str, run_job: Callable[[Job], Job], jobs: Sequence[Job], processes: int | None = None
    ) -> list[Job]:
        """What came of the jobs; nothing where the stage was not asked for.

        What failed in a stage has no part in the next ones.
        """
        given = self.arguments
        jobs = [one for one in jobs if one.get("folder") not in self.broken]
        if stage not in given.only or not jobs:
            return []
        gone = time.time() - self.began
        found = run_all(
            run_job,
            jobs,
            processes or (given.jobs if stage == "train" else given.cores or given.jobs),
            tell=partial(tell, stage),
            gpus=given.gpus if stage == "train" else (),
            seconds=given.seconds - gone,
            stop_after=given.stop_after - gone,
        )
        done = {one["name"] for one in found if "error" not in one}
        self.broken |= {one["folder"] for one in jobs if one["name"] not in done and "folder" in one}
        self.failed += sum("error" in one for one in found)
        self.missing += len(jobs) - len(found)
        return [one for one in found if "error" not in one]

    def finish(self, rows: Sequence[dict[str, Any]]) -> int:
        """Writes and shows the rows; returns the exit status."""
        publish("robotics", rows)
        if self.missing:
            print(f"out of time: {self.missing} jobs are not done", file=sys.stderr)
        return 1 if self.failed else 0

    @property
    def writes(self) -> bool:
        """Whether these are full runs, whose rows are written."""
        given = self.arguments
        return not is_trial(given) and "measure" in given.only and not self.failed and not self.missing


def tell(stage: str, one: Job, seconds: float) -> None:
    """A line on stderr of a job that ended."""
    said = one.get("error") or json.dumps(one.get("said", {}))
    print(f"{seconds:6.1f} s  {stage} {one['name']}: {said}", file=sys.stderr, flush=True)


def tag(arguments: argparse.Namespace) -> str:
    """What tells the runs of a trial apart from others in the same folder; empty for full runs."""
    if not arguments.changes and not arguments.limit:
        return ""
    text = json.dumps([sorted(arguments.changes), arguments.limit])
    return "-trial-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def data_at(root: Path, arguments: argparse.Namespace, name: str) -> Path:
    """Where a data set lies: those of trials of few episodes lie apart."""
    return root / "data" / (name + (f"-limit-{arguments.limit}" if arguments.limit else ""))


def is_collected(folder: Path) -> bool:
    """Whether the data set is there; it is whole then, as it is moved to its place at the end."""
    return (folder / "data").is_dir()


def search_job(job: Job) -> Job:
    """Finds the expert of an environment, or the one found before."""
    began = time.time()
    cast = _cast(job)
    said = {} if cast.search is None else {"return": round(cast.search.best()[1], 1)}
    return {**job, "said": {**said, "seconds": round(time.time() - began, 1)}}


def collect_job(job: Job) -> Job:
    """Collects one data set, where it is not there yet."""
    import numpy as np

    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.collection import CollectConfig, collect

    folder, began = Path(job["folder"]), time.time()
    if not is_collected(folder):
        options = {name: job[name] for name in ("image_size", "noise") if name in job}
        config = CollectConfig(job["env"], job["level"], job["episodes"], job["seed"], **options)
        collect(config, _cast(job), folder)
    totals = load_episodes(folder).totals
    said = {"episodes": len(totals), "mean": float(np.mean(totals)), "best": float(np.max(totals))}
    return {**job, "said": {**said, "seconds": round(time.time() - began, 1)}}


def _cast(job: Job) -> Any:
    from mambakit.domains.robotics.collection import CollectConfig, find_cast
    from mambakit.domains.robotics.experts.ars import preset
    from mambakit.domains.robotics.experts.scripted import scripted

    ars = preset(job["env"])
    if job["limit"]:
        ars = dataclasses.replace(ars, steps=8_000)
    wanted = None if scripted(job["env"]) is not None else ars
    cache = Path(job["root"]) / "experts"
    return find_cast(CollectConfig(job["env"], "expert"), wanted, cache=cache, workers=job.get("workers", 1))


def train_job(job: Job) -> Job:
    """Trains one policy into its folder; one that was killed goes on, one that is done is left as it is."""
    import torch

    from mambakit.core.training import RunFolder
    from mambakit.domains.robotics.policy.baselines import baseline_config
    from mambakit.domains.robotics.policy.config import PRESET_POLICY, PRESET_TRAIN
    from mambakit.domains.robotics.policy.training import read_parts, train_policy

    device, began = device_here(), time.time()
    torch.set_num_threads(1)
    own = {"model": dataclasses.replace(PRESET_POLICY, **job.get("model", {})), "train": PRESET_TRAIN}
    configs = changed(own, {**job.get("settings", {}), **read_changes(job["changes"])})
    train = dataclasses.replace(configs["train"], seed=job["seed"], device=device)
    if job["limit"]:
        train = dataclasses.replace(train, max_epochs=1, max_steps=20)
    config = dataclasses.replace(
        baseline_config(job["kind"], configs["model"]), **job.get("of_kind", {}).get(job["kind"], {})
    )
    episodes = read_data(job)
    run = RunFolder(job["folder"])
    facts = {name: job[name] for name in ("data", "wrappers") if name in job}
    run.start(
        {**facts, "policy": config, "train": dataclasses.replace(train, device="auto")}, seed=job["seed"]
    )
    policy, result = train_policy(episodes, read_parts(episodes, seed=job["seed"]), run, config, train)
    said = {
        "validation": round(result.best_score, 4),
        "epochs": result.epochs,
        "parameters": sum(one.numel() for one in policy.parameters()),
        "training_seconds": round(result.seconds, 1),
        "seconds": round(time.time() - began, 1),
    }
    return {**job, "said": said}


def read_data(job: Job) -> Any:
    """The job's episodes: of a card, or of one or more collected folders, as they look through wrappers."""
    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.environments import make
    from mambakit.domains.robotics.wrappers import WrapperConfig, mask_indices, seen_through

    parts = [load_episodes(one) for one in job["data"]]
    found = dataclasses.replace(parts[0], episodes=[one for part in parts for one in part.episodes])
    if not job.get("wrappers"):
        return found
    places = None
    if job["wrappers"].get("mask") == "velocities":
        env = make(job["env"])
        places = mask_indices(env, "velocities")
        env.close()
    return seen_through(found, WrapperConfig(**job["wrappers"]), places, seed=job["seed"])


def measure_job(job: Job) -> Job:
    """Lets a trained policy act: validation seeds choose weights and target return, then it is measured.

    The result is kept in the policy's folder, and taken from there if the same is asked for again.
    """
    import torch

    from mambakit.domains.robotics.environments import make
    from mambakit.domains.robotics.evaluation import FIRST_VALIDATION_SEED, choose_target, roll_out
    from mambakit.domains.robotics.policy.training import policies_in
    from mambakit.domains.robotics.wrappers import WrapperConfig

    torch.set_num_threads(1)
    folder, began = Path(job["folder"]), time.time()
    words = ["measured", "test" if job["test"] else "validation", job.get("part", "")]
    kept = folder / f"{'-'.join(filter(None, words))}.json"
    if kept.exists():
        found = json.loads(kept.read_text("utf-8"))
        if all(found.get(name) == value for name, value in job.items()):
            return found
    config = {
        "wrappers": WrapperConfig(**job.get("wrappers", {})),
        "image_size": job.get("image_size"),
        "kwargs": job.get("chosen_in", {}),
    }
    validation = range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + job["validation_episodes"])
    tried: list[tuple[float, str, float | None]] = []
    policies = policies_in(folder)
    many = job["validation_episodes"]
    n_envs = job.get("n_envs", 50)
    for weights, policy in policies.items():
        maker = partial(make, job["env"], **config)
        if policy.embed.tells_return:
            chosen = choose_target(policy, maker, n_seeds=many, n_envs=n_envs)
            tried += [(one["return"], weights, one["target_return"]) for one in chosen.tried]
        else:
            rollouts = roll_out(policy, maker, validation, n_envs=n_envs)
            tried.append((float(rollouts.returns.mean()), weights, None))
    earned, weights, target = max(tried, key=lambda one: one[0])
    result: Job = {**job, "weights": weights, "target_return": target, "validation": earned}
    if job["test"]:
        config["kwargs"] = job.get("measured_in", {})
        first = job.get("first_test_seed", FIRST_TEST_SEED)
        seeds = range(first, first + job["test_episodes"])
        rollouts = roll_out(
            policies[weights],
            partial(make, job["env"], **config),
            seeds,
            n_envs=n_envs,
            target_return=target,
        )
        result["returns"] = rollouts.returns.tolist()
        if rollouts.successes is not None:
            result["successes"] = rollouts.successes.tolist()
    of_policy = policies[weights].config
    result |= {"best_of_data": of_policy.best_return, "mean_of_data": of_policy.mean_return}
    shown = {"weights": weights, "target": target, "validation": round(earned, 2)}
    if job["test"]:
        shown["test"] = round(sum(result["returns"]) / len(result["returns"]), 2)
    if result.get("successes"):
        shown["success"] = round(sum(result["successes"]) / len(result["successes"]), 3)
    result["said"] = {**shown, "seconds": round(time.time() - began, 1)}
    from mambakit.core.training.run_folder import write_atomically

    write_atomically(kept, json.dumps(result))
    return result


def complete(found: Sequence[Job], kinds: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Job]]:
    """Results of one task by kind, in the seeds' order; empty unless every kind has every seed."""
    groups = {
        kind: sorted((one for one in found if one["kind"] == kind), key=lambda one: one["seed"])
        for kind in kinds
    }
    whole = all([one["seed"] for one in group] == sorted(seeds) for group in groups.values())
    return groups if whole else {}
