"""From episodes to a trained policy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, load_weights, seed_everything
from mambakit.core.training.devices import loading_processes, resolve_device
from mambakit.domains.robotics.episodes import Episode, Episodes, split_episodes
from mambakit.domains.robotics.policy.advantages import Critics
from mambakit.domains.robotics.policy.config import PolicyConfig, SavedPolicyConfig, Spaces
from mambakit.domains.robotics.policy.data import measuring_loader, training_loader
from mambakit.domains.robotics.policy.model import Policy

LAST = "last"
"""Folder, inside a run's, of the policy with the last weights; the run's own has the best."""


@dataclass(frozen=True)
class EpisodeParts:
    """The episodes of a split."""

    train: list[Episode]
    validation: list[Episode]
    test: list[Episode]


def read_parts(episodes: Episodes, *, seed: int) -> EpisodeParts:
    """A tenth of the episodes each to choose by and to test on, the rest to learn from; by ``seed``.

    Raises:
        DataError: If there are fewer than three.
    """
    if len(episodes) < 3:
        raise DataError(
            f"{episodes.name}: {len(episodes)} usable episodes; to learn, choose and test takes three or more"
        )
    split = split_episodes(episodes, seed=seed)
    return EpisodeParts(
        *([episodes.episodes[i] for i in part] for part in (split.train, split.validation, split.test))
    )


def spaces_of(episodes: Episodes) -> Spaces:
    """What a policy for these episodes reads and gives.

    Raises:
        DataError: If there is none.
    """
    if not episodes.episodes:
        raise DataError(f"{episodes.name}: no usable episode")
    first, actions = episodes.episodes[0], episodes.action_space
    instructions = sorted({one.instruction for one in episodes.episodes if one.instruction})
    bounded = episodes.environment is not None and bool(np.isfinite([*actions.low, *actions.high]).all())
    size = episodes.image_size
    return Spaces(
        state_dim=first.state.shape[1] if "state" in first.observations else 0,
        action_dim=0 if actions.n is not None else first.actions.shape[1],
        n_actions=actions.n or 0,
        low=list(actions.low) if bounded and actions.n is None else None,
        high=list(actions.high) if bounded and actions.n is None else None,
        image=None if size is None else list(size),
        goal_dim=first.goal.shape[1] if first.goal is not None else 0,
        instructions=instructions,
    )


def build_policy(episodes: Episodes, train: Sequence[Episode], config: PolicyConfig) -> Policy:
    """A policy with random weights, its scales fitted to the training episodes."""
    totals = np.array([one.total for one in train])
    environment = {} if episodes.environment is None else dataclasses.asdict(episodes.environment)
    policy = Policy(
        SavedPolicyConfig(
            policy=config,
            spaces=spaces_of(episodes),
            trained_on=episodes.name,
            environment=environment,
            best_return=float(totals.max()),
            mean_return=float(totals.mean()),
            target_return=float(np.quantile(totals, 0.95)),
        )
    )
    policy.embed.fit(train)
    return policy


def train_policy(
    episodes: Episodes, parts: EpisodeParts, run: RunFolder, config: PolicyConfig, train: TrainConfig
) -> tuple[Policy, FitResult]:
    """Trains, and saves the policy with the weights that were best on validation, and with the last ones.

    Args:
        episodes: All of them.
        parts: Their split.
        run: Where the run is kept; one that was killed goes on.
        config: The network.
        train: The training options.

    Returns:
        The policy with the best weights in evaluation mode on the CPU, and how training went.
    """
    from mambakit.domains.robotics.policy.task import PolicyTask

    seed_everything(train.seed)
    policy = build_policy(episodes, parts.train, config)
    device = resolve_device(train.device)
    weights, validation_weights = None, None
    if config.beta and run.result is None:
        critics = Critics(policy, parts.train, train.seed, device=device)
        weights, validation_weights = (
            critics.weights(part, config.beta) for part in (parts.train, parts.validation)
        )
    n_workers = loading_processes(train.num_workers, device)
    loader = training_loader(parts.train, policy, train.batch_size, n_workers, weights)
    validation = measuring_loader(parts.validation, policy, weights=validation_weights)
    task = PolicyTask(policy, train)
    untrained = copy.deepcopy(task)
    result = fit(task, loader, validation, train, run, monitor=chosen_by(policy.config))
    policy = policy.cpu().eval()
    run.save(policy)
    if run.last_checkpoint is not None:
        last = untrained.cpu()
        load_weights(last, run.last_checkpoint, train.adapt)
        run.save(last.model, LAST, of_result=False)
    return policy, result


def chosen_by(config: SavedPolicyConfig) -> str:
    """The metric whose least value says which weights are best.

    A Gaussian policy acts by its means, and these go on getting better where its deviations are too small
    already; the others are judged by their loss.
    """
    return "val/action_error" if config.head == "gaussian" and not config.policy.beta else "val/loss"


def policies_in(folder: Path) -> dict[str, Policy]:
    """The policies of a run by which weights they have: ``best``, and ``last`` where it was kept."""
    found = {"best": Policy.from_pretrained(folder)}
    if (folder / LAST).is_dir():
        found["last"] = Policy.from_pretrained(folder / LAST)
    return found


def check_episodes(config: SavedPolicyConfig, episodes: Episodes) -> None:
    """Refuse episodes that the policy can't be told of, or whose actions are not of its kind.

    Raises:
        UsageError: Which of both are wanted, and what there is.
    """
    ours, theirs = config.spaces, spaces_of(episodes)
    wanted: list[tuple[str, object, object]] = [
        ("numbered actions", ours.n_actions, theirs.n_actions),
        ("numbers of an action", ours.action_dim, theirs.action_dim),
    ]
    if ours.state_dim:
        wanted.append(("numbers of a state", ours.state_dim, theirs.state_dim))
    if ours.image is not None:
        wanted.append(("pictures of", ours.image, theirs.image))
    if "goal" in config.conditions:
        wanted.append(("numbers of a goal", ours.goal_dim, theirs.goal_dim))
    for what, own, found in wanted:
        # where no environment is known, there may be fewer choices in a part of the data than in all
        fewer = what == "numbered actions" and episodes.environment is None and theirs.n_actions > 0
        if own != found and not (fewer and theirs.n_actions <= ours.n_actions):
            raise UsageError(
                f"data: {episodes.name} has {what}: {found or 'none'}; the policy was trained on "
                f"{config.trained_on}, with {own or 'none'}"
            )


@torch.no_grad()
def action_error(policy: Policy, episodes: Sequence[Episode]) -> dict[str, float]:
    """How far the policy's actions are from recorded ones, told what was seen then.

    ``mse`` in the actions' own units, ``scaled_mse`` in deviations of the training data's (1 is as good as
    their mean); of numbered actions ``wrong``, the share that differs.
    """
    device = next(policy.parameters()).device
    errors = []
    for batch in measuring_loader(episodes, policy):
        here = batch.map(lambda tensor: tensor.to(device))
        found = policy.actions(here.seen, here.seq_idx)
        errors.append((found - here.target[:, :, 0])[here.real].cpu().double())
    off = torch.cat(errors)
    if policy.embed.action is None:
        return {"wrong": float((off != 0).double().mean())}
    deviation = policy.embed.action.deviation.cpu().double()
    return {"mse": float(off.square().mean()), "scaled_mse": float((off / deviation).square().mean())}
