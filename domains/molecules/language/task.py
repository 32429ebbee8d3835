"""The Lightning task: nats per token of packed molecules; bits per token and validity in validation."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from mambakit.core.adapters import TokenBatch
from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.training import TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.molecules.language.model import MoleculeModel, token_losses
from mambakit.domains.molecules.language.sampling import SamplingConfig, sample


class MoleculeTask(pl.LightningModule):
    """Trains a ``MoleculeModel``.

    Args:
        model: The network.
        train: The training options.
        n_samples: Molecules drawn at each validation, to say how many are valid; 0 draws none.
        max_length: Tokens of one at most.
    """

    def __init__(
        self, model: MoleculeModel, train: TrainConfig, *, n_samples: int = 100, max_length: int = 512
    ) -> None:
        super().__init__()
        self.model = model
        self.train_config = train
        self.n_samples, self.max_length = n_samples, max_length

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """The mean over all tokens."""
        loss, _ = self._loss(batch)
        # batches are of about equal size: to weigh each by its tokens, every step would wait for a GPU
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss + auxiliary_loss(self.model)

    def validation_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The loss over all tokens of all batches, and in bits; a second loader has them rewritten."""
        loss, n = self._loss(batch)
        values = {"val/loss": loss, "val/bits_per_token": loss / math.log(2)}
        if dataloader_idx:
            values = {"val/loss_randomized": loss}
        self.log_dict(values, on_epoch=True, batch_size=int(n), add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        """The share of valid molecules among a few samples."""
        if not self.n_samples:
            return
        config = SamplingConfig(n=self.n_samples, max_length=self.max_length, seed=self.train_config.seed)
        drawn = list(sample(self.model, config))
        self.log("val/validity", sum(one.valid for one in drawn) / len(drawn), batch_size=1)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Moves a batch."""
        if isinstance(batch, TokenBatch):
            return batch.to(device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )

    def _loss(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        logits, _ = self.model(batch.values, seq_idx=batch.seq_idx)
        losses, there = token_losses(logits, batch)
        n = there.sum()
        return losses.sum() / n.clamp(min=1), n
