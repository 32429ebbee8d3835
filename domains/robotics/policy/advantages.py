"""How much better than usual each recorded action was: implicit Q-learning (Kostrikov et al. 2022).

arXiv:2110.06169: V(s) is an expectile of Q(s, a) over recorded actions (eq. 5), Q is regressed on
r + discount V(s') (eq. 6), and a policy imitates with weights exp(beta (Q - V)) (eq. 7). Neither asks for an
action that was not recorded, nor for the policy: so the weights are worked out once, before it is trained,
and serve any policy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mambakit.core.errors import UsageError
from mambakit.domains.robotics.episodes import Episode
from mambakit.domains.robotics.policy.model import Policy

_MOST_WEIGHT = 100.0
_REWARD_RANGE = 1000.0


@dataclass(frozen=True)
class CriticConfig:
    """How the two value functions are learned; the defaults are the paper's for locomotion."""

    steps: int = 3000
    """Optimizer steps; the paper takes a million, most of it for a policy that is trained alongside."""
    batch_size: int = 256
    """Transitions a step."""
    width: int = 256
    """Of two hidden layers."""
    lr: float = 1e-3
    discount: float = 0.99
    expectile: float = 0.7
    smoothing: float = 0.01
    """Share by which the slow copy of Q follows at every step."""


class _Transitions(NamedTuple):
    state: Tensor
    action: Tensor
    reward: Tensor
    following: Tensor
    goes_on: Tensor
    """0 where the task ended, 1 else."""

    def to(self, device: torch.device | str) -> _Transitions:
        return _Transitions(*(part.to(device) for part in self))


class Critics:
    """Q (the lesser of two) and V, learned from recorded transitions.

    Args:
        policy: Whose scales are used.
        episodes: To learn from.
        seed: Of weights and batches.
        config: See there.
        device: Where they are learned and asked; the policy stays where it is.

    Raises:
        UsageError: If the data have no states, every episode earns the same, or nothing says what was seen
            after an action.
    """

    def __init__(
        self,
        policy: Policy,
        episodes: Sequence[Episode],
        seed: int = 0,
        config: CriticConfig | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        config = config or CriticConfig()
        if policy.embed.state is None:
            raise UsageError("advantage: values are learned of states, and the data have pictures alone")
        totals = [one.total for one in episodes]
        if max(totals) == min(totals):
            raise UsageError(
                "advantage: every episode earns the same, so that no action is better than usual"
            )
        self.policy, self.config, self.device = policy, config, device
        # as the paper scales rewards: by the range of the returns
        self._scale = _REWARD_RANGE / (max(totals) - min(totals))
        data = _joined([self._transitions(one) for one in episodes])
        if not len(data.state):
            raise UsageError(
                "advantage: values are learned from what was seen after an action, and the data do not say it"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._learn(data)

    def _learn(self, data: _Transitions) -> None:
        config = self.config
        n_state, n_action = data.state.shape[1], data.action.shape[1]
        self.v = _mlp(n_state, config.width)
        self.q = nn.ModuleList(_mlp(n_state + n_action, config.width) for _ in range(2))
        self.slow = nn.ModuleList(_mlp(n_state + n_action, config.width) for _ in range(2))
        self.slow.load_state_dict(self.q.state_dict())
        data = data.to(self.device)
        for net in (self.v, self.q, self.slow):
            net.to(self.device)
        optimizer = torch.optim.Adam([*self.v.parameters(), *self.q.parameters()], lr=config.lr)
        for step in range(config.steps):
            one = _drawn(data, config.batch_size)
            both = torch.cat([one.state, one.action], dim=1)
            with torch.no_grad():
                q = torch.minimum(*(net(both).squeeze(1) for net in self.slow))
                target = one.reward + config.discount * one.goes_on * self.v(one.following).squeeze(1)
            off = q - self.v(one.state).squeeze(1)
            loss = (torch.where(off > 0, config.expectile, 1 - config.expectile) * off.square()).mean()
            loss = loss + sum(F.mse_loss(net(both).squeeze(1), target) for net in self.q)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.q.parameters(), strict=True):
                    slow.lerp_(fast, config.smoothing)
            if (step + 1) % 1000 == 0:
                print(
                    f"values: step {step + 1} of {config.steps}, loss {float(loss.detach()):.4g}",
                    file=sys.stderr,
                )

    @torch.no_grad()
    def advantages(self, episode: Episode) -> NDArray[np.float32]:
        """Q - V of each step, ``(n,)``, in scaled rewards."""
        steps = self._transitions(episode, whole=True).to(self.device)
        both = torch.cat([steps.state, steps.action], dim=1)
        q = torch.minimum(*(net(both).squeeze(1) for net in self.slow))
        return (q - self.v(steps.state).squeeze(1)).cpu().numpy()

    def weights(self, episodes: Sequence[Episode], beta: float) -> list[NDArray[np.float32]]:
        """exp(beta advantage) of each step, 100 at most, over all scaled to mean 1."""
        exponents = [beta * self.advantages(one) for one in episodes]
        # where every action was far worse than usual, all weights would be zero: the best counts 1 then
        shift = min(max(float(one.max()) for one in exponents), 0.0)
        found = [np.minimum(np.exp(np.minimum(one - shift, 20.0)), _MOST_WEIGHT) for one in exponents]
        mean = float(np.concatenate(found).mean())
        return [(one / mean).astype(np.float32) for one in found]

    def _transitions(self, episode: Episode, *, whole: bool = False) -> _Transitions:
        """Of an episode; without the last one if nothing says what was seen after it."""
        embed = self.policy.embed
        assert embed.state is not None
        n = len(episode)
        seen = embed.state(torch.from_numpy(episode.observations["state"]))
        if embed.goal is not None:
            seen = torch.cat([seen, embed.goal(torch.from_numpy(episode.observations["goal"]))], dim=1)
        actions = torch.from_numpy(episode.actions)
        done = F.one_hot(actions, embed.width).float() if embed.action is None else embed.action(actions)
        goes_on = torch.ones(n)
        goes_on[-1] = 0.0 if episode.terminated else 1.0
        if len(seen) == n:  # nothing was seen after the last action
            seen = torch.cat([seen, seen[-1:]])
            if not episode.terminated and not whole:
                n -= 1
        rewards = torch.from_numpy(np.asarray(episode.rewards, np.float32) * np.float32(self._scale))
        return _Transitions(seen[:n], done[:n], rewards[:n], seen[1 : n + 1], goes_on[:n])


def _joined(parts: Sequence[_Transitions]) -> _Transitions:
    return _Transitions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _drawn(data: _Transitions, n: int) -> _Transitions:
    chosen = torch.randint(len(data.state), (n,)).to(data.state.device)
    return _Transitions(*(part[chosen] for part in data))


def _mlp(n_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    )
