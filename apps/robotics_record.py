"""What `mambakit robotics record` does: films and files of what a behaviour does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from mambakit.apps.robotics_collect import Level, cast_of
from mambakit.apps.shared import check_suffix
from mambakit.core.cli import format_table, print_json
from mambakit.core.errors import UsageError


def record(
    *,
    output: Path | None = None,
    env: str | None = None,
    level: Level = "expert",
    data: str | None = None,
    trajectories: Path | None = None,
    episodes: int = 1,
    size: int = 256,
    quality: Literal["fast", "full"] = "fast",
    noise: float = 0.5,
    mass: float = 1.0,
    friction: float = 1.0,
    env_args: dict[str, Any] = {},  # noqa: B006  (not changed)
    expert: Literal["auto", "ars"] = "auto",
    expert_steps: int | None = None,
    expert_seed: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Films an environment while a behaviour of a known level acts, or the episodes of a data set.

    Args:
        output: The film (.mp4).
        env: The environment's id; or pass --data.
        level: Who acts: random, expert, medium, medium-replay, medium-expert or noisy.
        data: Film this data set's first episodes instead: its pictures, or its actions from its seeds.
        trajectories: Folder for the episodes, an .npz each.
        episodes: How many, one after the other.
        size: Height and width in pixels.
        quality: fast, or full with shadows and reflections (slow without a GPU).
        noise: Of noisy: the largest deviation, as a share of half an action's range.
        mass: Factor on the mass of every body.
        friction: Factor on the friction of every surface.
        env_args: Arguments of the environment, as JSON.
        expert: auto, or ars to search even where there is a scripted policy.
        expert_steps: Environment steps of the search; by default what suits the environment.
        expert_seed: Of the search.
        seed: Of the first episode; they count up.
        json: Print JSON for machines.

    Examples:
        mambakit robotics record --env Reacher-v5 --episodes 3 --output reacher.mp4
        mambakit robotics record --data data/hopper-medium --episodes 2 --output hopper.mp4
        mambakit robotics record --env Hopper-v5 --level medium --episodes 5 --trajectories data/hopper-npz
    """
    if output is None and trajectories is None:
        raise UsageError("output: pass --output FILE.mp4, --trajectories FOLDER, or both")
    if (env is None) == (data is None):
        raise UsageError("env, data: pass one of them")
    if episodes < 1:
        raise UsageError(f"episodes: expected 1 or more, got {episodes}")
    if size < 1:
        raise UsageError(f"size: expected 1 pixel or more, got {size}")
    if trajectories is not None and trajectories.exists() and not trajectories.is_dir():
        raise UsageError(f"trajectories: {trajectories} is a file; expected a folder")
    check_suffix("--output", output, (".mp4",))
    if data is not None:
        rows, frames = _of_data(data, episodes, output, trajectories, size, quality)
    else:
        from mambakit.domains.robotics.collection import CollectConfig
        from mambakit.domains.robotics.recording import record_behaviour
        from mambakit.domains.robotics.wrappers import WrapperConfig

        assert env is not None
        changed = WrapperConfig(mass=mass, friction=friction)
        config = CollectConfig(env, level, episodes, seed, noise, None, env_args, changed)
        cast = cast_of(config, expert, expert_steps, expert_seed)
        rows, frames = record_behaviour(config, cast, output, trajectories, size=size, quality=quality)
    if json:
        print_json({"output": output, "trajectories": trajectories, "frames": frames, "episodes": rows})
        return
    print(format_table(rows))
    if output is not None:
        print(f"video: {output} ({frames} frames)")
    if trajectories is not None:
        print(f"trajectories: {trajectories} ({len(rows)} files)")


def _of_data(
    data: str,
    episodes: int,
    output: Path | None,
    trajectories: Path | None,
    size: int,
    quality: Literal["fast", "full"],
) -> tuple[list[dict[str, object]], int]:
    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.recording import record_data

    found = load_episodes(data)
    if len(found) < episodes:
        print(f"note: {found.name} has {len(found)} episodes", file=sys.stderr)
    rows, frames, notes = record_data(found, episodes, output, trajectories, size=size, quality=quality)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return rows, frames
