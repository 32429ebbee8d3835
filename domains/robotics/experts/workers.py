"""A search's rollouts shared out to processes, each with an environment of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mambakit.domains.robotics.experts.ars import Earned, Try, run_episode

if TYPE_CHECKING:
    import gymnasium

_env: Any = None  # of this worker's process


class Workers:
    """Rolls out in ``count`` processes; what comes back is the same as from one, in the same order.

    Args:
        maker: Makes the environment, in each process; it must be picklable.
    """

    def __init__(self, maker: Callable[[], gymnasium.Env[Any, Any]], count: int) -> None:
        # spawned: a fork would copy the threads' locks of torch and of the graphics library
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(maker,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, tries: Sequence[Try]) -> list[Earned]:
        return list(self._pool.map(_roll_out, tries))


def _begin(maker: Callable[[], gymnasium.Env[Any, Any]]) -> None:
    global _env
    _env = maker()


def _roll_out(one: Try) -> Earned:
    return run_episode(_env, one.policy.act, one.seed, one.bonus)
