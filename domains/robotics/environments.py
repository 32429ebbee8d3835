"""gymnasium environments by id, as the policies see them: named observations, seeds, fast pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from mambakit.core.cli import did_you_mean
from mambakit.core.errors import UsageError, UserError
from mambakit.domains.robotics.actions import action_space_of, with_served_actions
from mambakit.domains.robotics.episodes import EnvironmentRecord
from mambakit.domains.robotics.observations import NamedObservations
from mambakit.domains.robotics.rendering import FastRender, OwnRender, why_no_import
from mambakit.domains.robotics.scores import reference_of
from mambakit.domains.robotics.wrappers import WrapperConfig, wrapped

# Names of gymnasium-robotics' environments; its package registers them only once it is imported.
_SUITE_NAMES = ("Fetch", "Hand", "Adroit", "PointMaze", "AntMaze", "FrankaKitchen")
_NEED_OLD_MUJOCO = ("Fetch", "FrankaKitchen")
# An environment without a time limit may never end an episode; at 125 steps a second this is 13 minutes.
_MOST_STEPS = 100_000


def make(
    environment_id: str,
    *,
    seed: int | None = None,
    render_size: int | None = None,
    image_size: int | None = None,
    wrappers: WrapperConfig | None = None,
    render_quality: Literal["fast", "full"] = "fast",
    kwargs: Mapping[str, Any] | None = None,
) -> gymnasium.Env[dict[str, Any], Any]:
    """An environment by gymnasium's id; ``module:Name-v0`` imports the module that registers it first.

    Its observations are dictionaries: ``state`` (d,) float32, with ``image`` (h, w, 3) uint8 and ``goal``
    (g,) float32 where there are any. Observations that are choices become one-hot states. Actions are a
    vector of numbers, or one choice that counts from 0: several at once are one among all combinations.

    Args:
        seed: What the first reset uses if it names no seed of its own.
        render_size: Height and width in pixels of what ``render()`` returns; None: it can't render.
        image_size: Adds a square picture of so many pixels to the observations.
        wrappers: Delays, noise, masks, changed mass and friction.
        render_quality: ``fast`` leaves out shadows, reflections, the sky and smoothed edges.
        kwargs: Passed to ``gymnasium.make``.

    Raises:
        UsageError: If the id or its arguments are unknown, or its spaces are of a kind we don't serve.
        UserError: If a package, or what pictures need, is not installed.
    """
    _choose_backend()
    for name, pixels in (("render_size", render_size), ("image_size", image_size)):
        if pixels is not None and pixels < 1:
            raise UsageError(f"{name}: expected 1 pixel or more, got {pixels}")
    size = render_size or image_size
    env = _made(environment_id, dict(kwargs or {}), size)
    if size is not None:
        fast = hasattr(env.unwrapped, "model") and render_quality == "fast"
        env = FastRender(env, size) if fast else OwnRender(env)
    if env.spec is not None and (env.spec.max_episode_steps or -1) < 0:
        env = _Ending(env)
    env = NamedObservations(with_served_actions(env), image_size)
    env = wrapped(env, wrappers or WrapperConfig())
    return FirstSeed(env, seed)


def make_many(
    environment_id: str,
    n_envs: int,
    *,
    seed: int | None = None,
    processes: bool = False,
    **options: Any,
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """``n_envs`` of them in step; seeds count up from ``seed``. An environment that ended is reset in that
    same step: ``infos["final_obs"]`` holds what was seen last.

    Args:
        processes: Each in a process of its own, worth it where a step takes milliseconds (pictures).
        options: As in ``make``.
    """
    if n_envs < 1:
        raise UsageError(f"n_envs: expected 1 or more, got {n_envs}")
    makers: list[Callable[[], Any]] = [
        partial(make, environment_id, seed=None if seed is None else seed + place, **options)
        for place in range(n_envs)
    ]
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    if processes:
        return gymnasium.vector.AsyncVectorEnv(makers, autoreset_mode=mode)
    return gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def record_of(
    env: gymnasium.Env[Any, Any],
    environment_id: str,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: WrapperConfig | None = None,
) -> EnvironmentRecord:
    """What an environment made by ``make`` is, to be kept with data and models."""
    state = env.observation_space["state"] if isinstance(env.observation_space, spaces.Dict) else None
    reference = reference_of(environment_id)
    return EnvironmentRecord(
        id=environment_id,
        kwargs=dict(kwargs or {}),
        wrappers={} if wrappers is None else wrappers.changes,
        mujoco_version=_version("mujoco") if hasattr(env.unwrapped, "model") else None,
        gymnasium_version=_version("gymnasium"),
        state_dim=int(state.shape[0]) if state is not None and state.shape else 0,
        action_space=action_space_of(env.action_space),
        control_hz=_control_hz(env),
        reference_random=None if reference is None else reference.random,
        reference_expert=None if reference is None else reference.expert,
        reference_source=None if reference is None else reference.source,
    )


def version_note(record: EnvironmentRecord) -> str | None:
    """A warning where data or a model come from another mujoco than the one here; None where they don't."""
    here = _version("mujoco")
    if record.mujoco_version is None or here is None or record.mujoco_version == here:
        return None
    return (
        f"{record.id} was recorded with mujoco {record.mujoco_version}, here is {here}: "
        "its physics may differ, and so may returns"
    )


class _TasksBySeed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Meta-World takes no notice of a reset's seed: the task is drawn from what is set here."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.env.unwrapped.np_random = np.random.default_rng(seed)
        return self.env.reset(seed=seed, options=options)


class _Ending(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Where nothing ends an episode, an error does, instead of a wait without end."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise UsageError(
                f"{self.spec.id if self.spec else self.env}: an episode has not ended after {_MOST_STEPS:,} "
                "steps; set a limit, such as --env-args '{\"max_episode_steps\": 1000}'"
            )
        return self.env.step(action)


class FirstSeed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The first reset uses a seed given when the environment was made, unless it names its own."""

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int | None) -> None:
        super().__init__(env)
        self._first = seed
        if seed is not None:
            self.action_space.seed(seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        seed, self._first = (self._first if seed is None else seed), None
        return self.env.reset(seed=seed, options=options)


def _made(environment_id: str, kwargs: dict[str, Any], size: int | None) -> gymnasium.Env[Any, Any]:
    plain = environment_id.rpartition(":")[2]
    if plain.startswith(_SUITE_NAMES):
        _register("gymnasium_robotics", "gymnasium-robotics", plain)
    tasks = plain.startswith("Meta-World")
    if tasks:
        _register("metaworld", "metaworld", plain)
        kwargs.setdefault("seed", 0)  # of the tasks that there are to draw from
    if plain.startswith("mambakit/"):
        import_module("mambakit.domains.robotics.reaching").register()
    if size is not None:
        kwargs.setdefault("render_mode", "rgb_array")
        spec = gymnasium.registry.get(environment_id)
        if spec is not None and str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
            kwargs.setdefault("width", size)
            kwargs.setdefault("height", size)
    try:
        env = _imported(environment_id, kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(
            f"{environment_id}: {str(error).splitlines()[0]}; pip install 'mambakit[robotics]' brings MuJoCo"
        ) from error
    except gymnasium.error.Error as error:
        if plain not in gymnasium.registry:
            raise UsageError(_unknown(environment_id)) from error
        raise UsageError(f"{environment_id}: {error}") from error
    except ImportError as error:
        # gymnasium raises one of its own from the module's
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        module = environment_id.rpartition(":")[0]
        if module and f"{module}.".startswith(f"{missing.name}."):
            raise UsageError(
                f"env: {environment_id}: there is no module {module!r} to register it"
            ) from error
        raise UserError(f"{environment_id}: can't be imported ({missing})") from error
    except (TypeError, ValueError, AssertionError) as error:
        if isinstance(error, AssertionError) and plain.startswith(_NEED_OLD_MUJOCO):
            # gymnasium-robotics compares mujoco's enums with numpy's integers, which mujoco 3.12 forbids
            raise UserError(
                f"{environment_id} can't be made with mujoco {_version('mujoco')}: Fetch and FrankaKitchen "
                "need mujoco below 3.11 (pip install 'mujoco<3.11')"
            ) from error
        if "render_mode" in kwargs and isinstance(error, TypeError):
            raise UsageError(
                f"{environment_id}: it can't be drawn, or its arguments {kwargs} don't fit: {error}"
            ) from error
        raise UsageError(f"{environment_id}: its arguments {kwargs} don't fit: {error}") from error
    return _TasksBySeed(env) if tasks else env


def _imported(environment_id: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """``gymnasium.make``; mujoco fails in many ways where it finds nothing to draw with."""
    drawing = (ImportError, AttributeError, RuntimeError, OSError, gymnasium.error.DependencyNotInstalled)
    try:
        return gymnasium.make(environment_id, **kwargs)
    except drawing as error:
        why = why_no_import(error)
        if why is None:
            raise
        raise UserError(why) from error


def _register(module: str, package: str, name: str) -> None:
    if find_spec(module) is None:
        raise UserError(f"{name} needs {package}; install it with pip install 'mambakit[robotics-suites]'")
    try:
        gymnasium.register_envs(import_module(module))
    except ImportError as error:
        raise UserError(
            f"{name}: {package} can't be imported ({error}); install all it needs with "
            "pip install 'mambakit[robotics-suites]'"
        ) from error


def _unknown(environment_id: str) -> str:
    return (
        f"env: gymnasium knows no {environment_id!r}{did_you_mean(environment_id, list(gymnasium.registry))} "
        "(your own: --env your_module:YourName-v0 imports your_module, which registers it)"
    )


def _choose_backend() -> None:
    # mujoco picks its way to draw when it is imported; without a screen only EGL draws
    if sys.platform == "linux" and "mujoco" not in sys.modules:
        if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")


def _control_hz(env: gymnasium.Env[Any, Any]) -> float | None:
    step_s = getattr(env.unwrapped, "dt", None)
    if isinstance(step_s, (int, float)) and step_s > 0:
        return round(1.0 / float(step_s), 6)
    fps = (env.metadata or {}).get("render_fps")
    return float(fps) if fps else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
