"""Work on many molecules, shared out to processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_chunks(
    run: Callable[[list[Item]], Result], items: list[Item], *, size: int, n_jobs: int
) -> list[Result]:
    """What ``run`` makes of each chunk of ``size`` items, in order.

    Fewer than two chunks are one, in this process: others take longer to begin than to work.

    Args:
        run: A function of a module, so that it can be sent to a process.
        items: What it is for.
        size: Items of a chunk.
        n_jobs: Processes; -1 for one a core, 1 for this one alone.
    """
    if n_jobs == 1 or len(items) < 2 * size:
        return [run(items)]
    import joblib

    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    return list(joblib.Parallel(n_jobs)(joblib.delayed(run)(one) for one in chunks))
