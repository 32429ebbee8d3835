"""Jobs in processes: what fails, is killed or comes too late is told, and the rest is done."""

from __future__ import annotations

import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where the processes find what to run
    return importlib.import_module("processes").run_all


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    if job["do"] == "killed":  # as for want of memory
        os.kill(os.getpid(), signal.SIGKILL)
    if job["do"] == "fails":
        raise ValueError("no luck")
    if job["do"] == "hangs":
        time.sleep(60)
    return {**job, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}


def test_a_job_whose_process_is_killed_is_told_and_the_others_are_done(run_all: Any) -> None:
    import test_benchmark_processes as here  # by the name that another process can import

    jobs = [{"number": i, "do": do} for i, do in enumerate(["killed", "works", "fails", "killed", "works"])]
    told: list[dict[str, Any]] = []
    found = run_all(here.run_job, jobs, 1, tell=lambda job, seconds: told.append(job), gpus=["7"])
    assert found == told
    assert [job["number"] for job in found] == [0, 1, 2, 3, 4]
    errors = [job.get("error", "") for job in found]
    assert [bool(error) for error in errors] == [True, False, True, True, False]
    assert errors[0] == errors[3] == "its process ended (exit status -9)"
    assert "ValueError: no luck" in errors[2]
    assert {job["gpu"] for job in found if "error" not in job} == {"7"}


@pytest.mark.slow
def test_what_hangs_is_stopped_and_what_is_done_is_kept(run_all: Any) -> None:
    import test_benchmark_processes as here

    jobs = [{"do": "works"}, {"do": "hangs"}, {"do": "works"}]
    began = time.monotonic()
    found = run_all(here.run_job, jobs, 1, tell=lambda job, seconds: None, stop_after=12)
    assert time.monotonic() - began < 40
    assert [job["do"] for job in found] == ["works"]
    assert run_all(here.run_job, jobs, 2, tell=lambda job, seconds: None, seconds=0) == []
