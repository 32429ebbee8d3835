"""Training a language model: nats a character."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.training import TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.speech.language.model import TextModel, character_losses


class TextTask(pl.LightningModule):
    """Trains a ``TextModel``; ``val/loss`` is nats a character.

    Args:
        model: The network.
        train: The training options.
    """

    def __init__(self, model: TextModel, train: TrainConfig) -> None:
        super().__init__()
        self.model, self.train_config = model, train

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss, n = character_losses(self.model, *batch)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=int(n))
        return loss + auxiliary_loss(self.model)

    def remembered(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch itself: it can be replayed in any later run."""
        return batch

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The same."""
        loss, n = character_losses(self.model, *batch)
        self.log("val/loss", loss, batch_size=int(n))

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )
