"""From labelled series to a trained and calibrated classifier.

1. Cut the training series into folds, each with its share of every class; member i holds fold i out.
2. Train all members, and keep the epoch of the least log-loss on what they had not seen.
3. Fit the temperature and the conformal sets to those same held-out predictions.
4. Train anew on all series, for as many epochs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mambakit.core.calibration import ConformalSets, TemperatureScaling
from mambakit.core.errors import DataError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, seed_everything
from mambakit.domains.timeseries.classification.config import (
    PRESET_AUGMENT,
    PRESET_CLASSIFIER,
    PRESET_CLASSIFIER_TRAIN,
    PRESET_SELECTION,
    AugmentConfig,
    ClassifierConfig,
    ClassifierModelConfig,
    SelectionConfig,
)
from mambakit.domains.timeseries.classification.network import SETS, TEMPERATURE, SeriesClassifier, scale_of
from mambakit.domains.timeseries.tables.labelled import LabelledData, require_labels

if TYPE_CHECKING:
    from mambakit.domains.timeseries.classification.task import ClassifierTask

_VALIDATION_BATCH = 256


@dataclass(frozen=True)
class ClassifierResult:
    """How a training went."""

    validation_loss: float
    """Log-loss of the series that were held out, by the members that had not seen them."""
    validation_accuracy: float
    """Share of them that were right."""
    n_held_out: int
    """How many they were."""
    epochs: int
    """Epochs that validation chose."""
    seconds: float
    """Time of both trainings."""


def train_classifier(
    data: LabelledData,
    run: RunFolder,
    *,
    model_config: ClassifierModelConfig = PRESET_CLASSIFIER,
    augment_config: AugmentConfig = PRESET_AUGMENT,
    selection_config: SelectionConfig = PRESET_SELECTION,
    train_config: TrainConfig = PRESET_CLASSIFIER_TRAIN,
) -> tuple[SeriesClassifier, ClassifierResult]:
    """Trains, chooses and calibrates on the training series alone; see the head of this file.

    Args:
        data: The training series.
        run: Where checkpoints and metrics go; the training on all series has the folder ``refit`` in it.
        model_config, augment_config, selection_config, train_config: What to train and how.

    Returns:
        The classifier in evaluation mode on the CPU, with its calibration, and how the training went.

    Raises:
        DataError: If a series has no label, there are fewer than two classes, or none has two series.
        UserError: If training fails, or the run folder holds another run.
    """
    from mambakit.domains.timeseries.classification.task import MemberBatches

    labels = torch.from_numpy(require_labels(data))
    n_classes_there = len(labels.unique())
    if n_classes_there < 2:
        raise DataError(
            f"{data.name}: a classifier needs series of two classes or more, got {n_classes_there}"
        )
    mean, deviation = scale_of(data.series)
    config = ClassifierConfig(
        channels=list(data.channels),
        classes=list(data.classes),
        mean=mean.tolist(),
        deviation=deviation.tolist(),
        model=model_config,
    )
    fold = stratified_folds(labels.numpy(), selection_config.folds, train_config.seed)
    if (fold < 0).all():
        raise DataError(f"{data.name}: every class has one series; two of one are needed to validate")
    member_fold = torch.arange(model_config.members) % selection_config.folds
    held_out = torch.from_numpy(fold)[None] == member_fold[:, None]  # [members, n]

    steps = math.ceil(len(MemberBatches(held_out, 0)) / train_config.batch_size)
    most_epochs = max(train_config.max_epochs, math.ceil(selection_config.least_steps / steps))
    train_config = dataclasses.replace(train_config, max_epochs=most_epochs)
    task, first = _fit(config, data, labels, held_out, run, augment_config, train_config, "val/loss")
    logits, target = _held_out_predictions(task)
    accuracy = float((logits.argmax(-1) == target).double().mean())
    temperature = TemperatureScaling().fit(logits, target)
    loss = float(torch.nn.functional.cross_entropy(temperature(logits), target))
    sets = ConformalSets("lac").fit(temperature(logits).softmax(-1), target)
    epochs = max(1, round(_best_step(run, first) / steps))
    seconds = first.seconds
    if selection_config.refit:
        # its schedule ends where validation found the least loss
        again = dataclasses.replace(train_config, max_epochs=epochs, patience=0)
        everything = torch.zeros_like(held_out)
        task, second = _fit(
            config, data, labels, everything, RunFolder(run.path / "refit", overwrite=run.overwrite),
            augment_config, again, "val/step",
        )  # fmt: skip
        seconds += second.seconds
    model = task.model.cpu().eval()
    model.calibrators = {TEMPERATURE: temperature, SETS: sets}
    return model, ClassifierResult(loss, accuracy, len(target), epochs, seconds)


def stratified_folds(labels: NDArray[np.int64], n_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each series, ``(n_series,)``: every class is dealt out evenly.

    A class of a single series is in no fold (-1): held out, nothing would be left to learn it from.

    Args:
        labels: ``(n_series,)``.
        n_folds: How many.
        seed: Of the dealing.
    """
    rng = np.random.default_rng(seed)
    folds = np.full(len(labels), -1, dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            folds[rows] = (dealt + np.arange(len(rows))) % n_folds
            dealt += len(rows)
    return folds


def _fit(
    config: ClassifierConfig,
    data: LabelledData,
    labels: Tensor,
    held_out: Tensor,
    run: RunFolder,
    augment_config: AugmentConfig,
    train_config: TrainConfig,
    monitor: str,
) -> tuple[ClassifierTask, FitResult]:
    from mambakit.domains.timeseries.classification.task import ClassifierTask, MemberBatches

    seed_everything(train_config.seed)
    model = SeriesClassifier(config)
    task = ClassifierTask(model, model.pad(data.series), labels, held_out, train_config, augment_config)
    batches = MemberBatches(held_out, train_config.seed)
    everything: DataLoader[Any] = DataLoader(torch.arange(len(labels)), _VALIDATION_BATCH)  # type: ignore[arg-type]
    mode = "max" if monitor == "val/step" else "min"
    result = fit(task, batches.loader(train_config.batch_size), everything, train_config, run, monitor, mode)  # type: ignore[arg-type]
    return task.eval(), result


@torch.no_grad()
def _held_out_predictions(task: ClassifierTask) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the series that were held out, and their classes."""
    from mambakit.domains.timeseries.classification.task import held_out_logits

    task = task.cpu()
    rows = task.held_out.any(0).nonzero()[:, 0]
    made = []
    for part in rows.split(_VALIDATION_BATCH):
        made.append(
            held_out_logits(task.model.members, task.values[part], task.lengths[part], task.held_out[:, part])
        )
    return torch.cat(made).double(), task.labels[rows]


def _best_step(run: RunFolder, result: FitResult) -> int:
    """Optimizer steps that the kept weights had taken."""
    checkpoint = torch.load(run.path / result.best_checkpoint, map_location="cpu", weights_only=True)
    return int(checkpoint["global_step"])
