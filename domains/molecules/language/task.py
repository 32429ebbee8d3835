"""The Lightning task: nats per token of packed molecules; bits per token and validity in validation."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from mambakit.core.adapters import TokenBatch
from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.training import GraphedLoss, TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.molecules.language.model import MoleculeModel, token_losses
from mambakit.domains.molecules.language.sampling import SamplingConfig, sample


class TokenLoss(nn.Module):
    """Mean nats of a token, and what the layers ask for besides.

    Args:
        model: The network.
    """

    def __init__(self, model: MoleculeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor, seq_idx: Tensor) -> Tensor:
        """Of packed ids ``(rows, length)``, a scalar."""
        total, n = self.total(values, seq_idx)
        return total / n.clamp(min=1) + auxiliary_loss(self.model)

    def total(self, values: Tensor, seq_idx: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over all tokens, and how many they are."""
        logits, _ = self.model(values, seq_idx=seq_idx)
        losses, there = token_losses(logits, values, seq_idx)
        return losses.sum(), there.sum()


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
        self.loss = TokenLoss(model)
        self._graphed = GraphedLoss(self.loss)
        self.train_config = train
        self.n_samples, self.max_length = n_samples, max_length

    @property
    def model(self) -> MoleculeModel:
        """The network."""
        return self.loss.model

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """The mean over all tokens."""
        assert batch.seq_idx is not None
        loss = self._graphed(batch.values, batch.seq_idx)
        # batches are of about equal size: to weigh each by its tokens, every step would wait for a GPU
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=1)
        return loss

    def remembered(self, batch: TokenBatch) -> TokenBatch:
        """The batch itself: it can be replayed in any later run."""
        return batch

    def validation_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The loss over all tokens of all batches, and in bits; a second loader has them rewritten."""
        assert batch.seq_idx is not None
        total, count = self.loss.total(batch.values, batch.seq_idx)
        n = int(count)
        loss = total / n
        values = {"val/loss": loss, "val/bits_per_token": loss / math.log(2)}
        if dataloader_idx:
            values = {"val/loss_randomized": loss}
        self.log_dict(values, on_epoch=True, batch_size=n, add_dataloader_idx=False)

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
