"""Collecting episodes with behaviours of known levels, in small steps that survive a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np

from mambakit.core.data import cache_folder
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.behaviours import LEVELS, Behaviour, Cast, Level
from mambakit.domains.robotics.environments import make, record_of
from mambakit.domains.robotics.episodes import EnvironmentRecord, Episode, Episodes
from mambakit.domains.robotics.experts.ars import ArsConfig, Search, preset, search
from mambakit.domains.robotics.experts.scripted import instruction_of, scripted
from mambakit.domains.robotics.experts.workers import Workers
from mambakit.domains.robotics.folder_files import read_episode, write_episode
from mambakit.domains.robotics.lerobot_files import write_lerobot
from mambakit.domains.robotics.minari_files import Format, write_minari
from mambakit.domains.robotics.wrappers import WrapperConfig

_PLAN = "plan.json"
_WAITING = ".collecting"


@dataclass(frozen=True)
class CollectConfig:
    """What is collected."""

    environment_id: str
    level: Level = "expert"
    episodes: int = 100
    seed: int = 0
    """Episode k is reset with seed + k."""
    noise: float = 0.5
    """Of the level noisy: the largest standard deviation, as a share of half an action's range."""
    image_size: int | None = None
    """Adds square pictures of so many pixels to the observations."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Passed to ``gymnasium.make``."""
    wrappers: WrapperConfig = field(default_factory=WrapperConfig)
    """Of these only mass and friction: what was seen is changed later, by ``seen_through``."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"level: expected one of {', '.join(LEVELS)}, got {self.level!r}")
        if self.episodes < 1:
            raise UsageError(f"episodes: expected 1 or more, got {self.episodes}")
        if self.seed < 0:
            raise UsageError(f"seed: expected 0 or more, got {self.seed}")
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"image_size: expected 1 pixel or more, got {self.image_size}")
        if self.noise < 0:
            raise UsageError(f"noise: expected 0 or more, got {self.noise}")
        unfit = set(self.wrappers.changes) - {"mass", "friction"}
        if unfit:
            raise UsageError(
                f"wrappers: {', '.join(sorted(unfit))} would hide from the expert what it acts on; "
                "collect without, and train and evaluate with them"
            )


def find_cast(
    config: CollectConfig,
    ars: ArsConfig | None = None,
    tell: Callable[[Search], None] | None = None,
    cache: Path | None = None,
    workers: int = 1,
) -> Cast:
    """Who can act in the environment: a scripted policy, else one searched for (kept for the next call).

    Args:
        ars: How to search; by default what suits the environment. Given, it wins over a scripted policy.
        tell: Called as the search gets on.
        cache: Folder of searches; by default ``experts`` in mambakit's cache.
        workers: Processes that a search is shared out to; its result is the same with any number.
    """
    if workers < 1:
        raise UsageError(f"workers: expected 1 or more, got {workers}")
    maker = partial(make, config.environment_id, kwargs=dict(config.kwargs), wrappers=config.wrappers)
    env = maker()
    try:
        record = record_of(env, config.environment_id, config.kwargs)
        if config.level == "random":
            return Cast(record.action_space)
        known = scripted(config.environment_id, config.kwargs)
        if known is not None and ars is None:
            return Cast(record.action_space, expert=known)
        settings = ars or preset(config.environment_id)
        path = (cache or cache_folder() / "robotics" / "experts") / _search_name(config, record, settings)
        with Workers(maker, workers) if workers > 1 else nullcontext() as elsewhere:
            found = search(
                env, config.environment_id, record.action_space, settings, path, tell, roll_out=elsewhere
            )
        return Cast(record.action_space, search=found)
    finally:
        env.close()


def collect(
    config: CollectConfig,
    cast: Cast,
    folder: Path,
    *,
    data_format: Format | Literal["lerobot"] = "hdf5",
    tell: Callable[[int, Episode], None] | None = None,
) -> EnvironmentRecord:
    """Collects into ``folder`` as a Minari data set; a call that was killed goes on where it was.

    Args:
        folder: Where the data set comes to lie, in ``data``. Episodes wait in
            ``.collecting`` until all are there.
        tell: Called after each episode that is new.

    Returns:
        The environment as it is recorded.

    Raises:
        UsageError: If the folder holds a data set, or the beginning of another one. Also if LeRobot's format
            is asked for and the environment has no control rate.
    """
    plan_of(folder, config)
    env = make(
        config.environment_id,
        image_size=config.image_size,
        wrappers=config.wrappers,
        kwargs=config.kwargs,
    )
    waiting = folder / _WAITING
    try:
        record = record_of(env, config.environment_id, config.kwargs, config.wrappers)
        if data_format == "lerobot" and record.control_hz is None:
            raise UsageError(
                f"format: lerobot needs to know how many steps a second there are, and {record.id} does not "
                "say (its metadata lack render_fps); collect as hdf5 or arrow"
            )
        known = {"mujoco": record.mujoco_version, "search": _search_facts(cast)}
        _start(folder, plan_of(folder, config, known))
        for place in range(config.episodes):
            path = waiting / f"episode-{place:06d}.npz"
            if path.exists():
                continue
            behaviour = cast.behaviour(config.level, place, config.episodes, config.noise)
            episode = run(env, behaviour, config.seed + place)
            write_episode(path, episode)
            if tell is not None:
                tell(place, episode)
        for name in ("data", "meta"):  # of a call that was killed while it wrote them
            shutil.rmtree(folder / name, ignore_errors=True)
        if data_format == "lerobot":
            found = Episodes(folder.name, list(_collected(waiting, config.episodes)), record)
            write_lerobot(folder, found)
        else:
            write_minari(
                folder,
                _collected(waiting, config.episodes),
                record,
                env_spec=env.unwrapped.spec,
                data_format=data_format,
                algorithm=_algorithm(cast),
                description=f"{config.environment_id}, level {config.level}, {config.episodes} episodes",
                extra={"collect": _plain(config), "search": _search_facts(cast)},
            )
    finally:
        env.close()
    shutil.rmtree(waiting)
    return record


def run(env: gymnasium.Env[Any, Any], behaviour: Behaviour, seed: int) -> Episode:
    """One episode. Its actions' random numbers follow from the seed too."""
    rng = np.random.default_rng((seed, 1))
    seen, info = env.reset(seed=seed)
    spec = env.spec
    asked = info.get("instruction") or (spec and instruction_of(spec.id, spec.kwargs))
    observations = {name: [value] for name, value in seen.items()}
    actions, rewards, terminated, truncated = [], [], False, False
    success: bool | None = None
    while not (terminated or truncated):
        # what an expert may know and a policy may not, such as where the target lies
        action = behaviour.act(info.get("expert_sees", seen["state"]), rng)
        seen, reward, terminated, truncated, info = env.step(action)
        told = info.get("is_success", info.get("success"))
        success = success if told is None else bool(success) or bool(told)
        actions.append(action)
        rewards.append(reward)
        for name, value in seen.items():
            observations[name].append(value)
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    return Episode(
        {name: np.stack(values) for name, values in observations.items()},
        np.array(actions, dtype=np.int64 if discrete else np.float32),
        np.array(rewards, dtype=np.float32),
        terminated,
        truncated,
        str(asked) if asked else None,
        seed,
        behaviour.name,
        success,
    )


def collect_in_memory(config: CollectConfig, cast: Cast, name: str) -> Episodes:
    """As ``collect``, for sets that are small enough to be made when they are wanted."""
    env = make(
        config.environment_id, image_size=config.image_size, wrappers=config.wrappers, kwargs=config.kwargs
    )
    try:
        episodes = [
            run(env, cast.behaviour(config.level, place, config.episodes, config.noise), config.seed + place)
            for place in range(config.episodes)
        ]
        record = record_of(env, config.environment_id, config.kwargs, config.wrappers)
        return Episodes(name, episodes, record)
    finally:
        env.close()


def _collected(folder: Path, count: int) -> Iterator[Episode]:
    for place in range(count):
        yield read_episode(folder / f"episode-{place:06d}.npz")


def plan_of(folder: Path, config: CollectConfig, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What is collected and how, where ``folder`` is free for it.

    Raises:
        UsageError: If the folder holds a data set, or the beginning of another one.
        DataError: If what was begun there can't be read.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"output: {folder} is a file; expected a folder")
    path = folder / _WAITING / _PLAN
    for name, last in (("data", "metadata.json"), ("meta", "info.json")):
        # once a collection has begun, what lacks its last file is what that one was writing
        there = folder / name / last if path.exists() else folder / name
        if there.exists():
            raise UsageError(f"output: {folder / name} is already there; choose another folder or remove it")
    plan = {**_plain(config), **(more or {})}
    if path.exists():
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise DataError(f"{path} can't be read ({error}); remove {path.parent} to begin again") from error
        differs = sorted(name for name in plan if found.get(name) != plan[name])
        if differs:
            raise UsageError(
                f"output: {folder} holds the beginning of another collection ({', '.join(differs)} differ); "
                f"finish that one, choose another folder, or remove {path.parent}"
            )
    return plan


def _start(folder: Path, plan: Mapping[str, Any]) -> None:
    path = folder / _WAITING / _PLAN
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_suffix(f".{os.getpid()}")
    writing.write_text(json.dumps(plan, indent=1), "utf-8")
    writing.replace(path)


def _plain(config: CollectConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _search_facts(cast: Cast) -> dict[str, Any] | None:
    if cast.search is None:
        return None
    iteration, earned = cast.search.best()
    return {
        "config": dataclasses.asdict(cast.search.config),
        "expert_iteration": iteration,
        "expert_return": earned,
        "medium_iteration": cast.medium_iteration(),
    }


def _algorithm(cast: Cast) -> str:
    if cast.search is not None:
        return "ARS V2-t"
    return "scripted policy" if cast.expert is not None else "uniform random actions"


def _search_name(config: CollectConfig, record: EnvironmentRecord, ars: ArsConfig) -> str:
    """A file name that differs wherever the search would."""
    about = [
        config.environment_id,
        dict(config.kwargs),
        config.wrappers.changes,
        record.mujoco_version,
        record.gymnasium_version,
        dataclasses.asdict(ars),
    ]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]
    plain = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in config.environment_id)
    return f"{plain}-{digest}.npz"
