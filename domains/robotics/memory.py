"""What a controller carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mambakit.core.state import State


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a controller remembers; it does not change when the controller goes on."""

    state: State
    """``(n_envs, ...)`` tensors; ``state.save`` writes them to a file."""
    generator: Tensor
    """Of the random numbers."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What is carried from step to step, ``n_envs`` rows each."""

    layers: State
    previous: Tensor
    """The action before, as the policy is told it."""
    began: Tensor
    """Whether the next step is the first."""
    to_go: Tensor
    """The return to go."""
    said: Tensor
    """``(n_envs, chunk, chunk, width)``: the chunks of the last steps, the newest first."""
    age: Tensor
    """Steps since the reset."""
    told: Tensor
    """The instruction's embedding."""
    instructed: Tensor
    """Whether there is an instruction."""

    def state(self) -> State:
        return State.of(**{name: getattr(self, name) for name in self.__dataclass_fields__})
