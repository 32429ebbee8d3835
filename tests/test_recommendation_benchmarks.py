"""The recommendation benchmarks without their runs: which finished runs are reused, which rows are made."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def ran(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> tuple[list, list]:
    """The jobs that were run, each in a time of its own, and the rows that were written."""
    seconds = {("mambakit", "{}"): 3.0, ("SASRec", "{}"): 5.0, ("SASRec", '{"loss.row_length": 1}'): 4.0}
    jobs: list[dict[str, Any]] = []

    def run_all(run_job: Any, given: list[dict[str, Any]], n: int, *, tell: Any, gpus: Any) -> list[Any]:
        score = {which: {"hr@10": 0.5, "ndcg@10": 0.4} for which in ("unfiltered", "filtered")}
        found = dict.fromkeys(("parameters", "validation", "epochs", "steps_to_best", "seconds"), 1)
        for job in given:
            key = (job["network"], json.dumps(job["changes"]))
            jobs.append({**job, **found, "seconds_to_best": seconds[key], "rows": score})
            tell(jobs[-1], 0.0)
        return list(jobs)

    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(benchmark, "run_all", run_all)
    monkeypatch.setattr(benchmark, "counted", lambda name: {"unfiltered": {}, "filtered": {}})
    monkeypatch.setattr("rows.write_rows", lambda name, made: rows.extend(made))
    benchmark.main(["--sets", "ml-1m", "--networks", "mambakit", "SASRec", "--seeds", "0", *words])
    return jobs, rows


def test_times_come_of_runs_alone_of_this_commit_and_these_settings(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    benchmark = load("recommendation")
    journal = ["--journal", str(tmp_path / "journal")]
    jobs, rows = ran(benchmark, monkeypatch, [*journal, "--jobs", "6"])
    assert len(jobs) == 2
    assert not [row for row in rows if "seconds" in row["what"]]
    times = [*journal, "--times"]
    jobs, rows = ran(benchmark, monkeypatch, times)
    assert len(jobs) == 3  # none of those that shared the machine
    assert {job["which"] for job in jobs} == {"validation"}
    (time,) = rows
    assert (time["value"], time["peers"]) == (3.0, {"SASRec": 4.0})
    assert ran(benchmark, monkeypatch, times)[0] == []
    monkeypatch.setitem(benchmark.SETTINGS, "ml-1m", {"model.d_model": 64})
    assert len(ran(benchmark, monkeypatch, times)[0]) == 3
    monkeypatch.setattr("rows.commit", lambda: "another")
    assert len(ran(benchmark, monkeypatch, times)[0]) == 3
    with pytest.raises(SystemExit):
        ran(benchmark, monkeypatch, [*times, "--jobs", "2"])


def test_search_that_never_pays_has_no_number(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("recommendation_search")
    names = ("exact", "approximate", "build", "build-and-choose", "recall", "cells", "exactly")
    slow = {**dict.fromkeys(names, 1.0), "pays-from": float("inf")}
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(benchmark, "measured", lambda *given: slow)
    monkeypatch.setattr(benchmark, "write_rows", lambda name, made: rows.extend(made))
    benchmark.main(["--sizes", "10k", "--write"])
    assert [row["value"] for row in rows if row["what"].endswith("pays-from")] == [None]
