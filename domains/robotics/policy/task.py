"""Training: the head's loss over packed episodes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.training import GraphedLoss, TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.robotics.policy.model import Policy
from mambakit.domains.robotics.policy.seen import PolicyBatch


class PolicyLoss(nn.Module):
    """What training minimises, of a batch's tensors in the order of ``PolicyBatch.map``.

    Args:
        model: The policy.
        form: A batch that has the same tensors; their values do not matter.
    """

    def __init__(self, model: Policy, form: PolicyBatch) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, *tensors: Tensor) -> Tensor:
        """A scalar."""
        given = iter(tensors)
        loss = self.model.loss(self.form.map(lambda _: next(given)))
        return loss + auxiliary_loss(self.model)


class PolicyTask(pl.LightningModule):
    """Trains a ``Policy``; ``val/loss`` is the head's loss on whole episodes, nothing hidden.

    Args:
        model: The policy, its scales fitted.
        train: The training options.
    """

    def __init__(self, model: Policy, train: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.train_config = train
        self._loss: GraphedLoss | None = None

    def transfer_batch_to_device(
        self, batch: PolicyBatch, device: torch.device, dataloader_idx: int
    ) -> PolicyBatch:
        """Lightning's hook: it does not look into frozen dataclasses itself."""
        return batch.map(lambda tensor: tensor.to(device, non_blocking=True))

    def training_step(self, batch: PolicyBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        if self._loss is None:
            form = batch.map(lambda tensor: tensor.new_empty(0))
            self._loss = GraphedLoss(PolicyLoss(self.model, form))
        loss = self._loss(*batch.tensors())
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch.real))
        return loss

    def remembered(self, batch: PolicyBatch) -> PolicyBatch:
        """The batch itself: it can be replayed in any later run."""
        return batch

    def validation_step(self, batch: PolicyBatch, batch_idx: int) -> None:
        """The loss of a batch, and how far its actions are off, in deviations of the data's."""
        n_steps = int(batch.real.sum())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batch_idx)  # a flow's loss draws times and noise: the same at every validation
            loss = self.model.loss(batch)
        self.log("val/loss", loss, batch_size=n_steps)
        self.log("val/action_error", self._action_error(batch), batch_size=n_steps)

    def _action_error(self, batch: PolicyBatch) -> Tensor:
        found = self.model.actions(batch.seen, batch.seq_idx)
        wanted = batch.target[:, :, 0]
        scale = self.model.embed.action
        if scale is None:
            return (found != wanted)[batch.real].float().mean()
        return ((found - wanted) / scale.deviation)[batch.real].square().mean()

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )
