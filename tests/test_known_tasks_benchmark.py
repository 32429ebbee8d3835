"""The benchmark of known tasks: which runs are made and reused, what becomes rows; and a whole one, tiny."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
Job = dict[str, Any]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("known_tasks")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, benchmark: ModuleType) -> list[Job]:
    rows: list[Job] = []
    monkeypatch.setattr("rows.write_rows", lambda name, made: rows.extend(made))
    return rows


def in_this_process(run_job: Callable[[Job], Job]) -> Callable[..., list[Job]]:
    def run_all(
        _: object, jobs: Sequence[Job], n: int, *, tell: Callable[..., None], **more: Any
    ) -> list[Job]:
        found = [run_job(job) for job in jobs]
        for one in found:
            tell(one, 0.0)
        return found

    return run_all


def test_the_first_seed_chooses_the_learning_rate_and_the_journal_is_reused(
    benchmark: ModuleType, written: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[Job] = []

    def run_job(job: Job) -> Job:
        ran.append(job)
        if job["network"] == "lstm" and job["seed"] == 2 and len(ran) < 9:
            return {**job, "error": "it broke"}
        test = {"64": 0.5 + job["seed"] / 10, "256": 0.5}
        found = {"lr": job["lrs"][-1], "validation": 0.9, "test": test, "curve": [[1, 0.5], [2, 0.9]]}
        return {
            **job,
            **found,
            "seconds": 1.0,
            "parameters": 65000,
            "machine": "far away",
            "date": "2020-02-02",
        }

    monkeypatch.setattr(benchmark, "run_all", in_this_process(run_job))
    words = ["--tasks", "parity", "--networks", "mamba3", "lstm", "--seeds", "0", "1", "2"]
    words += ["--lrs", "0.1", "0.2", "--journal", str(tmp_path / "there" / "journal")]
    assert benchmark.main(words) == 1
    assert [job["lrs"] for job in ran] == [[0.1, 0.2]] * 2 + [[0.2]] * 4
    # of the LSTM a seed is missing
    assert [one["what"] for one in written] == [
        "core/parity/accuracy/mamba3",
        "core/parity/accuracy/mamba3/L256",
    ]
    assert (written[0]["value"], written[0]["seeds"]) == (0.6, [0, 1, 2])
    assert written[0]["spread"] == pytest.approx(0.0816)
    assert written[0]["peers"] == {"chance": 0.5}
    assert (tmp_path / "runs/known-tasks.png").stat().st_size > 10_000

    before = written.copy()
    written.clear()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("rows.commit", lambda: "another")
        elsewhere.setattr("rows.machine", lambda: "here")
        assert benchmark.main([*words, "--only-journal"]) == 1
    assert len(ran) == 6
    assert written == before
    assert written[0]["machine"] == "far away"
    written.clear()
    ran += [{}] * 3
    assert benchmark.main(words) == 0
    assert [(job["network"], job["seed"]) for job in ran[9:]] == [("lstm", 2)]
    assert {one["what"].split("/")[3] for one in written} == {"mamba3", "lstm"}


def test_published_words_name_tasks_and_networks_that_there_are(benchmark: ModuleType) -> None:
    assert {task for task, _ in benchmark.PUBLISHED} <= set(benchmark.PLANS)
    assert {network for _, network in benchmark.PUBLISHED} <= set(benchmark.NETWORKS)


def test_networks_are_of_equal_size(benchmark: ModuleType) -> None:
    runs = importlib.import_module("known_tasks_runs")
    task = benchmark.PLANS["parity"].task
    sizes = [sum(p.numel() for p in runs.build(one, task).backbone.parameters()) for one in runs.NETWORKS]
    assert max(sizes) < 1.05 * min(sizes)


def test_every_plan_can_be_drawn_at_its_lengths(benchmark: ModuleType) -> None:
    import torch

    for plan in benchmark.PLANS.values():
        assert plan.test_lengths[0] == plan.trained_length
        assert {task.n_ids for task, _ in plan.stages} == {plan.task.n_ids}
        measured = [(plan.measured, length) for length in plan.test_lengths[:3]]
        for task, length in (*plan.stages, *measured):
            assert task.draw(2, length, torch.Generator().manual_seed(0)).ids.shape == (2, length)


def test_training_goes_through_the_stages_with_new_rows_at_every_step(benchmark: ModuleType) -> None:
    runs = importlib.import_module("known_tasks_runs")
    plan = benchmark.PLANS["recall"]
    drawn = [runs.Training(plan, 16, 3, seed=1)[step].ids for step in range(16)]
    again = [runs.Training(plan, 16, 3, seed=1)[step].ids for step in range(16)]
    assert all((one == other).all() for one, other in zip(drawn, again, strict=True))
    assert [one.shape[1] for one in drawn] == [16] * 3 + [32] * 3 + [64] * 3 + [128] * 7
    rows = {tuple(row) for ids in drawn for row in ids.tolist()}
    other = {
        tuple(row) for step in range(16) for row in runs.Training(plan, 16, 3, seed=2)[step].ids.tolist()
    }
    assert len(rows) == len(other) == 48
    validation = {
        tuple(row) for batch in runs.Validation(plan, 48, seed=2).batches for row in batch.ids.tolist()
    }
    assert not rows & other
    assert not (rows | other) & validation


@pytest.mark.slow
def test_a_tiny_run_from_the_command_line(
    benchmark: ModuleType,
    written: list[Job],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "run_all", in_this_process(benchmark.run_job))
    words = ["--tasks", "parity", "--networks", "mamba3", "attention", "--seeds", "0", "--lrs", "3e-3"]
    words += ["--steps", "4", "--rows", "16", "--longest", "64", "--journal", str(tmp_path / "journal")]
    assert benchmark.main(words) == 0
    runs = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert {one["network"] for one in runs} == {"mamba3", "attention"}
    for one in runs:
        assert list(one["test"]) == ["64"]
        assert all(0.3 < value < 0.7 for value in one["test"].values())  # nothing is learnt so soon
        assert [step for step, _ in one["curve"]] == list(range(1, 5))
    assert "| parity | 64 |" in capsys.readouterr().out
    assert written == []  # a trial
