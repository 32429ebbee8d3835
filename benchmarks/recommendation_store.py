"""Updates per second of the store of users' states alone: a state of 64 KiB is read and written.

    python benchmarks/recommendation_store.py --write

SQLite with and without waiting for the disk, and Redis, if there is a redis-server, which is started on a
free loopback port with persistence off. One writer, and four processes at once; every writer goes through
1,000 users at random. A file of the store's size beside: bytes that an event's id takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mambakit.domains.recommendation.store import open_store

STATE = 64 * 1024
USERS = 1000
MODEL = "benchmark"
KINDS = ("sqlite", "sqlite, not durable", "redis")


def write(url: str, writer: int, begin: float, seconds: float, durable: bool) -> list[float]:
    """Send events from ``begin`` on for some seconds; the seconds that each update took."""
    rng = random.Random(writer)
    states = [os.urandom(STATE) for _ in range(8)]
    took = []
    with open_store(url, MODEL, durable=durable) as store:
        time.sleep(max(0.0, begin - time.time()))
        while time.time() < begin + seconds:
            began = time.perf_counter()
            store.update(
                f"user {rng.randrange(USERS)}", f"{writer} {len(took)}", lambda _: states[len(took) % 8]
            )
            took.append(time.perf_counter() - began)
    return took


def measured(url: str, n_writers: int, seconds: float, durable: bool) -> tuple[float, float, float]:
    """Updates per second of all writers, and the median and 99th percentile of one update in ms."""
    open_store(url, MODEL, anew=True).close()
    begin = time.time() + 1.0
    command = [sys.executable, __file__, "--writer", url, str(begin), str(seconds), str(int(durable))]
    writers = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(n_writers)
    ]
    took = sorted(one for writer in writers for one in json.loads(writer.communicate()[0]))
    n = len(took)
    with open_store(url, MODEL) as store:
        kept = sum(record.n_events for user in store if (record := store.get(user)) is not None)
    if kept != n or n == 0:
        raise AssertionError(f"{url}: {n} updates, but {kept} events kept")
    return n / seconds, 1e3 * took[n // 2], 1e3 * took[n * 99 // 100]


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a server of our own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(["redis-server", *options, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def bytes_of_an_event(folder: Path) -> float:
    """How much a file grows by an id."""
    sizes = []
    for n in (0, 100_000):
        path = folder / f"{n}.db"
        with open_store(path, MODEL, durable=False) as store:
            store.put("42", bytes(STATE), (f"event {i}" for i in range(n)))
        sizes.append(path.stat().st_size)
    return (sizes[1] - sizes[0]) / 100_000


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--writer", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.writer:
        url, begin, seconds, durable, number = arguments.writer
        print(json.dumps(write(url, int(number), float(begin), float(seconds), durable == "1")))
        return 0
    from rows import row, write_rows  # here, as it imports torch, for which a writer would wait

    here = Path.cwd()  # not in memory, as a temporary folder may be
    kinds = [kind for kind in KINDS if kind != "redis" or shutil.which("redis-server")]
    made = []
    with tempfile.TemporaryDirectory(dir=here) as name, redis_or_none(Path(name), kinds) as redis_url:
        for n_writers in (1, 4):
            found = {
                kind: [
                    measured(
                        redis_url if kind == "redis" else f"{name}/{n_writers}-{i}-{len(kind)}.db",
                        n_writers,
                        arguments.seconds,
                        kind == "sqlite",
                    )
                    for i in range(arguments.repeat)
                ]
                for kind in kinds
            }
            for at, (what, unit) in enumerate([("rate", "updates/s"), ("median", "ms"), ("p99", "ms")]):
                means = {kind: statistics.fmean(run[at] for run in runs) for kind, runs in found.items()}
                spread = (
                    statistics.stdev(run[at] for run in found["sqlite"]) if arguments.repeat > 1 else None
                )
                print(f"{n_writers} writers, {what} in {unit}: {means}", flush=True)
                peers = {kind: round(mean, 3) for kind, mean in means.items() if kind != "sqlite"}
                made.append(
                    row(
                        f"recommendation-store/64-KiB/{n_writers}-writers/{what}",
                        round(means["sqlite"], 3),
                        unit,
                        peers=peers,
                        spread=None if spread is None else round(spread, 3),
                    )
                )
        event = bytes_of_an_event(Path(name))
    print(f"{event:.1f} bytes of a file for an event's id")
    made.append(row("recommendation-store/sqlite/bytes-of-an-event-id", round(event, 1), "bytes"))
    if arguments.write:
        print(write_rows("recommendation-store", made))
    return 0


@contextmanager
def redis_or_none(folder: Path, kinds: list[str]) -> Iterator[str]:
    """A server if it is among the kinds."""
    if "redis" not in kinds:
        print("there is no redis-server: SQLite alone", file=sys.stderr)
        yield ""
        return
    with redis_server(folder) as url:
        yield url


if __name__ == "__main__":
    sys.exit(main())
