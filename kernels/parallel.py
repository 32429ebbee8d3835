"""Threads for kernels that release the GIL: as many as torch is set to use.

On Linux the tasks run on the very threads that run torch's own loops (its bundled OpenMP runtime), for
those keep spinning for milliseconds after a matrix product and would compete with any others: a Mamba-1
block took a quarter longer on threads of our own. Elsewhere, and in a forked child, whose OpenMP threads
are gone, a thread pool serves. numba's threading layers are not used: the one that always exists breaks
when two Python threads enter it at once, and none survives a fork.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_PORTIONS = 4  # of a thread, so that one which is held up leaves some to the others
_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_home_pid = os.getpid()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def parallel_for(n_tasks: int, run: Callable[[int], object], *, small: bool = False) -> None:
    """Call ``run(0)`` ... ``run(n_tasks - 1)``, each once, on ``torch.get_num_threads()`` threads.

    The caller's thread takes its share. Safe to call from several threads at once and after a fork.

    Args:
        n_tasks: How many tasks there are.
        run: The task; gains from threads only while it holds no GIL.
        small: The work is too little for threads to pay.

    Raises:
        BaseException: What a task raised; the other tasks of that thread are left undone.
    """
    n_threads = 1 if small else min(torch.get_num_threads(), n_tasks)
    if n_threads <= 1:
        for task in range(n_tasks):
            run(task)
        return
    counter = itertools.count()  # next() on it is atomic
    errors: list[BaseException] = []

    def work(_: object = None) -> None:
        try:
            while (task := next(counter)) < n_tasks:
                run(task)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            errors.append(error)

    in_openmp = _openmp_parallel() if os.getpid() == _home_pid else None
    if in_openmp is not None:
        in_openmp(_BODY(work), None, n_threads, 0)
    else:
        helpers = [_get_pool(n_threads - 1).submit(work) for _ in range(n_threads - 1)]
        work()
        for helper in helpers:
            # one still in the queue has nothing left to do; one that runs must end before memory is freed
            if not helper.cancel():
                helper.result()
    if errors:
        raise errors[0]


def in_portions(n_items: int, run: Callable[[int, int], object], *, small: bool = False) -> None:
    """Call ``run(lo, hi)`` until all items are done: some portions a thread, all at once where there is one.

    A call of a compiled loop costs as much as a small item.

    Args:
        n_items: How many items there are; each is done in one call.
        run: The work on items ``lo`` to ``hi - 1``.
        small: The work is too little for threads to pay.
    """
    n_threads = 1 if small else torch.get_num_threads()
    n = min(n_items, 1 if n_threads == 1 else _PORTIONS * n_threads)
    parallel_for(n, lambda k: run(n_items * k // n, n_items * (k + 1) // n), small=small)


@functools.cache
def _openmp_parallel() -> Callable[..., None] | None:
    """``GOMP_parallel(body, data, n_threads, flags)`` of the OpenMP runtime that torch brings, or None."""
    if not sys.platform.startswith("linux"):
        return None
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


def _get_pool(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            # a smaller pool is left to finish its tasks
            _pool = ThreadPoolExecutor(size, thread_name_prefix="mambakit")
            _pool_size = size
        return _pool


def _reset_after_fork() -> None:
    # a forked child inherits no threads
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
