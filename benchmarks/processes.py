"""Runs of a benchmark spread over processes, which may share the GPUs."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

Job = dict[str, Any]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a command line says of them: ``--jobs``, ``--gpus``, ``--seconds`` and ``--stop-after``."""
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--gpus", nargs="+", default=[], help="numbers of the GPUs that they take in turn")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no job after so long")
    parser.add_argument("--stop-after", type=float, default=1e9, help="keep what is done after so long")


def run_all(
    run_job: Callable[[Job], Job],
    jobs: Sequence[Job],
    n_processes: int,
    *,
    tell: Callable[[Job, float], None],
    gpus: Sequence[str] = (),
    seconds: float = 1e9,
    stop_after: float = 1e9,
) -> list[Job]:
    """What came of the jobs, those that were done; one that failed holds its traceback in ``error``.

    Args:
        run_job: Called with a job, in another process.
        jobs: What to run, in this order.
        n_processes: At once.
        tell: Called with each result, and the seconds since the beginning.
        gpus: Numbers of those that the processes take in turn; without, each sees all of them.
        seconds: Begin no job after so long.
        stop_after: Stop those still running after so long.
    """
    context = multiprocessing.get_context("spawn")
    waiting, results = context.Queue(), context.Queue()
    for job in jobs:
        waiting.put(job)
    time.sleep(0.5)  # what is put arrives a little later
    began = time.time()
    processes = [
        context.Process(
            target=_work,
            args=(run_job, waiting, results, began + seconds, gpus[i % len(gpus)] if gpus else None),
        )
        for i in range(min(n_processes, len(jobs)))
    ]
    for process in processes:
        process.start()
    found: list[Job] = []
    while any(process.is_alive() for process in processes) or not results.empty():
        if time.time() - began > stop_after:
            for process in processes:
                process.terminate()
            waiting.cancel_join_thread()
            break
        try:
            found.append(results.get(timeout=1))
        except queue.Empty:
            continue
        tell(found[-1], time.time() - began)
    return found


def _work(run_job: Callable[[Job], Job], jobs: Any, results: Any, deadline: float, gpu: str | None) -> None:
    """One process, on one GPU: takes jobs until none is left or the time is up."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    while time.time() < deadline:
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return
        try:
            results.put(run_job(job))
        except Exception:  # noqa: BLE001  the other jobs go on; the error is told and counted
            results.put({**job, "error": traceback.format_exc()})
