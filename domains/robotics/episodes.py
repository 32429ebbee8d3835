"""Episodes: what a robot saw, did and earned, and where it happened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Episode:
    """One run from a reset to its end. ``T`` is the number of actions."""

    observations: dict[str, NDArray[Any]]
    """By name: ``state`` (T or T + 1, d) float32; where there are any, ``image`` (T or T + 1, h, w, 3) uint8
    and ``goal`` (T or T + 1, g) float32. The last of T + 1 is what was seen after the last action."""
    actions: NDArray[Any]
    """(T, a) float32 in the environment's own units, or (T,) int64 where actions are discrete."""
    rewards: NDArray[np.float32]
    """(T,) float32."""
    terminated: bool = False
    """The task itself ended (a fall, a goal), so no reward would have followed."""
    truncated: bool = False
    """The episode was cut (time limit, or the recording's end)."""
    instruction: str | None = None
    """What was asked for, in words."""
    seed: int | None = None
    """What the environment was reset with."""
    behaviour: str | None = None
    """Who acted: ``expert``, ``random``, ``human``, ..."""
    success: bool | None = None
    """Whether the environment ever said that the task was done; None where it never speaks of it."""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def state(self) -> NDArray[np.float32]:
        """What was seen before each action, (T, d)."""
        return self.observations["state"][: len(self)]

    @property
    def goal(self) -> NDArray[np.float32] | None:
        """What was to be reached at each action, (T, g), where the environment says so."""
        found = self.observations.get("goal")
        return None if found is None else found[: len(self)]

    @property
    def image(self) -> NDArray[np.uint8] | None:
        """The picture before each action, (T, h, w, 3), where there are pictures."""
        found = self.observations.get("image")
        return None if found is None else found[: len(self)]

    @property
    def total(self) -> float:
        """The return: the sum of all rewards, undiscounted."""
        return float(self.rewards.sum(dtype=np.float64))

    def returns_to_go(self) -> NDArray[np.float32]:
        """(T,): the rewards from each step on, summed; the first is the episode's return."""
        return self.rewards[::-1].cumsum(dtype=np.float64)[::-1].astype(np.float32)


def base_name(environment_id: str) -> str:
    """An environment's id without the module that registers it and without its version."""
    return re.sub(r"-v\d+$", "", environment_id.rpartition(":")[2])


@dataclass(frozen=True)
class ActionSpace:
    """What an action may be: numbers between bounds, or one of ``n`` choices."""

    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    n: int | None = None
    """How many choices there are; None for numbers."""

    @property
    def size(self) -> int:
        """Numbers in an action; 1 where it is a choice."""
        return len(self.low) if self.n is None else 1

    def __str__(self) -> str:
        if self.n is not None:
            return f"{self.n} choices"
        bounds = f"{min(self.low):g} to {max(self.high):g}" if self.low else "nothing"
        return f"{self.size} numbers, {bounds}"


@dataclass(frozen=True)
class EnvironmentRecord:
    """The environment that episodes come from, with what must be known to meet it again."""

    id: str
    """As ``gymnasium.make`` takes it."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """What was passed to ``gymnasium.make`` beside the id."""
    wrappers: dict[str, Any] = field(default_factory=dict)
    """Changes to it, by their names in ``WrapperConfig``: ``mass``, ``friction``."""
    mujoco_version: str | None = None
    """Versions change the physics without a word: what the episodes were made with."""
    gymnasium_version: str | None = None
    state_dim: int = 0
    action_space: ActionSpace = ActionSpace()
    control_hz: float | None = None
    """Actions in a second."""
    reference_random: float | None = None
    """Return that counts as a score of 0."""
    reference_expert: float | None = None
    """Return that counts as a score of 100."""
    reference_source: str | None = None
    """Where the two references come from."""


def record_from(facts: Mapping[str, Any]) -> EnvironmentRecord:
    """A record from what ``dataclasses.asdict`` made of it.

    Raises:
        DataError: If it holds something else.
    """
    try:
        space = facts["action_space"]
        bounds = ActionSpace(tuple(space["low"]), tuple(space["high"]), space["n"])
        return EnvironmentRecord(**{**facts, "action_space": bounds})
    except (KeyError, TypeError) as error:
        raise DataError(f"the record of the environment can't be read ({error})") from error


@dataclass(frozen=True)
class Episodes:
    """A data set of episodes."""

    name: str
    """What it is called in messages and reports."""
    episodes: list[Episode]
    environment: EnvironmentRecord | None = None
    notes: list[str] = field(default_factory=list)
    """What a person should know."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Episodes that could not be used: which, and why."""

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def n_steps(self) -> int:
        """Actions in all episodes."""
        return sum(map(len, self.episodes))

    @property
    def totals(self) -> NDArray[np.float64]:
        """The return of each episode."""
        return np.array([episode.total for episode in self.episodes], dtype=np.float64)

    @property
    def action_space(self) -> ActionSpace:
        """The environment's, or what the actions themselves show where no environment is known."""
        if self.environment is not None and (
            self.environment.action_space.size or self.environment.action_space.n
        ):
            return self.environment.action_space
        return seen_actions(self.episodes)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the pictures, where every episode has them."""
        images = [episode.image for episode in self.episodes]
        found = [image.shape[1:3] for image in images if image is not None]
        return (int(found[0][0]), int(found[0][1])) if images and len(found) == len(images) else None


@dataclass(frozen=True)
class EpisodeSplit:
    """Places of episodes by part."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_episodes(
    episodes: Episodes, validation: float = 0.1, test: float = 0.1, *, seed: int = 0
) -> EpisodeSplit:
    """Whole episodes into train, validation and test, at random: steps of one never stand on two sides.

    Every part whose share is above 0 gets at least one episode; train keeps at least one.

    Raises:
        UsageError: If a share is negative, the two leave nothing to learn from, or there are too few.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise UsageError(
            "validation, test: expected shares from 0 that leave some to learn from, "
            f"got {validation:g} and {test:g}"
        )
    count = len(episodes)
    parts = [max(1, round(count * share)) if share else 0 for share in (validation, test)]
    if sum(parts) >= count:  # rounded down, shares of less than one leave some to learn from
        parts = [max(1, int(count * share)) if share else 0 for share in (validation, test)]
    n_validation, n_test = parts
    if count <= n_validation + n_test:
        raise UsageError(
            f"{episodes.name}: {count} episodes can't be split into {n_validation} for validation, "
            f"{n_test} for test and at least one to learn from"
        )
    order = np.random.default_rng(seed).permutation(count).tolist()
    held = n_validation + n_test
    return EpisodeSplit(
        train=sorted(order[held:]),
        validation=sorted(order[:n_validation]),
        test=sorted(order[n_validation:held]),
    )


def seen_actions(episodes: Sequence[Episode]) -> ActionSpace:
    """Bounds (or the number of choices) of the actions that were taken."""
    if not episodes:
        return ActionSpace()
    if episodes[0].actions.ndim == 1:
        return ActionSpace(n=1 + max(int(episode.actions.max(initial=0)) for episode in episodes))
    low = np.min([episode.actions.min(axis=0) for episode in episodes], axis=0)
    high = np.max([episode.actions.max(axis=0) for episode in episodes], axis=0)
    return ActionSpace(low=tuple(map(float, low)), high=tuple(map(float, high)))


def what_is_wrong(episode: Episode) -> str | None:
    """Why an episode can't be used, in a few words; None where it can."""
    steps = len(episode)
    if steps == 0:
        return "no steps"
    if "state" not in episode.observations and "image" not in episode.observations:
        return f"no state and no image (observations: {', '.join(episode.observations) or 'none'})"
    if len(episode.rewards) != steps:
        return f"{steps} actions but {len(episode.rewards)} rewards"
    for name, values in {
        **episode.observations,
        "action": episode.actions,
        "reward": episode.rewards,
    }.items():
        if name in episode.observations and len(values) not in (steps, steps + 1):
            return f"{steps} actions but {len(values)} observations ({name})"
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
            return f"{name} of step {row} is not finite"
    if episode.actions.ndim == 1 and episode.actions.min() < 0:
        return (
            f"action of step {int(episode.actions.argmin())} is {episode.actions.min()}; choices count from 0"
        )
    return None


def gathered(
    name: str,
    episodes: Sequence[Episode],
    environment: EnvironmentRecord | None = None,
    notes: Sequence[str] = (),
    left_out: Sequence[tuple[str, str]] = (),
    names: Sequence[str] | None = None,
) -> Episodes:
    """A data set of the episodes that can be used; the others are listed in ``left_out``.

    Args:
        names: What each episode is called in ``left_out``; by default ``episode 0``, ...
    """
    good: list[Episode] = []
    bad = list(left_out)
    shape: tuple[object, ...] | None = None
    for place, episode in enumerate(episodes):
        reason = what_is_wrong(episode)
        if reason is None:
            own = _shape(episode)
            shape = own if shape is None else shape
            if own != shape:
                reason = f"its shapes {own} differ from those of the first, {shape}"
        if reason is None:
            good.append(episode)
        else:
            bad.append((names[place] if names is not None else f"episode {place}", reason))
    return Episodes(name, good, environment, list(notes), bad)


def _shape(episode: Episode) -> tuple[object, ...]:
    seen = {name: values.shape[1:] for name, values in sorted(episode.observations.items())}
    return (*seen.items(), ("action", episode.actions.shape[1:]))
