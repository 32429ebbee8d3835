"""Threads for kernels that release the GIL: as many as torch is set to use.

numba's own threading layers are not used: the one that always exists breaks when two Python threads
enter it at once, and none survives a fork.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_pid = 0


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

    def work() -> None:
        while (task := next(counter)) < n_tasks:
            run(task)

    helpers = [_get_pool(n_threads - 1).submit(work) for _ in range(n_threads - 1)]
    try:
        work()
    finally:
        # one still in the queue has nothing left to do; one that runs must end before memory is freed
        started = [helper for helper in helpers if not helper.cancel()]
        errors = [error for helper in started if (error := helper.exception()) is not None]
    if errors:
        raise errors[0]


def _get_pool(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size, _pool_pid
    with _lock:
        if _pool is None or _pool_size < size or _pool_pid != os.getpid():
            # a smaller pool is left to finish its tasks; a forked child inherits no threads
            _pool = ThreadPoolExecutor(size, thread_name_prefix="mambakit")
            _pool_size, _pool_pid = size, os.getpid()
        return _pool


def _reset_after_fork() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
