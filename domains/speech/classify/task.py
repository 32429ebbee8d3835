"""Training: cross-entropy on augmented recordings, with bands and times hidden."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.training import GraphedLoss, TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.speech.augment import Augmenter, of_few_lengths
from mambakit.domains.speech.classify.config import ClassifyLossConfig
from mambakit.domains.speech.classify.data import ClipBatch
from mambakit.domains.speech.classify.model import Classifier
from mambakit.domains.speech.frontend import heard_in_training


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
        frames, lengths = heard_in_training(self.model.front_end, samples, lengths, self.config)
        logits = self.model.of_frames(frames, lengths)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
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
