"""What a policy is told at control steps, as tensors: of whole packed rows, or of one step of many robots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Seen:
    """All share their leading shape ``(batch, length)``, or ``(n_envs,)`` for one step.

    What the data lack is None, as is a picture, or beside pictures the state, that is missing at every step.
    Values are in the data's own units; what is hidden or missing at some steps has any finite value there.
    """

    began: Tensor
    """Whether this is an episode's first step, which has no previous action; ``(...,)`` bool."""
    previous: Tensor | None = None
    """The action before, ``(..., action_dim)`` float or ``(...,)`` int64."""
    state: Tensor | None = None
    """``(..., state_dim)``."""
    goal: Tensor | None = None
    """``(..., goal_dim)``."""
    to_go: Tensor | None = None
    """The return to go, ``(...,)``."""
    image: Tensor | None = None
    """``(..., height, width, 3)`` uint8."""
    words: Tensor | None = None
    """Word numbers of the instruction, ``(..., n)`` int64, 0 where there is none; or ``(n_instructions, n)``
    with ``instruction``."""
    instruction: Tensor | None = None
    """Which row of ``words`` holds, ``(...,)`` int64."""
    state_there: Tensor | None = None
    """Whether the state is there, ``(...,)`` bool; None: at every step."""
    image_there: Tensor | None = None
    """As ``state_there``."""
    instructed: Tensor | None = None
    """As ``state_there``, of an instruction that was embedded before."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Seen:
        """With ``function`` applied to every tensor that is there."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {name: None if v is None else function(v) for name, v in values.items()}
        return Seen(**moved)

    def but(self, **changed: Tensor | None) -> Seen:
        """With some of them replaced."""
        return replace(self, **changed)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """Pieces of episodes, packed into rows."""

    seen: Seen
    """``(batch, length)``."""
    seq_idx: Tensor
    """``(batch, length)`` int32: which piece of its row a step belongs to; padding is one of its own."""
    real: Tensor
    """``(batch, length)`` bool: False in padding."""
    target: Tensor
    """Actions from each step on, ``(batch, length, chunk, action_dim)``, or ``(batch, length, chunk)``
    int64."""
    counted: Tensor
    """``(batch, length, chunk)`` bool: whether the episode has that action."""
    weight: Tensor | None = None
    """How much each step counts in the loss, ``(batch, length)``; None: all the same."""

    def map(self, function: Callable[[Tensor], Tensor]) -> PolicyBatch:
        """With ``function`` applied to every tensor."""
        return PolicyBatch(
            self.seen.map(function),
            function(self.seq_idx),
            function(self.real),
            function(self.target),
            function(self.counted),
            None if self.weight is None else function(self.weight),
        )

    def tensors(self) -> list[Tensor]:
        """Those that are there, in the order of ``map``."""
        found: list[Tensor] = []

        def take(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(take)
        return found
