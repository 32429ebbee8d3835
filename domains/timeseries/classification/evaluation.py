"""A classifier beside its baselines on labelled series: the commonest class, and the nearest neighbour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from mambakit.core.errors import DataError
from mambakit.core.metrics import SetCoverage, SetSize
from mambakit.domains.timeseries.classification.network import SETS, SeriesClassifier, class_sets
from mambakit.domains.timeseries.tables.labelled import LabelledData, LabelledSeries, require_labels

OURS = "mambakit"
_NUMBERS_AT_ONCE = 20_000_000
_MOST_NUMBERED = 20  # classes whose counts are written into the confusion picture


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Scores by classifier, ours first.

    Attributes:
        rows: One mapping a classifier: ``classifier``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``; of
            ours and the commonest class, whose probabilities are the classes' shares in training, also
            ``log_loss`` and ``calibration_error``; of ours ``coverage`` and ``set_size`` of its sets.
        confusion: How many series of each class (row) ours took for each class (column).
        classes: Their names.
        n_series: How many series were classified.
    """

    rows: list[dict[str, object]]
    confusion: NDArray[np.int64]
    classes: tuple[str, ...]
    n_series: int


def evaluate_classifier(
    model: SeriesClassifier, data: LabelledData, *, train: LabelledData | None = None, alpha: float = 0.1
) -> ClassifierEvaluation:
    """Scores on labelled series.

    Args:
        model: Trained.
        data: The series to classify.
        train: What it was trained on; with them the baselines are measured too.
        alpha: The share of series whose set may miss their class.

    Raises:
        DataError: If a series has no label, a class that the model does not know, or other channels.
    """
    classes = model.config.classes
    target = torch.from_numpy(require_labels(data, classes))
    p = model.probabilities(data.series)
    scores: dict[str, object] = {"classifier": OURS, **scores_of(p.argmax(-1), target, len(classes))}
    scores |= honesty_of(p, target)
    if SETS in model.calibrators:
        made = class_sets(model, p, alpha)
        coverage, size = SetCoverage(), SetSize()
        coverage.update(made, target)
        size.update(made)
        scores |= {"coverage": float(coverage.compute()), "set_size": float(size.compute())}
    rows = [scores]
    if train is not None:
        known = require_labels(train, classes)
        shares = torch.from_numpy(np.bincount(known, minlength=len(classes)) / len(known))
        nearest = torch.from_numpy(nearest_neighbour(train.series, known, data.series))
        rows.append({"classifier": "nearest neighbour", **scores_of(nearest, target, len(classes))})
        commonest = shares.argmax().expand(len(target))
        of_shares = honesty_of(shares.expand(len(target), -1), target)
        rows.append(
            {"classifier": "commonest class", **scores_of(commonest, target, len(classes)), **of_shares}
        )
    confusion = MulticlassConfusionMatrix(len(classes))(p.argmax(-1), target)
    return ClassifierEvaluation(rows, confusion.numpy(), tuple(classes), len(target))


def scores_of(guess: Tensor, target: Tensor, n_classes: int) -> dict[str, float]:
    """Accuracy, balanced accuracy (the mean of the classes' recalls) and macro F1, of classes that occur.

    Args:
        guess, target: ``(n,)`` int64.
        n_classes: How many there are.
    """
    metrics = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(n_classes, average="micro"),
            "balanced_accuracy": MulticlassAccuracy(n_classes, average="macro"),
            "macro_f1": MulticlassF1Score(n_classes, average="macro"),
        },
        compute_groups=False,
    )
    return {name: float(value) for name, value in metrics(guess, target).items()}


def honesty_of(p: Tensor, target: Tensor) -> dict[str, float]:
    """``log_loss``; ``calibration_error``, how far the likeliest class is right more or less often than its
    probability says, in 15 bins (Guo et al. 2017, eq. 3).

    Args:
        p: Probabilities, ``(n, n_classes)`` float64.
        target: ``(n,)`` int64.
    """
    gap = MulticlassCalibrationError(p.shape[1], n_bins=15, norm="l1")
    loss = torch.nn.functional.nll_loss(p.clamp(min=1e-300).log(), target)
    return {"log_loss": float(loss), "calibration_error": float(gap(p.float(), target))}


def nearest_neighbour(
    train: Sequence[LabelledSeries], labels: NDArray[np.int64], series: Sequence[LabelledSeries]
) -> NDArray[np.int64]:
    """The class of the training series at the least Euclidean distance, ``(n_series,)``.

    Series of several lengths are drawn to the longest one's length, on straight lines between their rows;
    missing values are read off those lines too (a channel without values is 0).

    Args:
        train: What is known.
        labels: Its classes, ``(n_train,)``.
        series: What is to be classified; of the same channels.
    """
    longest = max(len(one.values) for one in [*train, *series])
    known = np.stack([_drawn(one.values, longest) for one in train])
    squares = (known**2).sum(1)
    found = []
    for begin in range(0, len(series), max(1, _NUMBERS_AT_ONCE // known.shape[1])):
        part = series[begin : begin + max(1, _NUMBERS_AT_ONCE // known.shape[1])]
        asked = np.stack([_drawn(one.values, longest) for one in part])
        found.append((squares[None] - 2 * asked @ known.T).argmin(1))  # less what all have in common
    return labels[np.concatenate(found)]


def confusion_figure(evaluation: ClassifierEvaluation) -> Figure:
    """What the classifier took for what: true classes down, its classes along, as shares of the true ones."""
    counts = evaluation.confusion
    n_classes = len(counts)
    size = min(3.0 + 0.45 * n_classes, 14.0)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n_classes <= _MOST_NUMBERED:
        for i, j in np.argwhere(counts > 0):
            color = "white" if shares[i, j] > 0.55 else "#22303c"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=color)
    ticks = range(n_classes)
    axis.set_xticks(ticks, evaluation.classes, rotation=0 if n_classes <= 10 else 90, fontsize=8)
    axis.set_yticks(ticks, evaluation.classes, fontsize=8)
    axis.set_xlabel("taken for")
    axis.set_ylabel("is")
    axis.set_title(f"{int(counts.trace())} of {evaluation.n_series} right", fontsize=10, loc="left")
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the class")
    return figure


def _drawn(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    rows = np.arange(len(values))
    at = np.linspace(0, len(values) - 1, length)
    drawn = np.zeros((length, values.shape[1]))
    for channel, column in enumerate(values.T):
        there = ~np.isnan(column)
        if there.any():
            drawn[:, channel] = np.interp(at, rows[there], column[there])
    return drawn.ravel()


def check_same_channels(train: LabelledData, test: LabelledData) -> None:
    """Raise a DataError unless two sets have as many channels."""
    if len(train.channels) != len(test.channels):
        raise DataError(
            f"{test.name}: it has {len(test.channels)} channels, {train.name} has {len(train.channels)}"
        )
