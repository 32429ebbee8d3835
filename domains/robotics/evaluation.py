"""Policies measured in their environment: many seeds at once, last and best weights apart."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.robotics.actions import action_space_of
from mambakit.domains.robotics.controller import Controller
from mambakit.domains.robotics.deadlines import DeadlineReport
from mambakit.domains.robotics.metrics import bootstrap_interval, interquartile_mean, normalised_score
from mambakit.domains.robotics.policy.config import SavedPolicyConfig
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.scores import reference_of, score_label

FIRST_VALIDATION_SEED = 1_000_000
"""Seeds of the episodes that choose a target return count up from here, far from any that is measured."""

Maker = Callable[[], gymnasium.Env[Any, Any]]


@dataclass(frozen=True)
class Rollouts:
    """Episodes that a policy acted in, by seed."""

    seeds: list[int]
    returns: NDArray[np.float64]
    """``(n,)``."""
    lengths: NDArray[np.int64]
    """``(n,)`` steps."""
    successes: NDArray[np.bool_] | None
    """``(n,)``, where the environment says ``is_success`` or ``success``."""
    deadlines: DeadlineReport
    """Of the controller's steps."""


def roll_out(
    policy: Policy,
    maker: Maker,
    seeds: Sequence[int],
    *,
    n_envs: int = 8,
    target_return: float | Sequence[float] | None = None,
    instruction: str | None = None,
    deterministic: bool = True,
) -> Rollouts:
    """One episode for each seed, ``n_envs`` of them at once; a robot that is done takes the next seed.

    Args:
        policy: Who acts.
        maker: Makes an environment with named observations.
        seeds: What each episode's reset is given.
        n_envs: Robots at once.
        target_return: For a policy that is told it; one for all episodes, or one for each.
        instruction: For a policy that is told one; an environment that says its own (``instruction`` in what
            ``reset`` tells) goes before it.
        deterministic: Act without chance.

    Raises:
        UsageError: If the environment's spaces are not the policy's, there are more or fewer target
            returns than episodes, or ``n_envs`` is below 1.
        DataError: If the environment shows NaN; the message names the seed and the step.
    """
    targets: list[float | None] = (
        list(target_return) if isinstance(target_return, Sequence) else [target_return] * len(seeds)
    )
    if len(targets) != len(seeds):
        raise UsageError(
            f"target_return: expected one, or one for each of {len(seeds)} episodes, got {len(targets)}"
        )
    if n_envs < 1:
        raise UsageError(f"n_envs: expected at least 1, got {n_envs}")
    n_envs = max(1, min(n_envs, len(seeds)))
    envs = [maker() for _ in range(n_envs)]
    try:
        check_spaces(policy.config, envs[0])
        controller = Controller(policy, n_envs, deterministic=deterministic)
        controller.warm_up()
        run = _Run(envs, controller, list(seeds), targets, instruction)
        return run.all_episodes()
    finally:
        for env in envs:
            env.close()


class _Run:
    """Environments in step, each with a seed of its own until there is none left."""

    def __init__(
        self,
        envs: list[gymnasium.Env[Any, Any]],
        controller: Controller,
        seeds: list[int],
        targets: Sequence[float | None],
        instruction: str | None,
    ) -> None:
        self.envs, self.controller, self.seeds = envs, controller, seeds
        self.targets, self.instruction = targets, instruction
        self.returns = np.zeros(len(seeds))
        self.lengths = np.zeros(len(seeds), dtype=np.int64)
        self.successes: list[bool | None] = [None] * len(seeds)
        self.following = 0
        self.episode: list[int | None] = [None] * len(envs)
        self.shown: list[Mapping[str, Any]] = [{}] * len(envs)

    def all_episodes(self) -> Rollouts:
        rewards = np.zeros(len(self.envs))
        for place in range(len(self.envs)):
            self._begin(place)
        while any(episode is not None for episode in self.episode):
            actions = self._actions(rewards)
            for place, episode in enumerate(self.episode):
                if episode is None:
                    continue
                shown, reward, terminated, truncated, info = self.envs[place].step(actions[place])
                self.shown[place] = shown
                rewards[place] = float(reward)
                self.returns[episode] += rewards[place]
                self.lengths[episode] += 1
                told = info.get("is_success", info.get("success"))
                if told is not None:
                    self.successes[episode] = bool(self.successes[episode]) or bool(told)
                if terminated or truncated:
                    self._begin(place)
        successes = None
        if any(one is not None for one in self.successes):
            successes = np.array([bool(one) for one in self.successes])
        return Rollouts(self.seeds, self.returns, self.lengths, successes, self.controller.deadlines())

    def _begin(self, place: int) -> None:
        if self.following == len(self.seeds):
            self.episode[place] = None
            # its robot is still told something, and the last of an episode may be NaN
            self.shown[place] = {name: np.zeros_like(value) for name, value in self.shown[place].items()}
            return
        self.episode[place] = self.following
        target = self.targets[self.following]
        self.shown[place], info = self.envs[place].reset(seed=self.seeds[self.following])
        self.following += 1
        self.controller.reset(
            [place],
            target_return=target,
            instruction=info.get("instruction", self.instruction),
        )

    def _actions(self, rewards: NDArray[np.float64]) -> NDArray[Any]:
        observations = {name: np.stack([one[name] for one in self.shown]) for name in self.shown[0]}
        try:
            return self.controller.step(observations, rewards)
        except DataError as error:
            places = [i for i, episode in enumerate(self.episode) if episode is not None]
            said = ", ".join(
                f"seed {self.seeds[self.episode[i]]} step {self.lengths[self.episode[i]]}"  # type: ignore[index]
                for i in places[:3]
            )
            raise DataError(f"{error} (the environment's observation; running: {said})") from error


def check_spaces(config: SavedPolicyConfig, env: gymnasium.Env[Any, Any]) -> None:
    """Refuse an environment that the policy was not made for.

    Raises:
        UsageError: If actions are of another kind or number, or observations are missing or of another shape.
    """
    spaces, name = config.spaces, env.spec.id if env.spec is not None else "the environment"
    actions = action_space_of(env.action_space)
    theirs, ours = actions.n or 0, spaces.n_actions
    if theirs != ours or (not ours and actions.size != spaces.action_dim):
        of_policy = f"{ours} choices" if ours else f"{spaces.action_dim} numbers"
        raise UsageError(
            f"env: {name} takes actions of {actions}, the policy gives {of_policy} "
            f"(it was trained on {config.trained_on})"
        )
    shown: Mapping[str, Any] = env.observation_space.spaces  # type: ignore[attr-defined]
    wanted: dict[str, tuple[int, ...]] = {}
    if spaces.state_dim:
        wanted["state"] = (spaces.state_dim,)
    if spaces.image is not None:
        wanted["image"] = (*spaces.image, 3)
    if "goal" in config.conditions:
        wanted["goal"] = (spaces.goal_dim,)
    for part, shape in wanted.items():
        if part not in shown:
            raise UsageError(
                f"env: {name} shows no {part}, which the policy reads; it shows {', '.join(shown)}"
            )
        if shown[part].shape != shape:
            raise UsageError(
                f"env: {name} shows a {part} of shape {shown[part].shape}, the policy reads {shape} "
                f"(it was trained on {config.trained_on})"
            )


def candidate_targets(config: SavedPolicyConfig) -> list[float]:
    """Returns to try asking for: what the data came to on average and at best, and more."""
    mean, best = config.mean_return, config.best_return
    if mean is None or best is None:
        return [config.target_return or 0.0]
    found = [mean, (mean + best) / 2, config.target_return or best, best, best + 0.25 * abs(best)]
    return sorted({float(f"{one:.6g}") for one in found})


@dataclass(frozen=True)
class ChosenTarget:
    """A target return, and how it was chosen."""

    value: float | None
    tried: list[dict[str, float]] = field(default_factory=list)
    """``target_return`` and the mean ``return`` on the validation seeds."""


def choose_target(
    policy: Policy,
    maker: Maker,
    *,
    n_seeds: int = 5,
    n_envs: int = 8,
    instruction: str | None = None,
    candidates: Sequence[float] | None = None,
) -> ChosenTarget:
    """The target whose mean return is highest on validation seeds, apart from those that are measured.

    All targets are tried at once.

    Raises:
        UsageError: On fewer than one seed.
    """
    if not policy.embed.tells_return:
        return ChosenTarget(None)
    if n_seeds < 1:
        raise UsageError(
            f"validation_seeds: a target return is chosen on at least 1, got {n_seeds}; "
            "or name one with --target-return"
        )
    seeds = list(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + n_seeds))
    targets = list(candidates or candidate_targets(policy.config))
    found = roll_out(
        policy,
        maker,
        seeds * len(targets),
        n_envs=n_envs,
        target_return=[target for target in targets for _ in seeds],
        instruction=instruction,
    )
    tried = []
    for target, returns in zip(targets, found.returns.reshape(len(targets), -1), strict=True):
        tried.append({"target_return": target, "return": float(returns.mean())})
        print(f"target return {target:.6g}: {tried[-1]['return']:.1f} on validation seeds", file=sys.stderr)
    return ChosenTarget(max(tried, key=lambda one: one["return"])["target_return"], tried)


@dataclass(frozen=True)
class Measured:
    """One policy's episodes, summed up."""

    weights: str
    """``best`` (on validation episodes) or ``last``."""
    target: ChosenTarget
    rollouts: Rollouts
    row: dict[str, Any]
    """For tables: mean, interquartile mean with its interval, score, success."""


def measure(
    policies: Mapping[str, Policy],
    maker: Maker,
    environment_id: str,
    seeds: Sequence[int],
    *,
    run: str = "",
    n_envs: int = 8,
    target_return: float | None = None,
    validation_seeds: int = 5,
    instruction: str | None = None,
    deterministic: bool = True,
) -> list[Measured]:
    """Measures each of a run's policies on the same seeds.

    Args:
        policies: By which weights they have.
        maker: Makes an environment.
        environment_id: For the references of scores.
        seeds: Of the episodes that are measured.
        run: Name of the run, for tables.
        n_envs: Robots at once.
        target_return: For policies that are told it; by default chosen for each on validation seeds.
        validation_seeds: How many of those.
        instruction: For policies that are told one.
        deterministic: Act without chance.

    Raises:
        UsageError: On too few seeds or ones that overlap with the validation's, or as ``roll_out``.
    """
    if not seeds:
        raise UsageError("episodes: expected at least 1, got 0")
    if any(FIRST_VALIDATION_SEED <= one < FIRST_VALIDATION_SEED + validation_seeds for one in seeds):
        raise UsageError(f"seed: {FIRST_VALIDATION_SEED} and on choose the target return; choose another")
    found = []
    for weights, policy in policies.items():
        if target_return is not None or not policy.embed.tells_return:
            chosen = ChosenTarget(target_return if policy.embed.tells_return else None)
        else:
            chosen = choose_target(
                policy, maker, n_seeds=validation_seeds, n_envs=n_envs, instruction=instruction
            )
        rollouts = roll_out(
            policy,
            maker,
            seeds,
            n_envs=n_envs,
            target_return=chosen.value,
            instruction=instruction,
            deterministic=deterministic,
        )
        name: dict[str, Any] = {"run": run, "policy": policy.config.policy.kind, "weights": weights}
        name |= {"target_return": chosen.value}
        row = {**name, **summary([rollouts], environment_id)}
        found.append(Measured(weights, chosen, rollouts, row))
    return found


def summary(runs: Sequence[Rollouts], environment_id: str) -> dict[str, Any]:
    """Mean, deviation, interquartile mean with a 95% bootstrap interval, score and success.

    Of several runs the deviation is that of their means, and the interval draws episodes within each.
    """
    each = [one.returns for one in runs]
    returns = np.concatenate(each)
    low, high = bootstrap_interval(each)
    row: dict[str, Any] = {
        "episodes": len(returns),
        "mean": float(returns.mean()),
        "deviation": float(returns.std() if len(each) == 1 else np.std([one.mean() for one in each])),
        "iqm": interquartile_mean(returns),
        "iqm_low": low,
        "iqm_high": high,
        "length": float(np.concatenate([one.lengths for one in runs]).mean()),
    }
    reference = reference_of(environment_id)
    if reference is not None:
        scores = normalised_score(returns, reference.random, reference.expert)
        row |= {"score": float(scores.mean()), "score_is": score_label(environment_id)}
    successes = [one.successes for one in runs if one.successes is not None]
    if successes:
        row["success"] = float(np.concatenate(successes).mean())
    return row


def pooled(measured: Sequence[Measured], environment_id: str) -> list[dict[str, Any]]:
    """A row for each kind of policy and weights that several runs were measured of."""
    groups: dict[tuple[str, str], list[Rollouts]] = {}
    for one in measured:
        groups.setdefault((one.row["policy"], one.weights), []).append(one.rollouts)
    return [
        {"runs": len(runs), "policy": policy, "weights": weights, **summary(runs, environment_id)}
        for (policy, weights), runs in groups.items()
        if len(runs) > 1
    ]


def as_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Everything that was measured, for machines."""
    return [
        {
            **one.row,
            "targets_tried": one.target.tried,
            "returns": one.rollouts.returns.tolist(),
            "lengths": one.rollouts.lengths.tolist(),
            "seeds": list(one.rollouts.seeds),
            "step": dataclasses.asdict(one.rollouts.deadlines),
        }
        for one in measured
    ]
