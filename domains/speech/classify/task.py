"""Training: cross-entropy on augmented recordings, with bands and times hidden."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.training import GraphedLoss, TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.speech.augment import Augmenter, of_few_lengths
from mambakit.domains.speech.classify.config import ClassifyLossConfig
from mambakit.domains.speech.classify.data import ClipBatch
from mambakit.domains.speech.classify.model import Classifier
from mambakit.domains.speech.frontend import spec_augment

_WAVES = 3


class ClassifyLoss(nn.Module):
    """Cross-entropy with bent frequency responses, and bands and times hidden.

    Args:
        model: The network, with its front end fitted.
        config: What to minimise, and what is done to frames.
    """

    def __init__(self, model: Classifier, config: ClassifyLossConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, samples: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """A scalar, of recordings ``(batch, n)``, their lengths and their classes ``(batch,)``."""
        config, front_end = self.config, self.model.front_end
        frames, lengths = front_end.log_mel(samples, lengths)
        if config.tilt_db:
            frames = frames + tilts(len(frames), frames.shape[2], config.tilt_db, frames.device)
        frames = spec_augment(front_end.normalised(frames, lengths), lengths, config)
        logits = self.model.of_frames(frames, lengths)
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        return loss + auxiliary_loss(self.model)


class ClassifyTask(pl.LightningModule):
    """Trains a ``Classifier``; ``val/loss`` is the cross-entropy of recordings as they are.

    Args:
        model: The network, with its front end fitted.
        train: The training options.
        loss: What to minimise.
        augmenter: Changes batches to train on.
    """

    private_unit = "a recording"
    private_leaves_out = "the scales of the front end, which are fitted to the training's recordings"

    def __init__(
        self, model: Classifier, train: TrainConfig, loss: ClassifyLossConfig, augmenter: Augmenter
    ) -> None:
        super().__init__()
        self.model, self.augmenter = model, augmenter
        self.train_config = train
        self._loss = GraphedLoss(ClassifyLoss(model, loss))

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        samples, lengths = self.augmenter(batch.samples, batch.lengths)
        samples = of_few_lengths(samples, self.model.config.model.front_end.rate_hz)
        loss = self._loss(samples, lengths, batch.labels)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(samples))
        return loss

    def remembered(self, batch: ClipBatch) -> ClipBatch:
        """The batch itself: it can be replayed in any later run."""
        return batch

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """Loss and accuracy of a batch."""
        logits = self.model(batch.samples, batch.lengths)
        n = len(batch.labels)
        self.log("val/loss", F.cross_entropy(logits, batch.labels), batch_size=n)
        self.log("val/accuracy", (logits.argmax(1) == batch.labels).float().mean(), batch_size=n)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )


def tilts(batch: int, n_mels: int, deviation_db: float, device: torch.device) -> Tensor:
    """Random frequency responses to add to log-mel frames, ``(batch, 1, n_mels)``: slow cosines."""
    waves = torch.arange(1, _WAVES + 1, device=device)[:, None]
    at = (torch.arange(n_mels, device=device) + 0.5) / n_mels
    shapes = torch.cos(math.pi * waves * at)
    drawn = torch.randn(batch, _WAVES, device=device) * (deviation_db * math.log(10) / 10)
    return (drawn @ shapes)[:, None]
