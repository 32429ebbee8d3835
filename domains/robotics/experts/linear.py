"""Linear policies on normalised states: what augmented random search learns, and enough for a hopper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.robotics.episodes import ActionSpace


@dataclass
class RunningMoments:
    """Mean and variance of all states seen so far (Chan, Golub & LeVeque 1983, the pairwise update)."""

    count: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    """Sum of squared distances from the mean."""

    @classmethod
    def nothing(cls, width: int) -> RunningMoments:
        return cls(0.0, np.zeros(width), np.zeros(width))

    def add(self, states: NDArray[Any]) -> None:
        """Takes in states, (n, width)."""
        count = len(states)
        if not count:
            return
        mean = states.mean(axis=0, dtype=np.float64)
        squares = np.square(states - mean).sum(axis=0, dtype=np.float64)
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.squares = self.squares + squares + np.square(shift) * (self.count * count / total)
        self.count = total

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation; infinite where a number never changes, so that it has no say."""
        if self.count < 2:
            return np.ones_like(self.mean)
        deviation = np.sqrt(self.squares / (self.count - 1))
        return np.where(deviation < 1e-7, np.inf, deviation)


@dataclass(frozen=True, eq=False)
class LinearPolicy:
    """a = W (s - mean) / deviation, cut to the action's bounds; of choices, the largest."""

    weights: NDArray[np.float64]
    """(actions, states)."""
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    action_space: ActionSpace

    def __post_init__(self) -> None:
        # one product a step, W/deviation s - W/deviation mean, instead of three operations
        gain = self.weights / self.deviation
        object.__setattr__(self, "_gain", gain)
        object.__setattr__(self, "_offset", gain @ self.mean)
        object.__setattr__(self, "_low", np.asarray(self.action_space.low, dtype=np.float64))
        object.__setattr__(self, "_high", np.asarray(self.action_space.high, dtype=np.float64))

    def act(self, state: NDArray[Any]) -> Any:
        """The action at one state, (a,) float32, or the number of a choice."""
        output = self._gain @ state - self._offset  # type: ignore[attr-defined]
        if self.action_space.n is not None:
            return int(output.argmax())
        return np.minimum(np.maximum(output, self._low), self._high).astype(np.float32)  # type: ignore[attr-defined]
