"""Runs of a benchmark spread over processes, which may share the GPUs."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
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

    A job whose process is killed from outside (for its memory, say) holds the exit status there; another
    process goes on with the next.

    Args:
        run_job: Called with a job, in another process.
        jobs: What to run, in this order.
        n_processes: At once.
        tell: Called with each result, and the seconds since the beginning.
        gpus: Numbers of those that the processes take in turn; without, each sees all of them.
        seconds: Begin no job after so long.
        stop_after: Stop those still running after so long.
    """
    waiting, began = deque(jobs), time.time()
    busy: dict[Connection, _Worker] = {}
    found: list[Job] = []

    def go_on(worker: _Worker) -> None:
        if waiting and time.time() - began < seconds:
            worker.take(waiting.popleft())
            busy[worker.pipe] = worker
        else:
            worker.end()

    try:
        for i in range(min(n_processes, len(jobs)) if seconds > 0 else 0):
            go_on(_Worker(run_job, gpus[i % len(gpus)] if gpus else None))
        while busy and time.time() - began <= stop_after:
            for pipe in wait(list(busy), timeout=1):
                worker = busy.pop(pipe)  # type: ignore[arg-type]
                result = worker.result()
                if result is None:
                    result = {**worker.job, "error": f"its process ended (exit status {worker.end()})"}
                    worker = _Worker(run_job, worker.gpu)
                found.append(result)
                tell(result, time.time() - began)
                go_on(worker)
    finally:
        for worker in busy.values():
            worker.process.terminate()
            worker.process.join()
    return found


class _Worker:
    """A process that is given one job at a time.

    Args:
        run_job: Called with each.
        gpu: The only GPU that it sees; None for all.
    """

    def __init__(self, run_job: Callable[[Job], Job], gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.gpu = gpu
        self.job: Job = {}
        self.pipe, its = context.Pipe()
        self.process = context.Process(target=_work, args=(run_job, its, gpu))
        self.process.start()
        its.close()  # or its end would not be seen here

    def take(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # it has ended already, which `result` says
            self.pipe.send(job)

    def result(self) -> Job | None:
        """What came of the job; None if the process has ended without a word."""
        try:
            result: Job = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return result

    def end(self) -> int | None:
        """Waits for its end, and gives its exit status."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


def _work(run_job: Callable[[Job], Job], pipe: Connection, gpu: str | None) -> None:
    """One process, on one GPU: does what it is told until it is told None, or nobody is there."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    with contextlib.suppress(EOFError, OSError):
        while (job := pipe.recv()) is not None:
            try:
                result = run_job(job)
            except Exception:  # noqa: BLE001  the other jobs go on; the error is told and counted
                result = {**job, "error": traceback.format_exc()}
            pipe.send(result)
