"""The benchmarks of robot control: rows of made-up results, and what a trial may not touch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
NAMES = ("robotics_locomotion", "robotics_memory", "robotics_reaching", "robotics_demonstrations")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for package in ("gymnasium", "mujoco", "minari"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(FOLDER)
    return {name.partition("_")[2]: importlib.import_module(name) for name in NAMES}


def acted(task: str, kind: str, seed: int, earned: float, **more: Any) -> dict[str, Any]:
    result = {"task": task, "kind": kind, "seed": seed, "env": "Hopper-v5", "returns": [earned] * 4}
    return {**result, "validation": earned, "best_of_data": 3234.3, "mean_of_data": 1000.0, **more}


def test_scores_stand_for_tasks_of_which_every_run_is_done(benchmarks: dict[str, Any]) -> None:
    module = benchmarks["locomotion"]
    found = [
        acted("hopper-medium", kind, seed, 1607.0 + 100 * i + 10 * seed)
        for i, kind in enumerate(module.KINDS)
        for seed in (0, 1)
    ]
    found += [acted("hopper-medium-expert", kind, 0, 1.0) for kind in module.KINDS]
    rows = {row["what"]: row for row in module.rows_of(found, [0, 1], module.KINDS)}
    assert set(rows) == {"robotics/hopper-medium/score", "robotics/hopper-medium/return"}
    returns = rows["robotics/hopper-medium/return"]
    assert (returns["value"], returns["spread"]) == (1612.0, 5.0)
    assert returns["peers"]["iql"] == 2012.0
    score = rows["robotics/hopper-medium/score"]
    assert score["value"] == pytest.approx(100 * (1612.0 + 20.272305) / (3234.3 + 20.272305), abs=0.05)
    assert score["peers"]["best episode of the data"] == 100.0


def test_which_of_ours_is_reported_is_chosen_on_validation_seeds(benchmarks: dict[str, Any]) -> None:
    found = [
        acted("masked-hopper", "decision-mamba", 0, 900.0, validation=50.0),
        acted("masked-hopper", "bc", 0, 800.0, validation=60.0),
        acted("masked-hopper", "decision-transformer", 0, 400.0),
        acted("masked-hopper", "bc-mlp", 0, 200.0),
    ]
    returns, ratio = benchmarks["memory"].rows_of(found, [0])
    assert (returns["value"], returns["unit"]) == (800.0, "mean return, bc")
    assert ratio["value"] == 2.0


def test_success_and_errors(benchmarks: dict[str, Any]) -> None:
    found = [
        {"kind": kind, "seed": 0, "part": "unseen", "successes": [True] * n + [False] * (4 - n)}
        for kind, n in (("bc", 3), ("bc-mlp", 1))
    ]
    (row,) = benchmarks["reaching"].rows_of(found, [0])
    assert (row["what"], row["value"]) == ("robotics/reaching/success/unseen", 75.0)
    assert row["peers"] == {"CNN + MLP": 25.0}
    found = [
        {"kind": kind, "seed": seed, "data": ["widowx"], "error_of": error + seed}
        for kind, error in (("bc", 0.5), ("bc-mlp", 1.5), ("decision-transformer", 2.5))
        for seed in (0, 1)
    ]
    error, ratio = benchmarks["demonstrations"].rows_of(found, [0, 1])
    assert (error["value"], error["spread"], error["peers"]["bc-mlp"]) == (1.0, 0.5, 2.0)
    assert ratio["value"] == 0.5


@pytest.mark.parametrize("name", ["locomotion", "reaching"])
@pytest.mark.parametrize("given", [["--validation-only"], ["--set", "train.max_epochs=3"]])
def test_trials_measure_no_test_seed(
    benchmarks: dict[str, Any], name: str, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def nothing(run_job: Any, jobs: Any, *_: Any, **__: Any) -> list[Any]:
        asked.extend(jobs)
        return list(jobs)

    monkeypatch.setattr(importlib.import_module("robotics_trials"), "run_all", nothing)
    assert benchmarks[name].main([*given, "--seeds", "0", "--only", "measure"]) == 0
    assert asked
    assert not any(job["test"] for job in asked)
    names = [job["folder"] + job.get("part", "") for job in asked]
    assert len(set(names)) == len(names)
