"""What `mambakit robotics collect` does: experts and what they show, as data sets."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mambakit.apps.shared import check_suffix, tell
from mambakit.core.cli import format_table, print_json

if TYPE_CHECKING:
    from mambakit.domains.robotics.behaviours import Cast
    from mambakit.domains.robotics.collection import CollectConfig
    from mambakit.domains.robotics.episodes import Episode, Episodes
    from mambakit.domains.robotics.experts.ars import Search

# As behaviours.LEVELS, which --help must not import gymnasium for.
Level = Literal["random", "medium", "medium-replay", "expert", "medium-expert", "noisy"]


def collect(
    *,
    env: str,
    output: Path,
    level: Level = "expert",
    episodes: int = 100,
    format: Literal["hdf5", "arrow", "lerobot"] = "hdf5",
    image_size: int | None = None,
    noise: float = 0.5,
    mass: float = 1.0,
    friction: float = 1.0,
    env_args: dict[str, Any] = {},  # noqa: B006  (not changed)
    expert: Literal["auto", "ars"] = "auto",
    expert_steps: int | None = None,
    expert_seed: int | None = None,
    workers: int = 1,
    seed: int = 0,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Collects episodes of a known level in an environment, as a Minari or LeRobot data set.

    The expert is a scripted policy where there is one, else a linear policy found by augmented random search,
    which is kept for the next call. A call that was killed goes on where it was.

    Args:
        env: The environment's id; your_module:Name-v0 imports your_module first.
        output: Folder for the data set.
        level: random; expert; medium (earns about half as much); medium-replay (what the search tried on the
            way there); medium-expert (half and half); noisy (the expert under noise that grows).
        episodes: How many.
        format: hdf5 or arrow (Minari), or lerobot (v3.0).
        image_size: Adds square pictures of so many pixels to what is seen.
        noise: Of noisy: the largest deviation, as a share of half an action's range.
        mass: Factor on the mass of every body.
        friction: Factor on the friction of every surface.
        env_args: Arguments of the environment, as JSON.
        expert: auto, or ars to search even where there is a scripted policy.
        expert_steps: Environment steps of the search; by default what suits the environment.
        expert_seed: Of the search.
        workers: Processes that share the search; its result is the same with any number.
        seed: Of the first episode; they count up.
        plot: A picture (.png, .svg or .pdf) of the returns.
        json: Print JSON for machines.

    Examples:
        mambakit robotics collect --env Reacher-v5 --level noisy --output data/reacher-noisy
        mambakit robotics collect --env Hopper-v5 --level medium --episodes 200 --output data/hopper-medium
        mambakit robotics collect --env Hopper-v5 --level medium-replay --output data/hopper-replay
        mambakit robotics collect --env Reacher-v5 --image-size 64 --format lerobot --output data/pixels
    """
    from mambakit.domains.robotics.cards import load_episodes
    from mambakit.domains.robotics.collection import CollectConfig, collect, plan_of
    from mambakit.domains.robotics.wrappers import WrapperConfig

    check_suffix("--plot", plot, (".png", ".svg", ".pdf"))
    wrappers = WrapperConfig(mass=mass, friction=friction)
    config = CollectConfig(env, level, episodes, seed, noise, image_size, env_args, wrappers)
    plan_of(output, config)  # a mistake should not cost a search first
    cast = cast_of(config, expert, expert_steps, expert_seed, workers)
    shown = _Progress(episodes)
    collect(config, cast, output, data_format=format, tell=shown.episode)
    shown.close()
    found = load_episodes(output.resolve())  # a path: its bare name may be a card's
    if plot is not None:
        from mambakit.domains.robotics.plots import returns_figure

        plot.parent.mkdir(parents=True, exist_ok=True)
        returns_figure(_returns_by_group(found)).savefig(plot)
    _show(found, cast, output, json)


def cast_of(
    config: CollectConfig,
    expert: Literal["auto", "ars"],
    steps: int | None,
    seed: int | None,
    workers: int = 1,
) -> Cast:
    """Who can act, with the progress of a search on stderr."""
    from mambakit.domains.robotics.collection import find_cast
    from mambakit.domains.robotics.experts.ars import preset

    given = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    wanted = expert == "ars" or bool(given)
    ars = dataclasses.replace(preset(config.environment_id), **given) if wanted else None
    return find_cast(config, ars, _tell_search, workers=workers)


def _tell_search(search: Search) -> None:
    iteration, mean, deviation = search.evaluated[-1]
    print(
        f"search for an expert: {search.steps:,} of {search.config.steps:,} steps, iteration {iteration}: "
        f"return {mean:.1f} ± {deviation:.1f}",
        file=sys.stderr,
    )


class _Progress:
    """A bar of episodes on stderr."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="episode", file=sys.stderr, desc="collect", disable=None)

    def episode(self, place: int, episode: Episode) -> None:
        if self._bar.n < place:  # found from an earlier call
            self._bar.update(place - self._bar.n)
        self._bar.update(1)
        self._bar.set_postfix_str(f"return {episode.total:.1f}")

    def close(self) -> None:
        self._bar.close()


def group_of(behaviour: str | None) -> str:
    """Behaviours that differ by a number alone are one group."""
    return re.sub(r"(-iteration)?-[\d.]+$", "", behaviour or "unknown")


def _returns_by_group(found: Episodes) -> dict[str, list[float]]:
    return {name: [episode.total for episode in group] for name, group in _groups(found).items()}


def _groups(found: Episodes) -> dict[str, list[Episode]]:
    groups: dict[str, list[Episode]] = {}
    for episode in found.episodes:
        groups.setdefault(group_of(episode.behaviour), []).append(episode)
    return groups


def _show(found: Episodes, cast: Cast, output: Path, json: bool) -> None:
    import numpy as np

    from mambakit.domains.robotics.scores import normalised_score, score_label

    environment = found.environment
    assert environment is not None
    ends = environment.reference_random, environment.reference_expert
    rows: list[dict[str, object]] = []
    for name, group in _groups(found).items():
        returns = [episode.total for episode in group]
        reached = [episode.success for episode in group if episode.success is not None]
        row: dict[str, object] = {
            "behaviour": name,
            "episodes": len(returns),
            "return": float(np.mean(returns)),
        }
        row |= {"deviation": float(np.std(returns)), "lowest": min(returns), "highest": max(returns)}
        if ends[0] is not None and ends[1] is not None:
            row["score"] = float(normalised_score(returns, ends[0], ends[1]).mean())
        if reached:
            row["success"] = sum(reached) / len(reached)
        rows.append(row)
    label = score_label(environment.id)
    expert: dict[str, object] = {"expert": "scripted" if cast.expert is not None else "none"}
    if cast.search is not None:
        iteration, earned = cast.search.best()
        expert = {"expert": "ARS", "steps": cast.search.steps, "iteration": iteration, "return": earned}
    if json:
        print_json(
            {"output": output, "environment": environment, "episodes": len(found), "steps": found.n_steps}
            | {"behaviours": rows, "score_is": label, "expert": expert, "left_out": found.left_out}
        )
        return
    print(format_table(rows))
    print(f"score: {label}")
    if cast.search is not None:
        steps = f"{cast.search.steps:,} steps"
        print(f"expert: augmented random search, return {expert['return']:.1f} after {steps}")
    print(f"data: {output} ({len(found)} episodes, {found.n_steps:,} steps)")
    tell([f"{len(found.left_out)} episodes left out"] if found.left_out else [])
