"""Films and files of episodes: of behaviours in an environment, and of data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.behaviours import Behaviour, Cast
from mambakit.domains.robotics.collection import CollectConfig, run
from mambakit.domains.robotics.environments import make, record_of
from mambakit.domains.robotics.episodes import Episode, Episodes
from mambakit.domains.robotics.folder_files import write_episode
from mambakit.domains.robotics.video import write_video
from mambakit.domains.robotics.wrappers import WrapperConfig

Quality = Literal["fast", "full"]
Rows = list[dict[str, object]]


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps a picture of every state."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.frames: list[NDArray[np.uint8]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        seen = self.env.reset(seed=seed, options=options)
        self.frames = [np.array(self.env.render(), dtype=np.uint8)]
        return seen

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        found = self.env.step(action)
        self.frames.append(np.array(self.env.render(), dtype=np.uint8))
        return found


def record_behaviour(
    config: CollectConfig,
    cast: Cast,
    video: Path | None,
    trajectories: Path | None,
    *,
    size: int = 256,
    quality: Quality = "fast",
) -> tuple[Rows, int]:
    """Episodes of a level, filmed, kept, or both.

    Returns:
        A row an episode, and the frames in the film.
    """
    env = make(
        config.environment_id,
        render_size=size if video else None,
        render_quality=quality,
        image_size=config.image_size,
        wrappers=config.wrappers,
        kwargs=config.kwargs,
    )
    behaviours = [
        cast.behaviour(config.level, place, config.episodes, config.noise) for place in range(config.episodes)
    ]
    seeds = [config.seed + place for place in range(config.episodes)]
    hz = record_of(env, config.environment_id).control_hz
    return _recorded(env, behaviours, seeds, video, trajectories, hz)


def record_data(
    episodes: Episodes,
    count: int,
    video: Path | None,
    trajectories: Path | None,
    *,
    size: int = 256,
    quality: Quality = "fast",
) -> tuple[Rows, int, list[str]]:
    """The first episodes of a data set: its own pictures where it has any, else acted again from their seeds.

    Returns:
        A row an episode, the frames in the film, and notes: where acting again went otherwise.

    Raises:
        UsageError: If there are neither pictures nor an environment and seeds to make them with.
    """
    chosen, environment = episodes.episodes[:count], episodes.environment
    hz = environment.control_hz if environment is not None else None
    if episodes.image_size is not None or video is None:
        frames = 0
        if video is not None:
            frames = write_video(video, _pictures(chosen, size), hz)
        _keep(trajectories, chosen)
        return [_row(place, episode) for place, episode in enumerate(chosen)], frames, []
    if environment is None or any(episode.seed is None for episode in chosen):
        raise UsageError(
            f"data: {episodes.name} has no pictures, and lacks the environment or the seeds to act again with"
        )
    env = make(
        environment.id,
        render_size=size,
        render_quality=quality,
        wrappers=WrapperConfig(**environment.wrappers),
        kwargs=environment.kwargs,
    )
    again = [Behaviour(episode.behaviour or "data", _Again(episode)) for episode in chosen]
    rows, frames = _recorded(env, again, [episode.seed or 0 for episode in chosen], video, None, hz)
    _keep(trajectories, chosen)
    notes = [
        f"episode {place} earned {episode.total:.1f} when it was recorded and {row['return']:.1f} here"
        for place, (episode, row) in enumerate(zip(chosen, rows, strict=True))
        if not np.isclose(episode.total, float(str(row["return"])), rtol=1e-3, atol=1e-3)
    ]
    return rows, frames, notes


class _Again:
    """The recorded actions in their order; zeros once they are over."""

    def __init__(self, episode: Episode) -> None:
        self._actions, self._place = episode.actions, 0

    def __call__(self, state: NDArray[Any], rng: np.random.Generator) -> Any:
        if self._place >= len(self._actions):
            return np.zeros_like(self._actions[-1])
        self._place += 1
        action = self._actions[self._place - 1]
        return int(action) if self._actions.ndim == 1 else action


def _recorded(
    env: gymnasium.Env[Any, Any],
    behaviours: list[Behaviour],
    seeds: list[int],
    video: Path | None,
    trajectories: Path | None,
    hz: float | None,
) -> tuple[Rows, int]:
    rows: Rows = []
    filmed = _Filmed(env) if video is not None else None

    def frames() -> Iterator[NDArray[np.uint8]]:
        for place, (behaviour, seed) in enumerate(zip(behaviours, seeds, strict=True)):
            episode = run(filmed or env, behaviour, seed)
            rows.append(_row(place, episode))
            if trajectories is not None:
                trajectories.mkdir(parents=True, exist_ok=True)
                write_episode(trajectories / f"episode-{place:06d}.npz", episode)
            if filmed is not None:
                yield from filmed.frames

    try:
        count = write_video(video, frames(), hz) if video is not None else sum(1 for _ in frames())
    finally:
        env.close()
    return rows, count


def _pictures(episodes: list[Episode], size: int) -> Iterator[NDArray[np.uint8]]:
    """Small pictures are shown larger, by whole pixels."""
    for episode in episodes:
        assert episode.image is not None
        times = max(1, size // max(episode.image.shape[1:3]))
        for picture in episode.image:
            yield picture.repeat(times, axis=0).repeat(times, axis=1)


def _keep(folder: Path | None, episodes: list[Episode]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for place, episode in enumerate(episodes):
        write_episode(folder / f"episode-{place:06d}.npz", episode)


def _row(place: int, episode: Episode) -> dict[str, object]:
    return {
        "episode": place,
        "behaviour": episode.behaviour or "-",
        "steps": len(episode),
        "return": episode.total,
        "end": "terminated" if episode.terminated else "truncated",
        **({} if episode.success is None else {"success": episode.success}),
    }
