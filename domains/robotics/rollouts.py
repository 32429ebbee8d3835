"""One episode that a policy acts in: kept whole, and filmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.controller import Controller
from mambakit.domains.robotics.deadlines import DeadlineReport
from mambakit.domains.robotics.evaluation import check_spaces
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.video import write_video


@dataclass(frozen=True)
class Acted:
    """An episode."""

    observations: dict[str, NDArray[Any]]
    """``(n, ...)`` by name: what was seen before each action."""
    actions: NDArray[Any]
    """``(n, action_dim)`` or ``(n,)``."""
    rewards: NDArray[np.float64]
    """``(n,)``."""
    success: bool | None
    """Whether the environment ever said so; None where it never speaks of it."""
    target_return: float | None
    """What was asked for."""
    control_hz: float | None
    deadlines: DeadlineReport
    n_frames: int
    """Written to the video."""

    @property
    def total(self) -> float:
        """The return."""
        return float(self.rewards.sum())


class _Episode:
    """Acts step by step, so that frames go to the video as they come."""

    def __init__(self, env: gymnasium.Env[Any, Any], controller: Controller) -> None:
        self.env, self.controller = env, controller
        self.seen: list[dict[str, Any]] = []
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.success: bool | None = None

    def steps(self, shown: dict[str, Any], max_steps: int | None, *, filmed: bool) -> Iterator[Any]:
        reward, done = 0.0, False
        while not done and (max_steps is None or len(self.rewards) < max_steps):
            if filmed:
                yield self.env.render()
            try:
                action = self.controller.step(shown, [reward])
            except DataError as error:
                raise DataError(f"{error} (the environment's, at step {len(self.rewards)})") from error
            self.seen.append(shown)
            self.actions.append(action)
            shown, earned, terminated, truncated, info = self.env.step(action)
            reward, done = float(earned), bool(terminated or truncated)
            self.rewards.append(reward)
            told = info.get("is_success", info.get("success"))
            if told is not None:
                self.success = bool(self.success) or bool(told)
        if filmed:
            yield self.env.render()


def act(
    policy: Policy,
    maker: Callable[[], gymnasium.Env[Any, Any]],
    *,
    seed: int = 0,
    target_return: float | None = None,
    instruction: str | None = None,
    deterministic: bool = True,
    max_steps: int | None = None,
    video: Path | None = None,
    control_hz: float | None = None,
) -> Acted:
    """One episode.

    Args:
        policy: Who acts.
        maker: Makes the environment; with a video, one that renders.
        seed: Of the reset.
        target_return, instruction, deterministic: As in ``evaluation.roll_out``.
        max_steps: Stop after so many.
        video: MP4 file to write.
        control_hz: Control steps a second.

    Raises:
        UsageError: If the environment's spaces are not the policy's, or ``max_steps`` is below 1.
        DataError: If the environment shows NaN; the message names the step.
        UserError: If the video can't be drawn or written.
    """
    if max_steps is not None and max_steps < 1:
        raise UsageError(f"max_steps: expected at least 1, got {max_steps}")
    env = maker()
    try:
        check_spaces(policy.config, env)
        controller = Controller(policy, deterministic=deterministic, seed=seed)
        controller.warm_up()
        shown, info = env.reset(seed=seed)
        controller.reset(target_return=target_return, instruction=info.get("instruction", instruction))
        episode = _Episode(env, controller)
        frames = episode.steps(shown, max_steps, filmed=video is not None)
        n_frames = 0 if video is None else write_video(video, frames, control_hz)
        for _ in frames:  # without a video nothing is drawn, and this is what acts
            pass
    finally:
        env.close()
    told = target_return if target_return is not None else policy.config.target_return
    return Acted(
        observations={name: np.stack([one[name] for one in episode.seen]) for name in episode.seen[0]},
        actions=np.stack(episode.actions),
        rewards=np.array(episode.rewards),
        success=episode.success,
        target_return=told if policy.embed.tells_return else None,
        control_hz=control_hz,
        deadlines=controller.deadlines(),
        n_frames=n_frames,
    )


def write(path: Path, acted: Acted) -> None:
    """An NPZ file of everything, or a CSV file of actions and rewards, by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npz":
        seen: dict[str, Any] = {f"observation_{name}": values for name, values in acted.observations.items()}
        np.savez_compressed(path, actions=acted.actions, rewards=acted.rewards, **seen)
        return
    columns = acted.actions.reshape(len(acted.actions), -1)
    table = pd.DataFrame({f"action_{i}": columns[:, i] for i in range(columns.shape[1])})
    table["reward"] = acted.rewards
    table.to_csv(path, index_label="step")
