"""Augmented random search, V2-t (Mania, Guy & Recht 2018, arXiv:1803.07055, algorithm 2): experts in minutes.

Every iteration tries W + noise d and W - noise d for some directions d and moves W along the best of them:
W += rate / (top deviation) sum_k (r+ - r-) d_k. States are normalised by running moments. Every random number
follows from the seed and the iteration, so a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.episodes import ActionSpace, base_name
from mambakit.domains.robotics.experts.linear import LinearPolicy, RunningMoments

if TYPE_CHECKING:
    import gymnasium

_EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class ArsConfig:
    """How an expert is searched for."""

    learning_rate: float = 0.02
    noise: float = 0.025
    """Standard deviation of the weights' changes that are tried."""
    directions: int = 8
    """Changes tried in an iteration, each forwards and backwards."""
    top: int = 4
    """How many of them, the best, count."""
    alive_bonus: float = 0.0
    """Taken off every step's reward in training: what the environment pays for a step upright, or some less.
    With little taken off standing still may win; with all of it, falling forwards."""
    steps: int = 1_000_000
    """Environment steps in all."""
    evaluate_every: int = 10
    """Iterations between two evaluations; each leaves a checkpoint."""
    evaluation_episodes: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.top <= self.directions:
            raise UsageError(f"top: expected 1 to directions ({self.directions}), got {self.top}")
        for name in ("learning_rate", "noise", "steps", "evaluate_every", "evaluation_episodes"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name}: expected a number above 0, got {getattr(self, name)}")


# Table 9 of the paper, by the environment's id without its version; fewer directions where a few minutes
# on one core would not get far otherwise.
PRESETS: dict[str, ArsConfig] = {
    "Hopper": ArsConfig(learning_rate=0.01, noise=0.025, alive_bonus=1.0, steps=310_000, seed=3),
    # not the paper's: with 0.5 or 0.6 taken off it came to stand still, with 1 it kept falling
    "Walker2d": ArsConfig(
        learning_rate=0.05, noise=0.05, directions=16, top=8, alive_bonus=0.85, steps=1_200_000, seed=1
    ),
    "HalfCheetah": ArsConfig(learning_rate=0.02, noise=0.03, steps=1_500_000, seed=2),
    "Swimmer": ArsConfig(learning_rate=0.02, noise=0.01, directions=1, top=1),
    "Ant": ArsConfig(
        learning_rate=0.015, noise=0.025, directions=20, top=10, alive_bonus=1.0, steps=2_000_000
    ),
    "CartPole": ArsConfig(learning_rate=0.05, noise=0.1, steps=100_000),
}


def preset(environment_id: str) -> ArsConfig:
    """The settings for an environment, the general ones where it has none of its own."""
    return PRESETS.get(base_name(environment_id), ArsConfig())


@dataclass
class Search:
    """A search so far, with every iteration's policy: experts, medium policies and replays come from it."""

    config: ArsConfig
    environment_id: str
    action_space: ActionSpace
    weights: NDArray[np.float64]
    moments: RunningMoments
    steps: int = 0
    history: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=list
    )
    """Weights, mean and deviation at the start of each iteration."""
    steps_at: list[int] = field(default_factory=list)
    """Environment steps before each iteration."""
    evaluated: list[tuple[int, float, float]] = field(default_factory=list)
    """Iteration, mean and standard deviation of the returns (bonus and all) of its policy."""

    @property
    def done(self) -> bool:
        return self.steps >= self.config.steps

    def policy(self, iteration: int) -> LinearPolicy:
        """The policy at the start of an iteration."""
        return LinearPolicy(*self.history[iteration], self.action_space)

    def tried(self, iteration: int, direction: int, sign: int) -> LinearPolicy:
        """One of the changed policies that the iteration tried."""
        weights, mean, deviation = self.history[iteration]
        change = _directions(self.config, iteration, weights.shape)[direction]
        return LinearPolicy(weights + sign * self.config.noise * change, mean, deviation, self.action_space)

    def best(self) -> tuple[int, float]:
        """The iteration whose policy earned most, and how much."""
        iteration, earned, _ = max(self.evaluated, key=lambda row: row[1])
        return iteration, earned

    def nearest(self, earned: float) -> tuple[int, float]:
        """The first iteration up to the best whose policy earned about so much, and how much."""
        last = self.best()[0]
        rows = [row for row in self.evaluated if row[0] <= last]
        iteration, found, _ = min(rows, key=lambda row: (abs(row[1] - earned), row[0]))
        return iteration, found


class Try(NamedTuple):
    """An episode to be rolled out."""

    policy: LinearPolicy
    seed: int
    bonus: float = 0.0
    """Taken off the reward of every step."""


Earned = tuple[float, "NDArray[np.float32]"]


def search(
    env: gymnasium.Env[Any, Any],
    environment_id: str,
    action_space: ActionSpace,
    config: ArsConfig,
    path: Path | None = None,
    tell: Callable[[Search], None] | None = None,
    *,
    save_every_s: float = 20.0,
    roll_out: Callable[[Sequence[Try]], list[Earned]] | None = None,
) -> Search:
    """Searches for a policy, from where the file at ``path`` stands.

    Args:
        env: Made by ``environments.make``: its observations are dictionaries with ``state``.
        path: Where the search is kept (.npz), every ``save_every_s`` and at the end; None: nowhere.
        tell: Called after each evaluation.
        roll_out: Rolls out episodes elsewhere, such as ``Workers``; None: here, one by one.

    Raises:
        UsageError: If there is no state to be linear in, or the file is of another search.
        DataError: If the file can't be read.
    """
    if "state" not in getattr(env.observation_space, "spaces", {}):
        raise UsageError(f"{environment_id}: augmented random search needs a state, there are only pictures")
    found = load_search(path) if path is not None and path.exists() else None
    if found is not None and (found.config, found.environment_id) != (config, environment_id):
        raise UsageError(f"{path} holds another search ({found.environment_id}, {found.config})")
    width = int(env.observation_space["state"].shape[0])  # type: ignore[index]
    outputs = action_space.n if action_space.n is not None else action_space.size
    state = found or Search(
        config, environment_id, action_space, np.zeros((outputs, width)), RunningMoments.nothing(width)
    )
    saved_at = time.monotonic()
    roll_out = roll_out or (lambda tries: [run_episode(env, one.policy.act, *one[1:]) for one in tries])
    while not state.done:
        _iterate(state, roll_out)
        if (len(state.history) - 1) % config.evaluate_every == 0 or state.done:
            _evaluate(state, roll_out)
            if tell is not None:
                tell(state)
        if path is not None and (state.done or time.monotonic() - saved_at >= save_every_s):
            save_search(state, path)
            saved_at = time.monotonic()
    return state


def run_episode(
    env: gymnasium.Env[Any, Any], act: Callable[[NDArray[Any]], Any], seed: int, bonus: float = 0.0
) -> tuple[float, NDArray[np.float32]]:
    """The return of one episode, less ``bonus`` a step, and the states that were acted on, (T, d).

    Raises:
        DataError: If a state or a reward is not finite: one such would spoil the search's moments for good.
    """
    seen, _ = env.reset(seed=seed)
    states, total, ended = [], 0.0, False
    while not ended:
        states.append(seen["state"])
        seen, reward, terminated, truncated, _ = env.step(act(seen["state"]))
        total += float(reward) - bonus
        ended = terminated or truncated
    kept = np.stack(states)
    if not (np.isfinite(total) and np.isfinite(kept).all()):
        named = env.spec.id if env.spec is not None else str(env)
        bad = np.flatnonzero(~np.isfinite(kept).all(axis=1))
        what = f"the state of step {bad[0]}" if len(bad) else "a reward"
        raise DataError(
            f"{named}: {what} is not finite in the episode of seed {seed}: no search can use that"
        )
    return total, kept


def _iterate(state: Search, roll_out: Callable[[Sequence[Try]], list[Earned]]) -> None:
    config, iteration = state.config, len(state.history)
    state.history.append((state.weights.copy(), state.moments.mean.copy(), state.moments.deviation))
    state.steps_at.append(state.steps)
    changes = _directions(config, iteration, state.weights.shape)
    # both signs from the same start: less of the difference is chance
    tries = [
        Try(state.tried(iteration, k, sign), _seed(config.seed, iteration, k), config.alive_bonus)
        for k in range(config.directions)
        for sign in (1, -1)
    ]
    rolled = roll_out(tries)
    for _, states in rolled:
        state.moments.add(states)
        state.steps += len(states)
    earned = np.array([total for total, _ in rolled]).reshape(config.directions, 2)
    best = np.argsort(-earned.max(axis=1), kind="stable")[: config.top]
    deviation = earned[best].std()
    if deviation > 1e-12:
        step = ((earned[best, 0] - earned[best, 1])[:, None, None] * changes[best]).sum(axis=0)
        state.weights = state.weights + config.learning_rate / (config.top * deviation) * step


def _evaluate(state: Search, roll_out: Callable[[Sequence[Try]], list[Earned]]) -> None:
    iteration = len(state.history) - 1
    policy = state.policy(iteration)
    tries = [Try(policy, _EVALUATION_SEED + place) for place in range(state.config.evaluation_episodes)]
    earned = [total for total, _ in roll_out(tries)]
    state.evaluated.append((iteration, float(np.mean(earned)), float(np.std(earned))))


def _directions(config: ArsConfig, iteration: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.random.default_rng((config.seed, iteration)).standard_normal((config.directions, *shape))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def save_search(state: Search, path: Path) -> None:
    """Writes a search; a kill in the midst leaves the former file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "config": dataclasses.asdict(state.config),
        "environment_id": state.environment_id,
        "action_space": dataclasses.asdict(state.action_space),
        "steps": state.steps,
        "count": state.moments.count,
    }
    kept = (
        [np.stack(part) for part in zip(*state.history, strict=True)] if state.history else [np.zeros(0)] * 3
    )
    writing = path.with_name(f".{path.stem}.writing.npz")
    np.savez_compressed(
        writing,
        facts=np.array(json.dumps(facts)),
        weights=state.weights,
        mean=state.moments.mean,
        squares=state.moments.squares,
        steps_at=np.array(state.steps_at, dtype=np.int64),
        evaluated=np.array(state.evaluated, dtype=np.float64).reshape(-1, 3),
        history_weights=kept[0],
        history_mean=kept[1],
        history_deviation=kept[2],
    )
    writing.replace(path)


def load_search(path: Path) -> Search:
    """A search from its file.

    Raises:
        DataError: If it is damaged or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            space = facts["action_space"]
            history = [
                tuple(row)
                for row in zip(
                    *(file[f"history_{name}"] for name in ("weights", "mean", "deviation")), strict=True
                )
            ]
            return Search(
                ArsConfig(**facts["config"]),
                facts["environment_id"],
                ActionSpace(tuple(space["low"]), tuple(space["high"]), space["n"]),
                file["weights"],
                RunningMoments(facts["count"], file["mean"], file["squares"]),
                facts["steps"],
                history,
                file["steps_at"].tolist(),
                [(int(row[0]), float(row[1]), float(row[2])) for row in file["evaluated"]],
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is no search that can be read ({error}); delete it to search again"
        ) from error
