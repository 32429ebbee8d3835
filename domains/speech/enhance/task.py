"""Training: compressed spectra and SI-SDR, on mixtures that are new every time."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from mambakit.core.training import GraphedLoss, TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.speech.enhance.config import EnhanceLoss
from mambakit.domains.speech.enhance.metrics import si_sdr
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.mixtures import NoisyMixer, Stock
from mambakit.domains.speech.spectral.stft import compress


class SpectralLoss(nn.Module):
    """What training minimises; see ``losses``.

    Args:
        model: The network.
        weights: Of each part.
    """

    def __init__(self, model: Enhancer, weights: EnhanceLoss) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """A scalar, of noisy and clean speech ``(batch, n)``."""
        return losses(self.model, self.weights, noisy, clean)[0]


class EnhanceTask(pl.LightningModule):
    """Trains an ``Enhancer``; it validates on pairs of noisy and clean speech, ``(batch, n)`` each.

    Args:
        model: The network.
        mixer: Makes the pairs to train on.
        train: The training options.
        loss: What to minimise.
    """

    def __init__(self, model: Enhancer, mixer: NoisyMixer, train: TrainConfig, loss: EnhanceLoss) -> None:
        super().__init__()
        self.model, self.mixer, self._stock = model, mixer, Stock(mixer)
        self.train_config, self.loss_config = train, loss
        self._loss = GraphedLoss(SpectralLoss(model, loss))

    def on_train_epoch_start(self) -> None:
        """Mixtures of an epoch are of its seed alone."""
        self._stock.clear()

    def training_step(self, batch: Tensor | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The weighted sum of the losses on as many new pairs as the batch is long."""
        noisy, clean = self.remembered(batch)
        loss = self._loss(noisy, clean)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(noisy))
        return loss

    def remembered(self, batch: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """New mixtures, as many as the batch is long, which can be replayed in any later run."""
        return self._stock.take(len(batch)) if isinstance(batch, Tensor) else batch

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same, and by how many dB SI-SDR is better than that of the noisy speech."""
        loss, said = losses(self.model, self.loss_config, *batch)
        noisy, clean = batch
        better = (si_sdr(said, clean) - si_sdr(noisy, clean)).mean()
        self.log_dict({"val/loss": loss, "val/si_sdr_gain": better}, batch_size=len(noisy))

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )


def losses(model: Enhancer, weights: EnhanceLoss, noisy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of compressed spectra and SI-SDR, weighted, and the enhanced speech ``(batch, n)``."""
    pairs, level = model.spectra(noisy)
    target = compress(model.stft.whole(clean) / level, model.config.compression)
    size, wanted = ((one.square().sum(-1) + 1e-9).sqrt() for one in (pairs, target))
    said = model.signals(pairs, level, noisy.shape[1])
    loss = (
        weights.magnitude * (size - wanted).square().mean()
        + weights.complex * (pairs - target).square().sum(-1).mean()
        - weights.si_sdr * si_sdr(said, clean).clamp(max=30).mean()
    )
    return loss, said
