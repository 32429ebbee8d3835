"""Training on augmented recordings, with bands and times hidden: CTC, a transducer or attention."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.training import TrainConfig
from mambakit.core.training.optim import configure_optimizer
from mambakit.domains.speech.augment import Augmenter, of_few_lengths
from mambakit.domains.speech.frontend import heard_in_training
from mambakit.domains.speech.recognize.alignment import frames_needed_each
from mambakit.domains.speech.recognize.config import RecognizeLossConfig
from mambakit.domains.speech.recognize.metrics import error_rates
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.recordings import SpeechBatch


class RecognizeTask(pl.LightningModule):
    """Trains a ``Recognizer``; ``val/loss`` is a symbol's, and ``val/wer`` that of the likeliest symbols.

    Args:
        model: The network, with its front end fitted and its tokenizer.
        train: The training options.
        loss: What is hidden.
        augmenter: Changes batches to train on, none so that its text no longer fits its frames.
    """

    def __init__(
        self, model: Recognizer, train: TrainConfig, loss: RecognizeLossConfig, augmenter: Augmenter
    ) -> None:
        super().__init__()
        self.model, self.augmenter = model, augmenter
        self.train_config, self.loss_config = train, loss
        self._texts: list[tuple[str, str]] = []

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        least = self.model.frame_samples * frames_needed_each(batch.ids, batch.id_lengths)
        samples, lengths = self.augmenter(batch.samples, batch.lengths, least=least)
        samples = of_few_lengths(samples, self.model.rate_hz)
        samples, lengths = self.model.with_tail(samples, lengths)
        frames, lengths = heard_in_training(self.model.front_end, samples, lengths, self.loss_config)
        vectors, lengths = self.model.encoder(frames, lengths)
        loss = self.model.loss(vectors, lengths, batch.ids, batch.id_lengths)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(frames))
        return loss + auxiliary_loss(self.model)

    def remembered(self, batch: SpeechBatch) -> SpeechBatch:
        """The batch itself: it can be replayed in any later run."""
        return batch

    def validation_step(self, batch: SpeechBatch, batch_idx: int) -> None:
        """Loss and texts of a batch."""
        vectors, lengths = self.model.vectors(batch.samples, batch.lengths)
        loss = self.model.loss(vectors, lengths, batch.ids, batch.id_lengths)
        self.log("val/loss", loss, batch_size=len(vectors))
        tokenizer = self.model.tokenizer
        found = self.model.written(vectors, lengths)
        for ids, n, written in zip(batch.ids.tolist(), batch.id_lengths.tolist(), found, strict=True):
            self._texts.append((tokenizer.text(ids[:n]), tokenizer.text(written)))

    def on_validation_epoch_end(self) -> None:
        """The word error rate of all."""
        if self._texts:
            rates = error_rates([said for said, _ in self._texts], [written for _, written in self._texts])
            self.log("val/wer", torch.tensor(rates.wer))
        self._texts = []

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        return configure_optimizer(
            self.model, self.train_config, int(self.trainer.estimated_stepping_batches)
        )
