"""Exact beside approximate search of the best ten items, by the size of the catalogue.

    python benchmarks/recommendation_search.py --write

Vectors of items and users are generated, 64 wide: mixtures about 200 tastes, in a spectrum that falls as
1 / root(i), as vectors are that a network learned; biases are logarithms of a popularity with a long tail.
Every user has had 50 items, which are left out. Recall is that at the effort which --recall chooses.
Of a catalogue of other vectors it may take more cells; `mambakit recommendation recommend` measures it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from mambakit.domains.recommendation.model import Catalogue, Recommender, in_chunks
from mambakit.domains.recommendation.search import ApproximateSearch, Asked, ExactSearch
from rows import row, write_rows

SIZES = {"10k": 10_000, "100k": 100_000, "1M": 1_000_000}
WIDTH, TASTES, SEEN, K = 64, 200, 50, 10


def vectors(rng: np.random.Generator, centres: np.ndarray, n: int) -> np.ndarray:
    """About the centres, ``(n, width)`` float32, in a spectrum that falls."""
    near = centres[rng.integers(len(centres), size=n)]
    spectrum = np.arange(1, WIDTH + 1) ** -0.5
    return ((near + rng.standard_normal((n, WIDTH), dtype=np.float32)) * spectrum).astype(np.float32)


def asked_of(rng: np.random.Generator, centres: np.ndarray, n_users: int, n_items: int) -> Asked:
    """Users and what they have had."""
    hidden = torch.from_numpy(vectors(rng, centres, n_users))
    item = rng.integers(n_items, size=n_users * SEEN)
    return Asked(hidden, np.repeat(np.arange(n_users), SEEN), item)


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(name: str, n_items: int, n_users: int, least: float, seed: int) -> dict[str, float]:
    """Milliseconds a user, seconds to build, and the recall."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((TASTES, WIDTH), dtype=np.float32)
    catalogue = Catalogue(
        torch.from_numpy(vectors(rng, centres, n_items)),
        torch.from_numpy(rng.gumbel(size=n_items).astype(np.float32)),
    )
    # scores alone are asked of the model
    model = SimpleNamespace(repeat_shift=torch.zeros(()))
    model.score = lambda *given: Recommender.score(cast(Recommender, model), *given)
    exact = ExactSearch(cast(Recommender, model), catalogue, np.ones(n_items, dtype=bool), filter_seen=True)
    users = asked_of(rng, centres, n_users, n_items)
    parts = [users.rows(part) for part in in_chunks(np.arange(n_users), n_items)]
    others = asked_of(rng, centres, 256, n_items)
    made: list[ApproximateSearch] = []
    build = seconds(lambda: made.append(ApproximateSearch(exact)))
    (approximate,) = made
    choose = seconds(lambda: approximate.tune(others.rows, np.arange(256), K, least))
    exact_s = seconds(lambda: [exact.top(part, K) for part in parts])
    approximate_s = seconds(lambda: approximate.top(users, K))
    found = {
        "exact": 1e3 * exact_s / n_users,
        "approximate": 1e3 * approximate_s / n_users,
        "build": build,
        "build-and-choose": build + choose,
        "recall": approximate.recall,
        "cells": approximate.probes / approximate.n_cells,
        "exactly": approximate.n_exact,
    }
    saved = (exact_s - approximate_s) / n_users
    found["pays-from"] = found["build-and-choose"] / saved if saved > 0 else float("inf")
    print(name, {key: round(value, 4) for key, value in found.items()}, flush=True)
    return found


def main(words: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args(words)
    made = []
    for size in arguments.sizes:
        runs = [
            measured(size, SIZES[size], arguments.users, arguments.recall, seed)
            for seed in range(arguments.repeat)
        ]
        seeds = list(range(arguments.repeat))

        def mean(what: str, runs: list[dict[str, float]] = runs) -> float:
            return statistics.fmean(run[what] for run in runs)

        def spread(what: str, runs: list[dict[str, float]] = runs) -> float | None:
            return round(statistics.stdev(run[what] for run in runs), 4) if len(runs) > 1 else None

        pays_from = mean("pays-from")  # infinity where approximate search is no faster
        head = f"recommendation-search/{size}"
        made += [
            row(
                f"{head}/time-a-user",
                round(mean("approximate"), 4),
                "ms",
                peers={"exact": round(mean("exact"), 4)},
                spread=spread("approximate"),
                seeds=seeds,
            ),
            row(
                f"{head}/recall@10",
                round(mean("recall"), 4),
                "of the exact ten",
                spread=spread("recall"),
                seeds=seeds,
            ),
            row(
                f"{head}/cells-read",
                round(mean("cells"), 4),
                "of all cells",
                spread=spread("cells"),
                seeds=seeds,
            ),
            row(
                f"{head}/build-and-choose",
                round(mean("build-and-choose"), 3),
                "s",
                spread=spread("build-and-choose"),
                seeds=seeds,
            ),
            row(
                f"{head}/pays-from",
                round(pays_from) if math.isfinite(pays_from) else None,
                "users",
                seeds=seeds,
            ),
        ]
    if arguments.write:
        print(write_rows("recommendation-search", made))


if __name__ == "__main__":
    main()
