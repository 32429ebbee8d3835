"""Many writers at once, and writers that are killed: no event lost, none doubled, no record mixed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mambakit.domains.recommendation.store import Record, Store, open_store

Start = Callable[..., subprocess.Popen[str]]
MODEL = "a model"


def count(record: Record | None) -> int:
    """The number that a state is all of."""
    if record is None:
        return 0
    words = {record.state[at : at + 8] for at in range(0, len(record.state), 8)}
    assert len(words) == 1, "a mix of two states"
    return int.from_bytes(words.pop(), "big")


def test_processes_lose_and_double_nothing(url: str, start: Start) -> None:
    """Four processes, and each event comes from two of them."""
    n, n_users = 120, 3
    halves = [(0, n // 2), (n // 2, n)] * 2
    workers = [start(url, "send", *half, n_users) for half in halves]
    new = 0
    for worker in workers:
        said = worker.communicate(timeout=60)[0].splitlines()
        assert worker.returncode == 0
        new += int(said[-1].removeprefix("new "))
    assert new == n
    with open_store(url, MODEL) as store:
        assert len(store) == n_users
        for i in range(n_users):
            record = store.get(f"u{i}")
            assert record is not None
            assert count(record) == record.n_events == n // n_users


def test_threads_share_a_store(store: Store) -> None:
    def send(thread: int) -> None:
        for i in range(25):
            store.update("42", f"{thread} {i}", lambda past: (count(past) + 1).to_bytes(8, "big") * 100)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    record = store.get("42")
    assert count(record) == 100
    assert record is not None
    assert record.n_events == 100


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_store_opened_before_a_fork_serves_both(url: str, start: Start) -> None:
    worker = start(url, "fork", 0, 40)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    with open_store(url, MODEL) as store:
        assert count(store.get("u0")) == 41


@pytest.mark.parametrize("rounds", [8, pytest.param(80, marks=pytest.mark.slow)])
def test_a_killed_writer_leaves_the_old_or_the_new_state(url: str, start: Start, rounds: int) -> None:
    rng = random.Random(0)
    done = 0
    for i in range(rounds):
        # the next one does not know how far the last one came
        begin = max(0, done - 3)
        worker = start(url, "send", begin, 1_000_000)
        assert worker.stdout is not None
        said = [worker.stdout.readline()] if i % 2 else []  # else it may be killed before, as it opens
        time.sleep(rng.uniform(0, 0.06 if i % 2 else 0.25))
        worker.kill()
        said += [line for line in worker.stdout if line.endswith("\n")]
        worker.wait(10)
        acknowledged = max(done, int(said[-1]) + 1 if said else 0)
        with open_store(url, MODEL) as store:
            record = store.get("u0")
            if record is None:
                assert acknowledged == 0
                continue
            assert count(record) == record.n_events
            assert acknowledged <= record.n_events <= acknowledged + 1
            assert record.recent[-1] == f"event {record.n_events - 1}"
            done = record.n_events
            for event in (0, done // 2, done - 1):
                assert not store.update("u0", f"event {event}", pytest.fail).applied
    assert done > rounds
