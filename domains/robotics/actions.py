"""Actions as policies give them: a vector of numbers, or one choice that counts from 0."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.episodes import ActionSpace

MOST_CHOICES = 4096
"""A policy weighs every combination of several choices: more of them are refused."""


def action_space_of(space: spaces.Space[Any]) -> ActionSpace:
    """gymnasium's action space as ours: several choices at once are one choice among all combinations.

    Raises:
        UsageError: If it is of another kind, or has too many combinations.
    """
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return ActionSpace(low=tuple(map(float, space.low)), high=tuple(map(float, space.high)))
    if isinstance(space, spaces.Discrete):
        return ActionSpace(n=int(space.n))
    sizes = _sizes(space)
    if sizes is None:
        raise UsageError(
            f"actions of the kind {space} are not served: a vector of numbers (Box), one choice (Discrete) "
            "or several at once (MultiDiscrete, MultiBinary) is"
        )
    n = math.prod(sizes)
    if n > MOST_CHOICES:
        raise UsageError(
            f"actions of the kind {space} have {n} combinations, and {MOST_CHOICES} are served; "
            "wrap the environment so that fewer are told apart, or let it take numbers"
        )
    return ActionSpace(n=n)


def numbered(space: spaces.Space[Any], actions: ArrayLike) -> NDArray[Any]:
    """Recorded actions as policies learn them: ``(n, d)`` float32, or choices from 0, ``(n,)`` int64.

    Args:
        space: What they were taken from.
        actions: One a row. Combinations are counted with the last choice going round first.

    Raises:
        ValueError: If one is not in the space.
    """
    values = np.asarray(actions)
    if isinstance(space, spaces.Discrete):
        found = values.astype(np.int64).reshape(len(values)) - int(space.start)
        if len(found) and not (found.min() >= 0 and found.max() < space.n):
            raise ValueError(f"an action is not in {space}")
        return found
    sizes = _sizes(space)
    if sizes is None:
        return values.astype(np.float32)
    rows = values.astype(np.int64).reshape(len(values), -1) - _starts(space)
    return np.asarray(np.ravel_multi_index(tuple(rows.T), sizes), dtype=np.int64)


def choice(space: spaces.Space[Any], number: int) -> Any:
    """The space's own action of a choice that counts from 0: the inverse of ``numbered``."""
    if isinstance(space, spaces.Discrete):
        return space.start + np.int64(number)
    sizes = _sizes(space)
    assert sizes is not None
    found = np.array(np.unravel_index(int(number), sizes)) + _starts(space)
    return found.reshape(space.shape).astype(space.dtype)


class NumberedActions(gymnasium.ActionWrapper[Any, Any, Any]):
    """Takes one choice that counts from 0, where the environment itself takes choices of another kind.

    Args:
        env: Its actions are ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(action_space_of(env.action_space).n or 0)

    def action(self, action: Any) -> Any:
        """In the environment's own kind."""
        return choice(self.env.action_space, action)


def with_served_actions(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """``env``, whose choices are one that counts from 0.

    Raises:
        UsageError: As ``action_space_of``.
    """
    space = env.action_space
    if action_space_of(space).n is None or (isinstance(space, spaces.Discrete) and space.start == 0):
        return env
    return NumberedActions(env)


def _sizes(space: spaces.Space[Any]) -> tuple[int, ...] | None:
    """How many ways each of several choices can go; None where they are not that."""
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.flat)
    if isinstance(space, spaces.MultiBinary):
        return (2,) * math.prod(space.shape)
    return None


def _starts(space: spaces.Space[Any]) -> NDArray[np.int64]:
    return np.asarray(getattr(space, "start", 0), dtype=np.int64).reshape(-1)
