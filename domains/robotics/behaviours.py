"""Who acts in a collected data set: levels from random to expert, and mixtures of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.episodes import ActionSpace
from mambakit.domains.robotics.experts.ars import Search
from mambakit.domains.robotics.experts.scripted import Act

Level = Literal["random", "medium", "medium-replay", "expert", "medium-expert", "noisy"]
LEVELS: tuple[Level, ...] = get_args(Level)
# Medium stands halfway between the first policy and the best one, by what they earn.
_MEDIUM = 0.5
# Of scripted experts, which have no training to stop early: noise that leaves about half of what they earn.
_SCRIPTED_MEDIUM_NOISE = 0.4
_MOST_NOISE = 0.5

Acting = Callable[[NDArray[Any], np.random.Generator], Any]


@dataclass(frozen=True)
class Behaviour:
    """One episode's way to act."""

    name: str
    """Such as ``expert`` or ``replay-iteration-31``."""
    act: Acting
    """From the state, (d,), and random numbers to the action."""


@dataclass(frozen=True)
class Cast:
    """The behaviours that a level may choose from."""

    action_space: ActionSpace
    expert: Act | None = None
    """A scripted policy."""
    search: Search | None = None
    """A finished search, whose policies along the way are the lower levels."""

    def behaviour(self, level: Level, place: int, episodes: int, noise: float = _MOST_NOISE) -> Behaviour:
        """Who acts in episode ``place`` of so many.

        - random: actions evenly between the bounds.
        - medium: the search's policy that earns about half of what its best does; a scripted
          expert under noise.
        - medium-replay: what the search tried on the way to medium, from its first iteration on.
        - expert: the search's best policy, or the scripted one.
        - medium-expert: one half medium, one half expert, in turn.
        - noisy: the expert under Gaussian noise of 0 up to ``noise`` (a share of half the action's range),
          more from episode to episode.

        Raises:
            UsageError: If there is neither a scripted policy nor a search.
        """
        if level == "random":
            return Behaviour("random", self._random)
        if level == "medium-expert":
            level = "medium" if place % 2 == 0 else "expert"
        share = place / max(episodes - 1, 1)
        if level == "noisy":
            amount = noise * share
            return Behaviour(f"noisy-{amount:.3f}", self._noisy(self._expert(), amount))
        if level == "expert":
            return Behaviour("expert", _still(self._expert()))
        if self.search is None:
            amount = _SCRIPTED_MEDIUM_NOISE * (1.0 if level == "medium" else 2.0 - share)
            name = "medium" if level == "medium" else f"replay-{amount:.3f}"
            return Behaviour(name, self._noisy(self._expert(), amount))
        medium = self.medium_iteration()
        if level == "medium":
            return Behaviour("medium", _still(self.search.policy(medium).act))
        tries = 2 * self.search.config.directions
        tried = min(int(share * (medium + 1) * tries), (medium + 1) * tries - 1)
        iteration, rest = divmod(tried, tries)
        policy = self.search.tried(iteration, rest // 2, 1 if rest % 2 == 0 else -1)
        return Behaviour(f"replay-iteration-{iteration}", _still(policy.act))

    def medium_iteration(self) -> int:
        """Of the search, the iteration whose policy is called medium."""
        assert self.search is not None
        start, best = self.search.evaluated[0][1], self.search.best()[1]
        return self.search.nearest(start + _MEDIUM * (best - start))[0]

    def _expert(self) -> Act:
        if self.expert is not None:
            return self.expert
        if self.search is None:
            raise UsageError("level: only random needs no expert; there is no scripted policy and no search")
        return self.search.policy(self.search.best()[0]).act

    def _random(self, state: NDArray[Any], rng: np.random.Generator) -> Any:
        if self.action_space.n is not None:
            return int(rng.integers(self.action_space.n))
        low, high = self._bounds()
        return rng.uniform(low, high).astype(np.float32)

    def _noisy(self, act: Act, amount: float) -> Acting:
        def noisy(state: NDArray[Any], rng: np.random.Generator) -> Any:
            if self.action_space.n is not None:
                return self._random(state, rng) if rng.random() < amount else act(state)
            low, high = self._bounds()
            action = act(state) + rng.normal(0.0, 1.0, len(low)) * amount * (high - low) / 2
            return np.clip(action, low, high).astype(np.float32)

        return noisy

    def _bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low, high = (
            np.asarray(side, dtype=np.float64) for side in (self.action_space.low, self.action_space.high)
        )
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise UsageError("level: actions without bounds can't be drawn at random")
        return low, high


def _still(act: Act) -> Acting:
    return lambda state, rng: act(state)
