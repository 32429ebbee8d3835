"""Training: the best pairing's SI-SNR, on mixtures that are new every time."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from mambakit.core.training import GraphedLoss, TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.speech.mixtures import Stock, TwoSpeakerMixer
from mambakit.domains.speech.separate.metrics import pairing_loss, si_snr_gain

_GOOD_ENOUGH_DB = 30.0  # what is that good already teaches nothing


class SeparateLoss(nn.Module):
    """The negative SI-SNR of the best pairing in dB.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, mixture: Tensor, sources: Tensor) -> Tensor:
        """Of mixtures ``(batch, n)`` and their sources ``(batch, n_sources, n)``, a scalar."""
        return pairing_loss(self.model(mixture), sources, _GOOD_ENOUGH_DB)


class SeparateTask(pl.LightningModule):
    """Trains a network from mixtures ``(batch, n)`` to sources ``(batch, n_sources, n)``.

    Args:
        model: The network.
        mixer: Makes the mixtures to train on.
        train: The training options.
    """

    def __init__(self, model: nn.Module, mixer: TwoSpeakerMixer, train: TrainConfig) -> None:
        super().__init__()
        self.model, self.mixer, self.train_config = model, mixer, train
        self._stock = Stock(mixer)
        self._loss = GraphedLoss(SeparateLoss(model))

    def on_train_epoch_start(self) -> None:
        """Mixtures of an epoch are of its seed alone."""
        self._stock.clear()

    def training_step(self, batch: Tensor | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The negative SI-SNR of the best pairing in dB, on as many new mixtures as the batch is long."""
        mixture, sources = self.remembered(batch)
        loss = self._loss(mixture, sources)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(mixture))
        return loss

    def remembered(self, batch: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """New mixtures, as many as the batch is long, which can be replayed in any later run."""
        return self._stock.take(len(batch)) if isinstance(batch, Tensor) else batch

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The negative SI-SNRi."""
        mixture, sources = batch
        gain = si_snr_gain(self.model(mixture), sources, mixture).mean()
        self.log_dict({"val/loss": -gain, "val/si_snr_gain": gain}, batch_size=len(mixture))

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )
