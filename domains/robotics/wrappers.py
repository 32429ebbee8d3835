"""What lies between a simulation and a robot: delays, noise, sensors that are missing, another mass.

Also as a change of recorded episodes (``seen_through``), so that a policy can learn from clean data what it
will see through the wrappers.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.episodes import Episode, Episodes, base_name

# Where gymnasium's environment doesn't say which numbers of its state are velocities.
_VELOCITIES = {
    "Reacher": range(6, 8),
    "InvertedDoublePendulum": range(5, 8),
    "Pusher": range(7, 14),
    "CartPole": (1, 3),
    "Pendulum": (2,),
}


@dataclasses.dataclass(frozen=True)
class WrapperConfig:
    """Changes to an environment; the defaults change nothing."""

    action_delay: int = 0
    """Steps until an action takes effect; until then the environment gets actions of zero (choice 0)."""
    observation_delay: int = 0
    """Steps by which observations are late; the first one is seen until others arrive."""
    observation_noise: float = 0.0
    """Standard deviation of Gaussian noise on every number of the state, in the state's own units."""
    mask: list[int] | Literal["velocities"] | None = None
    """Numbers of the state that read zero: their places from 0, or ``velocities``."""
    mass: float = 1.0
    """Factor on the mass and inertia of every body."""
    friction: float = 1.0
    """Factor on the friction of every surface."""

    def __post_init__(self) -> None:
        for name in ("action_delay", "observation_delay", "observation_noise"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("mass", "friction"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}: expected a factor above 0, got {getattr(self, name)}")

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the defaults, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }


def wrapped(env: gymnasium.Env[Any, Any], config: WrapperConfig) -> gymnasium.Env[Any, Any]:
    """The environment with these changes; observations must be dictionaries, as ``environments.make`` gives.

    A delayed observation is masked and noisy as it was when it was measured.

    Raises:
        UsageError: If the environment has no mass, velocities or numbers of that place.
    """
    if config.mass != 1.0 or config.friction != 1.0:
        _change_physics(env, config)
    if config.mask is not None:
        env = Masked(env, mask_indices(env, config.mask))
    if config.observation_noise:
        env = Noisy(env, config.observation_noise)
    if config.observation_delay:
        env = LateObservations(env, config.observation_delay)
    if config.action_delay:
        env = LateActions(env, config.action_delay)
    return env


def mask_indices(env: gymnasium.Env[Any, Any], mask: list[int] | Literal["velocities"]) -> list[int]:
    """Places in the state that a mask names.

    Raises:
        UsageError: If there are no such places, or nobody says which numbers are velocities.
    """
    space = env.observation_space
    width = int(space["state"].shape[0]) if isinstance(space, spaces.Dict) and "state" in space.spaces else 0  # type: ignore[index]
    if mask == "velocities":
        return _velocities(env)
    if isinstance(mask, str) or not mask or not all(0 <= place < width for place in mask):
        raise UsageError(f"mask: expected velocities or places from 0 to {width - 1}, got {mask}")
    return sorted(set(mask))


class Masked(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Some numbers of the state read zero."""

    def __init__(self, env: gymnasium.Env[Any, Any], places: list[int]) -> None:
        super().__init__(env)
        self.places = places

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        state = observation["state"].copy()
        state[self.places] = 0.0
        return {**observation, "state": state}


class Noisy(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Gaussian noise on the state, from the environment's own random numbers: a seed fixes it."""

    def __init__(self, env: gymnasium.Env[Any, Any], deviation: float) -> None:
        super().__init__(env)
        self._deviation = deviation

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        state = observation["state"]
        noise = self.unwrapped.np_random.standard_normal(state.shape).astype(np.float32)
        return {**observation, "state": state + np.float32(self._deviation) * noise}


class LateObservations(gymnasium.Wrapper[Any, Any, Any, Any]):
    """What is seen is some steps old."""

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        super().__init__(env)
        self._steps = steps
        self._waiting: deque[Any] = deque()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        seen, info = self.env.reset(seed=seed, options=options)
        self._waiting = deque([seen] * self._steps)
        return seen, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        self._waiting.append(seen)
        return self._waiting.popleft(), reward, terminated, truncated, info


class LateActions(gymnasium.Wrapper[Any, Any, Any, Any]):
    """What is done is some steps old."""

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        super().__init__(env)
        self._steps = steps
        self._waiting: deque[Any] = deque()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._waiting = deque([_nothing(self.action_space)] * self._steps)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        # a copy: the caller may write the next action into the same array
        self._waiting.append(np.array(action) if isinstance(action, np.ndarray) else action)
        return self.env.step(self._waiting.popleft())


def seen_through(
    episodes: Episodes, config: WrapperConfig, mask: list[int] | None = None, *, seed: int = 0
) -> Episodes:
    """Recorded episodes as they would have looked through the wrappers, with the actions that were taken.

    Masks, noise and late observations change what was seen. A late action must be decided earlier: the action
    of step t becomes that of step t - delay, and the last steps, whose actions came to nothing, are cut.

    Args:
        mask: Places as ``mask_indices`` gives them, where ``config.mask`` is ``velocities``.

    Raises:
        UsageError: If mass or friction differ: what would have happened then isn't known. Also if the state
            has no such places.
    """
    if config.mass != 1.0 or config.friction != 1.0:
        raise UsageError("mass, friction: recorded episodes can't show another physics; collect new ones")
    places = mask if mask is not None else config.mask
    if isinstance(places, str):
        raise UsageError("mask: pass the places that mask_indices gives for velocities")
    for episode in episodes.episodes[:1] if places else []:
        width = episode.state.shape[1] if "state" in episode.observations else 0
        if not all(0 <= place < width for place in places or []):
            raise UsageError(
                f"mask: expected places from 0 to {width - 1} of {episodes.name}'s state, got {places}"
            )
    rng = np.random.default_rng(seed)
    changed, lost = [], list(episodes.left_out)
    for place, episode in enumerate(episodes.episodes):
        if len(episode) <= config.action_delay:
            lost.append(
                (f"episode {place}", f"{len(episode)} steps, the actions' delay is {config.action_delay}")
            )
        else:
            changed.append(_seen_through(episode, config, places, rng))
    return dataclasses.replace(episodes, episodes=changed, left_out=lost)


def _seen_through(
    episode: Episode, config: WrapperConfig, places: list[int] | None, rng: np.random.Generator
) -> Episode:
    steps = len(episode) - config.action_delay
    seen = {name: values[: steps + 1] for name, values in episode.observations.items()}
    if "state" in seen:
        state = seen["state"].copy()
        if places:
            state[:, places] = 0.0
        if config.observation_noise:
            state += rng.normal(0.0, config.observation_noise, state.shape).astype(np.float32)
        seen["state"] = state
    if config.observation_delay:
        seen = {
            name: values[np.maximum(np.arange(len(values)) - config.observation_delay, 0)]
            for name, values in seen.items()
        }
    return dataclasses.replace(
        episode,
        observations=seen,
        actions=episode.actions[config.action_delay :],
        rewards=episode.rewards[:steps],
    )


def _change_physics(env: gymnasium.Env[Any, Any], config: WrapperConfig) -> None:
    model = getattr(env.unwrapped, "model", None)
    if model is None:
        raise UsageError(f"mass, friction: {env.unwrapped} is no MuJoCo environment")
    model.body_mass[:] *= config.mass
    model.body_inertia[:] *= config.mass
    model.geom_friction[:] *= config.friction
    import mujoco

    mujoco.mj_setConst(model, env.unwrapped.data)  # type: ignore[attr-defined]


def _velocities(env: gymnasium.Env[Any, Any]) -> list[int]:
    structure = getattr(env.unwrapped, "observation_structure", None)
    if structure is not None:
        start = int(structure["qpos"])
        return list(range(start, start + int(structure["qvel"])))
    name = base_name(env.spec.id) if env.spec is not None else ""
    if name in _VELOCITIES:
        return list(_VELOCITIES[name])
    raise UsageError(
        f"mask: which numbers of {name or env}'s state are velocities is not known; name their places"
    )


def _nothing(space: spaces.Space[Any]) -> Any:
    return np.zeros(space.shape, space.dtype) if isinstance(space, spaces.Box) else 0
