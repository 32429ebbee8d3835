"""One step of learning: the agent's likelihoods move to the prior's, lifted by the rewards.

    loss = mean((log p_prior(s) + sigma R(s) - log p_agent(s))^2)

REINVENT's augmented likelihood (Olivecrona et al. 2017, J. Cheminform. 9, 48). A step learns once from the
sampled batch and some remembered molecules, then ``rounds`` times from the batch and the whole memory, each
time written as other SMILES (Augmented Memory, Guo & Schwaller 2024, JACS Au 4, 2160).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mambakit.core.errors import UserError
from mambakit.core.training import GraphedLoss
from mambakit.domains.molecules.design.agent import Agent, log_likelihoods
from mambakit.domains.molecules.design.config import DesignConfig
from mambakit.domains.molecules.design.memory import Memory, Remembered, rewritings
from mambakit.domains.molecules.tokenizer import PAD

_MOST_GRAPHS = 8  # an update's rows and lengths are of few sizes, see `Agent.batches`

Weighted = list[tuple[list[int], float]]
"""Ids of molecules, and their rewards."""


@contextlib.contextmanager
def _tensor_cores(device: torch.device) -> Iterator[None]:
    """Products of float32 in TF32 on a GPU: what they lose is hundredths of a nat, and rewards are dozens."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class AugmentedLoss(nn.Module):
    """Squared distance of likelihoods from what they should be, summed over the rows and divided.

    Args:
        model: The agent's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, target: Tensor, n: Tensor) -> Tensor:
        """Of ids ``(rows, length)``, wanted nats ``(rows,)`` and the number ``()`` to divide by, a scalar.

        Rows of padding count for nothing.
        """
        there = ids[:, 0] != PAD
        return (target - log_likelihoods(self.model, ids)).square().masked_fill(~there, 0.0).sum() / n


class Learner:
    """The agent, its prior and its optimizer.

    Args:
        agent: Learns in place.
        prior: Stays as it is.
        config: Sizes and rates.
    """

    def __init__(self, agent: Agent, prior: Agent, config: DesignConfig) -> None:
        self.agent, self.prior, self.config = agent, prior, config
        fused = agent.device.type == "cuda"  # one launch
        self._loss = GraphedLoss(AugmentedLoss(agent.model), most=_MOST_GRAPHS)
        self.optimizer = torch.optim.Adam(agent.model.parameters(), lr=config.lr, fused=fused or None)

    def step(
        self,
        batch: Sequence[Remembered],
        sampled: Sequence[list[int]],
        memory: Memory,
        rng: np.random.Generator,
        *,
        invalid: Sequence[list[int]] = (),
        closed: Collection[str] = (),
    ) -> float:
        """Learns from a batch, whose molecules are in the memory already where they belong there.

        Args:
            batch: The valid molecules of the step.
            sampled: Their ids as sampled.
            memory: What is replayed.
            rng: Draws what is replayed and how it is written.
            invalid: Ids of samples that are no molecules, learned from once, with a reward of 0.
            closed: Scaffolds to forget before the memory is replayed.

        Returns:
            The first update's loss.

        Raises:
            UserError: If the loss is not a number.
        """
        rounds = self.config.rounds
        first: Weighted = [(ids, one.reward) for ids, one in zip(sampled, batch, strict=True)]
        first += [(ids, 0.0) for ids in invalid]
        first += self._written([(one, one.text) for one in memory.drawn(self.config.replayed, rng)])
        memory.purge(closed)
        updates = [first]
        replayed = [*batch, *memory.best]
        ways = [rewritings(one.smiles, rounds, rng) for one in replayed]
        for i in range(rounds):
            updates.append(self._written([(one, way[i]) for one, way in zip(replayed, ways, strict=True)]))
        losses, begin = [], 0
        with _tensor_cores(self.agent.device):
            with torch.no_grad():  # the prior of all updates together: fewer and fuller batches
                flat = [ids for update in updates for ids, _ in update]
                prior = self.prior.log_likelihoods(flat)
            for update in updates:
                if update:
                    losses.append(self._update(update, prior[begin : begin + len(update)]))
                begin += len(update)
        if not losses:
            return 0.0
        values = torch.stack(losses).tolist()  # a GPU is waited for once a step
        if not np.isfinite(values).all():
            raise UserError("the loss is no number any more; take a lower lr or sigma (all calls are kept)")
        return float(values[0])

    def _written(self, molecules: Sequence[tuple[Remembered, str]]) -> Weighted:
        """Molecules as ids; as they were sampled where another way needs tokens that there are not."""
        made = []
        for one, text in molecules:
            ids = self.agent.encode(text) or self.agent.encode(one.text)
            if ids is not None:
                made.append((ids, one.reward))
        return made

    def _update(self, update: Weighted, prior: torch.Tensor) -> torch.Tensor:
        device = self.agent.device
        rewards = torch.tensor([reward for _, reward in update], device=device)
        target = prior + self.config.sigma * rewards
        n, total = torch.tensor(float(len(update)), device=device), torch.zeros((), device=device)
        self.optimizer.zero_grad(set_to_none=True)
        for places, ids in self.agent.batches([ids for ids, _ in update]):
            wanted = target.new_zeros(len(ids))
            wanted[: len(places)] = target[torch.tensor(places).to(device)]
            loss = self._loss(ids, wanted, n)
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        return total
