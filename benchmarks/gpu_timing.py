"""How the GPU benchmarks measure: medians by events with a cold L2 cache, peak memory, both ceilings."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], object]

_FLUSH_BYTES = 256 << 20  # more than any L2 cache
_LEAST, _MOST = 5, 200


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: copying (bytes read and written) and bf16 matrix products."""

    copy_bytes_s: float
    matmul_flop_s: float

    def floor_ms(self, n_bytes: float, flops: float) -> float:
        """The least time for so much work: the larger of memory's and the matrix units'."""
        return 1e3 * max(n_bytes / self.copy_bytes_s, flops / self.matmul_flop_s)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ms(run: Run, seconds: float) -> float:
    """Median milliseconds of ``run`` on the device, its inputs not in the L2 cache.

    As ``triton.testing.do_bench`` does it: an event before and behind each run, and the cache flushed in
    between. So the launching of a run counts where the device would wait for it.

    Args:
        run: What is timed; it has run once before.
        seconds: How long the repeats may take together, at least five of them.
    """
    if not torch.cuda.is_available():
        return _median_wall_ms(run, seconds)
    flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")

    def timed(repeats: int) -> list[float]:
        starts = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats)]
        for start, end in zip(starts, ends, strict=True):
            flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]

    begin = time.perf_counter()
    timed(3)
    each = (time.perf_counter() - begin) / 3
    return statistics.median(timed(int(min(max(seconds / each, _LEAST), _MOST))))


def latency_ms(run: Run, seconds: float) -> float:
    """Milliseconds a call takes in a row of calls, the host's part included; the cache stays warm."""
    calls = 50
    times: list[float] = []
    for _ in range(5):
        run()
    synchronize()
    while len(times) < 3 or (sum(times) * calls < seconds and len(times) < 100):
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize()
        times.append((time.perf_counter() - begin) / calls)
    return 1e3 * statistics.median(times)


def graph_ms(run: Run, seconds: float, *, calls: int = 32) -> float:
    """Milliseconds a call takes inside a CUDA graph that holds ``calls`` of them."""
    graph = captured(run, calls=calls)
    return latency_ms(graph.replay, seconds) / calls


def captured(run: Run, *, calls: int = 1) -> torch.cuda.CUDAGraph:
    """A CUDA graph of so many calls of ``run``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph


def peak_mib(run: Run) -> float:
    """MiB that one run allocates above what there was before it, results included."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure_ceilings(*, copy_bytes: int = 1 << 32, width: int = 8192) -> Ceilings:
    """Both ceilings: copying ``copy_bytes``, and a square bf16 product on random numbers."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.empty(copy_bytes // 8, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    copy = median_ms(functools.partial(target.copy_, source), 0.5)
    del source, target
    a, b = (torch.randn(width, width, device=device).bfloat16() for _ in range(2))
    c = torch.empty_like(a)
    matmul = _sustained_ms(lambda: torch.mm(a, b, out=c))
    return Ceilings(1e3 * copy_bytes / copy, 1e3 * 2 * width**3 / matmul)


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal numbers, drawn in float32: the same on every dtype up to rounding."""
    return torch.randn(shape, device=device).to(dtype)


def _sustained_ms(run: Run) -> float:
    """Mean of ten in a row: a lone matrix product would run at a clock that does not last."""
    for _ in range(3):
        run()
    synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        run()
    synchronize()
    return 1e3 * (time.perf_counter() - begin) / 10


def _median_wall_ms(run: Run, seconds: float) -> float:
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < _MOST):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)
