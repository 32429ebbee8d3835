"""What is spoilt to probe a policy: observations that are noisy, lost, late, or in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.core.trust.perturbations import intercepted, lost, noisy, shuffled
from mambakit.core.trust.probe import Perturbation, Subject
from mambakit.domains.robotics.episodes import Episode
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.seen import Seen
from mambakit.domains.robotics.policy.training import action_error

NOISE, SHARES, DELAYS, WINDOWS = (0.1, 0.3, 1.0), (0.05, 0.2, 0.5), (1.0, 2.0, 5.0), (2.0, 4.0, 16.0)


def subject(policy: Policy, episodes: Sequence[Episode], about: str) -> Subject:
    """A policy on recorded episodes: how far its actions are off when it sees states spoilt.

    Args:
        policy: That reads a state.
        episodes: Recorded.
        about: What is measured, in a few words.

    Raises:
        UsageError: If it reads none.
    """
    if not policy.config.spaces.state_dim:
        raise UsageError("model: this policy sees pictures alone, and what is spoilt here is a state")
    states = torch.cat([torch.from_numpy(one.state) for one in episodes]).double()
    deviation = states.std(0, correction=0).float()

    def spoil(change: Callable[[Tensor, Tensor, float, torch.Generator], Tensor]) -> Any:
        def spoilt(level: float, generator: torch.Generator) -> Any:
            def see(seen: Seen, seq_idx: Tensor | None = None) -> tuple[Any, ...]:
                assert seen.state is not None
                piece = torch.zeros(seen.began.shape) if seq_idx is None else seq_idx
                return seen.but(state=change(seen.state, piece, level, generator)), seq_idx

            return intercepted(policy, "forward", see)

        return spoilt

    def noise(state: Tensor, piece: Tensor, level: float, generator: torch.Generator) -> Tensor:
        return noisy(state, level * deviation.to(state.device), generator)

    error = "wrong" if policy.embed.action is None else "scaled_mse"

    def measure() -> Mapping[str, float]:
        return action_error(policy, episodes)

    ways = {
        "noise": Perturbation(NOISE, "deviations of each number", spoil(noise)),
        "drop": Perturbation(SHARES, "share of frames", spoil(_drop)),
        "delay": Perturbation(DELAYS, "control steps", spoil(_delay)),
        "shuffle": Perturbation(WINDOWS, "frames in a window", spoil(_shuffle)),
    }
    return Subject(policy, measure, error, "min", ways, about)


def _drop(state: Tensor, piece: Tensor, level: float, generator: torch.Generator) -> Tensor:
    gone = lost(torch.ones_like(piece, dtype=torch.bool), level, generator)
    at = torch.arange(piece.shape[1], device=piece.device).expand(piece.shape)
    last = torch.where(gone & (at > _begin(piece)), 0, at).cummax(1).values
    return state.gather(1, last[..., None].expand(state.shape))


def _delay(state: Tensor, piece: Tensor, level: float, generator: torch.Generator) -> Tensor:
    at = torch.arange(piece.shape[1], device=piece.device).expand(piece.shape)
    late = torch.maximum(at - int(level), _begin(piece))  # until others arrive, the first one is seen
    return state.gather(1, late[..., None].expand(state.shape))


def _shuffle(state: Tensor, piece: Tensor, level: float, generator: torch.Generator) -> Tensor:
    order = torch.arange(piece.shape[1], device=piece.device).expand(piece.shape).clone()
    for number in piece.unique():  # each piece by itself
        order = order.gather(1, shuffled(piece == number, int(level), generator))
    return state.gather(1, order[..., None].expand(state.shape))


def _begin(piece: Tensor) -> Tensor:
    """The place of the first step of the piece that each step is of, like ``piece``."""
    at = torch.arange(piece.shape[1], device=piece.device).expand(piece.shape)
    first = torch.ones_like(piece, dtype=torch.bool)
    first[:, 1:] = piece[:, 1:] != piece[:, :-1]
    return torch.where(first, at, 0).cummax(1).values
