"""Training: each member on its own batches of randomised SMILES; blank labels are left out of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mambakit.core.adapters.vocabulary import N_SPECIAL, UNK_ID
from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.heads import fill_missing, masked_mean
from mambakit.core.training import GraphedLoss, MemberTraining, TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.molecules.config import LossConfig
from mambakit.domains.molecules.graph import GraphBatch
from mambakit.domains.molecules.inputs import MoleculeInputs
from mambakit.domains.molecules.model import Batch, Network, PropertyModel, combined

# Batches that are sorted together: the more, the less padding, and the less chance in who is with whom.
_STRETCH = 8
_LENGTH_MULTIPLE = 32


class MemberBatches(Sampler[list[tuple[int, ...]]]):
    """Places of molecules in batches for every member at once, each member in an order of its own.

    Molecules of a batch are of like length, so that little of it is padding: the order is cut into stretches
    of some batches, and each stretch is sorted.

    Args:
        lengths: Tokens of each molecule about, ``(n,)``.
        members: How many.
        batch_size: Molecules of a batch.
    """

    def __init__(self, lengths: Sequence[int], members: int, batch_size: int) -> None:
        self.lengths = torch.tensor(list(lengths), dtype=torch.int64)
        self.members, self.batch_size = members, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """Of each batch the places by member; the last is smaller where the batches don't come out even."""
        orders = [self._order() for _ in range(self.members)]
        for batches in zip(*orders, strict=True):
            yield list(zip(*(one.tolist() for one in batches), strict=True))

    def _order(self) -> list[Tensor]:
        batches: list[Tensor] = []
        for stretch in torch.randperm(len(self.lengths)).split(_STRETCH * self.batch_size):
            batches += stretch[self.lengths[stretch].argsort()].split(self.batch_size)
        whole = [one for one in batches if len(one) == self.batch_size]
        rest = [one for one in batches if len(one) < self.batch_size]
        return [whole[i] for i in torch.randperm(len(whole))] + rest

    def loader(self) -> DataLoader[Tensor]:
        """Batches ``(batch, members)`` of places."""
        return DataLoader(_Places(), batch_sampler=self)


class _Places(Dataset[Tensor]):
    """The places themselves: molecules are written and cut where they are trained on."""

    def __getitem__(self, places: tuple[int, ...]) -> Tensor:
        return torch.tensor(places)


class MemberLoss(nn.Module):
    """What one member is trained on: its losses where labels are known, and what its layers ask for besides.

    Args:
        member: The network.
        interval_weight: Of the interval's loss.
    """

    def __init__(self, member: Network, interval_weight: float) -> None:
        super().__init__()
        self.member = member
        self.interval_weight = interval_weight

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        descriptors: Tensor,
        ecfp: Tensor,
        target: Tensor,
        is_class: Tensor,
        graph: GraphBatch | None = None,
    ) -> Tensor:
        """A scalar.

        Args:
            ids, lengths, descriptors, ecfp, graph: See ``Batch``; descriptors are scaled.
            target: Labels, ``(batch, n_tasks)``; NaN where unknown.
            is_class: Which tasks are classifications, ``(n_tasks,)`` bool.
        """
        value, said = self.member(Batch(ids, lengths, descriptors, ecfp, graph), descriptors)
        there = ~target.isnan()
        loss = masked_mean(losses_of(value, target, is_class), there)
        interval = self.member.interval
        if said is not None and interval is not None:
            counts = there & ~is_class
            of_interval = interval.losses(said, fill_missing(target, counts)).mean(-1)
            loss = loss + self.interval_weight * masked_mean(of_interval, counts)
        return loss + auxiliary_loss(self.member)


class PropertyTask(MemberTraining, pl.LightningModule):
    """Trains a ``PropertyModel``.

    ``val/loss`` is the mean over tasks of what the mean of the members gets on canonical SMILES: squared
    error of scaled labels, or cross-entropy.

    Args:
        model: The network.
        inputs: All molecules.
        labels: ``(n, n_tasks)``, scaled where they are numbers; NaN where unknown.
        train: The training options.
        loss: What to minimise.
        pretrained: Whether the stacks come from a language model.
    """

    def __init__(
        self,
        model: PropertyModel,
        inputs: MoleculeInputs,
        labels: Tensor,
        train: TrainConfig,
        loss: LossConfig,
        *,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_config, self.loss_config, self.pretrained = train, loss, pretrained
        self._inputs = inputs
        self.labels: Tensor
        self.register_buffer("labels", labels.float(), persistent=False)
        kinds = [task.kind == "classification" for task in model.config.tasks]
        self.is_class: Tensor
        self.register_buffer("is_class", torch.tensor(kinds), persistent=False)
        self._losses = [MemberLoss(member, loss.interval_weight) for member in model.members]
        self._graphed = [GraphedLoss(one) for one in self._losses]
        self._said: list[tuple[Tensor, Tensor]] = []

    def training_step(self, places: Tensor | list[tuple[Any, ...]], batch_idx: int) -> Tensor:
        """The members' losses, summed."""
        drawn = self.remembered(places)
        losses = [self._loss_of(member, inputs) for member, inputs in enumerate(drawn)]
        mean = torch.stack(losses).detach().mean()
        self.log("train/loss", mean, on_step=False, on_epoch=True, batch_size=len(drawn[0][0]))
        return torch.stack(losses).sum()

    def remembered(self, places: Tensor | list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """What each member's loss reads, which can be replayed in a later run on other molecules."""
        if isinstance(places, Tensor):
            return [self._inputs_of(mine.tolist()) for mine in places.unbind(1)]
        return places

    def _loss_of(self, member: int, inputs: tuple[Any, ...]) -> Tensor:
        whole = len(inputs) > 6  # with graphs, whose sizes differ from batch to batch
        return (self._losses if whole else self._graphed)[member](*inputs)

    def _inputs_of(self, places: list[int]) -> tuple[Any, ...]:
        config = self.loss_config
        n_ways = self._inputs.ways
        ways = torch.zeros(len(places), dtype=torch.int64)
        if n_ways > 1:
            ways = torch.randint(1, n_ways, (len(places),)) * (torch.rand(len(places)) < config.random_smiles)
        # of a few lengths, so that a GPU's work on them can be recorded
        multiple = _LENGTH_MULTIPLE if self.device.type == "cuda" else 1
        batch = self._inputs.batch(places, ways.tolist(), length_multiple=multiple).to(self.device)
        hidden = (torch.rand(batch.ids.shape, device=self.device) < config.hidden_tokens) & (
            batch.ids >= N_SPECIAL
        )
        ids = batch.ids.masked_fill(hidden, UNK_ID)
        descriptors = self.model.scaler(batch.descriptors).to(self.device)
        if config.feature_noise:
            descriptors = descriptors + config.feature_noise * torch.randn_like(descriptors)
        inputs = (ids, batch.lengths, descriptors, batch.ecfp, self.labels[places], self.is_class)
        return inputs if batch.graph is None else (*inputs, batch.graph)

    def validation_step(self, places: Tensor, batch_idx: int) -> None:
        """What is said of the validation molecules."""
        output = self.model(self._inputs.batch(places.tolist()).to(self.device))
        self._said.append((combined(output, self.is_class), self.labels[places]))

    def on_validation_epoch_end(self) -> None:
        """The loss of them all, task by task, so that a task with few labels counts as much as another."""
        if not self._said:
            return
        value, target = (torch.cat(parts) for parts in zip(*self._said, strict=True))
        self._said = []
        there = ~target.isnan()
        losses = losses_of(value, target, self.is_class).masked_fill(~there, 0.0)
        by_task = losses.sum(0) / there.sum(0).clamp(min=1)
        self.log("val/loss", by_task[there.any(0)].mean())

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine; the stack of a language model learns more slowly."""
        return configure_optimizer(
            self.model,
            self.train_config,
            int(self.trainer.estimated_stepping_batches),
            slower=self._stacks() if self.pretrained else (),
            share=self.loss_config.pretrained_lr,
        )

    def _stacks(self) -> Iterator[nn.Parameter]:
        for member in self.model.members:
            yield from member.embedding.parameters()
            yield from member.backbone.parameters()


def losses_of(value: Tensor, target: Tensor, is_class: Tensor) -> Tensor:
    """Squared errors, or cross-entropies of logits; zero where the target is NaN, like ``value``."""
    there = ~target.isnan()
    known = torch.where(there, target, 0.0)
    entropy = F.binary_cross_entropy_with_logits(value, known.clamp(0, 1), reduction="none")
    return torch.where(there, torch.where(is_class, entropy, (value - known).square()), 0.0)
