"""Training a classifier: each member on its own batches, validated on the series that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mambakit.core.auxiliary import auxiliary_loss
from mambakit.core.calibration import TemperatureScaling
from mambakit.core.training import MemberTraining, TrainConfig
from mambakit.domains.timeseries.classification.augmentation import augment, mix
from mambakit.domains.timeseries.classification.config import AugmentConfig
from mambakit.domains.timeseries.classification.network import Padded, SeriesClassifier, mean_log_probability

Series = tuple[Tensor, Tensor, Tensor]
"""Values ``(batch, length, n_channels)``, lengths and classes ``(batch,)`` of some series."""


class MemberBatches(Dataset[Tensor]):
    """Numbers of series for every member at once: each goes its own way through its own series.

    Args:
        held_out: Which series a member is not trained on, ``(members, n_series)`` bool.
        seed: Of the ways.
    """

    def __init__(self, held_out: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        own = [row.logical_not().nonzero()[:, 0] for row in held_out]
        self.ways = [rows[torch.randperm(len(rows), generator=generator)] for rows in own]

    def __len__(self) -> int:
        return max(len(way) for way in self.ways)

    def __getitem__(self, index: int) -> Tensor:
        """``(members,)``: one begins anew where it has fewer series than another."""
        return torch.stack([way[index % len(way)] for way in self.ways])

    def loader(self, batch_size: int) -> DataLoader[Tensor]:
        """Shuffled batches ``(batch, members)``."""
        return DataLoader(self, batch_size, shuffle=True)


class ClassifierTask(MemberTraining, pl.LightningModule):
    """Trains a ``SeriesClassifier`` on batches of the numbers of series.

    Where series are held out, ``val/loss`` and ``val/accuracy`` are those of the members that did not see
    them: the log-loss at its best temperature, which the finished model gets anyway. ``val/step`` is the
    number of steps taken: what a run is kept by that validates nothing.

    Args:
        model: The network.
        padded: All series.
        labels: Their classes, ``(n_series,)`` int64.
        held_out: ``(members, n_series)`` bool.
        train: The training options.
        config: What is done to the series.
    """

    def __init__(
        self,
        model: SeriesClassifier,
        padded: Padded,
        labels: Tensor,
        held_out: Tensor,
        train: TrainConfig,
        config: AugmentConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_config = train
        self.augment_config = config
        for name, tensor in (
            ("values", padded.values),
            ("lengths", padded.lengths),
            ("labels", labels),
            ("held_out", held_out),
        ):
            self.register_buffer(name, tensor, persistent=False)
        self.values: Tensor
        self.lengths: Tensor
        self.labels: Tensor
        self.held_out: Tensor
        self._predicted: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Tensor | list[Series], batch_idx: int) -> Tensor:
        """Cross-entropy of the members' batches, summed, and what their layers ask for besides."""
        losses = [
            self._loss_of(member, series)
            for member, series in zip(self.model.members, self.remembered(batch), strict=True)
        ]
        mean = torch.stack(losses).detach().mean()
        self.log("train/loss", mean, on_step=False, on_epoch=True, batch_size=len(batch))
        return torch.stack(losses).sum() + auxiliary_loss(self.model)

    def remembered(self, batch: Tensor | list[Series]) -> list[Series]:
        """Each member's series themselves, which can be replayed in a later run on others."""
        return [self._cut(rows) for rows in batch.unbind(1)] if isinstance(batch, Tensor) else batch

    def _loss_of(self, member: nn.Module, series: Series) -> Tensor:
        config = self.augment_config
        values, lengths, labels = series
        values, lengths = augment(values, lengths, config)
        if not config.mixup:
            return member.head.loss(member(values, lengths), labels)  # type: ignore[operator, union-attr]
        order = torch.randperm(len(labels), device=labels.device)
        share = torch.distributions.Beta(config.mixup, config.mixup).sample((len(labels),)).to(values)
        logits = member(mix(values, lengths, order, share), lengths)
        one_hot = F.one_hot(labels, logits.shape[-1]).to(logits)
        target = share[:, None] * one_hot + (1 - share[:, None]) * one_hot[order]
        return F.cross_entropy(logits, target, label_smoothing=member.head.label_smoothing)  # type: ignore[union-attr, arg-type]

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Predictions of the held-out series, by the members that did not see them."""
        self.log("val/step", float(self.global_step), batch_size=len(batch))
        weight = self.held_out[:, batch]
        counts = weight.any(0)
        if not counts.any():
            return
        rows, weight = batch[counts], weight[:, counts]
        values, lengths, labels = self._cut(rows)
        logits = held_out_logits(self.model.members, values, lengths, weight)
        self._predicted.append((logits.detach().cpu(), labels.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log-loss and accuracy of them all."""
        if not self._predicted:
            return
        logits, labels = (torch.cat(parts) for parts in zip(*self._predicted, strict=True))
        self._predicted = []
        calibrated = TemperatureScaling().fit(logits, labels)(logits)
        self.log("val/loss", F.cross_entropy(calibrated, labels))
        self.log("val/accuracy", (logits.argmax(-1) == labels).float().mean())

    def _cut(self, rows: Tensor) -> Series:
        lengths = self.lengths[rows]
        return self.values[rows, : int(lengths.max())], lengths, self.labels[rows]


def held_out_logits(members: Sequence[nn.Module], values: Tensor, lengths: Tensor, weight: Tensor) -> Tensor:
    """Log-probabilities of series by the members that did not see them, ``(batch, n_classes)``.

    Args:
        members: The networks.
        values: ``(batch, length, n_channels)``.
        lengths: ``(batch,)``.
        weight: Which series a member did not see, ``(members, batch)`` bool; one of them or more for each.
    """
    made = []
    for member, mine in zip(members, weight, strict=True):
        rows = mine.nonzero()[:, 0]
        made.append((rows, member(values[rows], lengths[rows]) if len(rows) else None))
    like = next(logits for _, logits in made if logits is not None)
    logits = like.new_zeros(len(members), len(values), like.shape[-1])
    for i, (rows, mine) in enumerate(made):
        if mine is not None:
            logits[i, rows] = mine
    return mean_log_probability(logits, weight)
