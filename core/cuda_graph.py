"""Recording a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_WARM_UP = 3

Result = TypeVar("Result")


def waits_for_gpu(run: Callable[[], object]) -> bool:
    """Whether ``run`` reads a value back from the GPU, so that it can't be recorded; found out by calling it.

    What is compiled at a first call may wait too: call it once before.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def record(
    run: Callable[[], Result], pool: tuple[int, int] | None = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of what ``run`` launches, and its results, which every replay overwrites.

    ``run`` is called a few times before: what is compiled or allocated at a first call is so by then. It must
    not read a tensor's value on the CPU, and its inputs are where they are now at every replay.

    Args:
        run: What to record.
        pool: Memory (``torch.cuda.graph_pool_handle``) that it shares with other graphs of which no two
            are replayed at a time; its results stay its own.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]  # a type of torch's own
        results = run()
    return graph, results
