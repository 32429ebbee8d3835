"""How many threads torch takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread(*, where: bool = True) -> Iterator[None]:
    """Torch keeps to the caller's thread inside, if ``where``; it takes as many as before afterwards.

    For work of microseconds, such as a step of a few robots: other threads add nothing to it, and on a
    machine that is busy it waits a thousand times its length until they are given a core.
    """
    before = torch.get_num_threads()
    if not where or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
