"""A classifier on labelled recordings beside its baselines, and a keyword in a long recording."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.domains.speech.audio import Audio, resample
from mambakit.domains.speech.classify.baselines import nearest_mean
from mambakit.domains.speech.classify.data import Clips
from mambakit.domains.speech.classify.metrics import (
    Trade,
    alarms,
    area,
    confusion,
    equal_error,
    hourly,
    keyword_trade,
    label_scores,
    windows,
)
from mambakit.domains.speech.classify.model import Classifier
from mambakit.domains.speech.classify.prediction import probabilities

OURS = "mambakit"
CNN, NEAREST = "cnn", "nearest mean"
_WINDOW_S, _HOP_S = 0.75, 0.1


@dataclass(frozen=True)
class ClassifyEvaluation:
    """Scores by classifier, ours first."""

    rows: list[dict[str, object]]
    """``classifier``, ``accuracy``, ``macro_f1``, ``wrong``, ``n``, and ``parameters`` of networks."""
    confusion: NDArray[np.int64]
    """How many of each class (row) ours took for each (column)."""
    classes: list[str]
    probabilities: Tensor
    """Ours, ``(n, n_classes)``."""
    labels: Tensor
    """``(n,)``."""


@dataclass(frozen=True)
class KeywordEvaluation:
    """How well one class is spotted."""

    keyword: str
    trade: Trade
    """Over recordings that hold one word each."""
    equal_error: float
    area: float
    """Under the receiver operating characteristic."""
    hours: float = 0.0
    """Of the long recording."""
    per_hour: list[dict[str, float]] = field(default_factory=list)
    """By share of misses: ``misses``, ``threshold``, ``false_alarms_per_hour``."""
    hourly: Trade | None = None
    """Misses over false alarms an hour of the long recording."""


def evaluate(
    model: Classifier, clips: Clips, *, train: Clips | None = None, cnn: Classifier | None = None
) -> ClassifyEvaluation:
    """Scores on recordings.

    Args:
        model: Trained.
        clips: What is measured.
        train: What it was trained on; with them the nearest mean is measured too.
        cnn: The convolutional baseline, trained the same way.
    """
    n_classes = len(model.config.classes)
    p = probabilities(model, clips.samples)
    rows: list[dict[str, object]] = [
        {
            "classifier": OURS,
            **label_scores(p.argmax(1), clips.labels, n_classes),
            "parameters": size_of(model),
        }
    ]
    if cnn is not None:
        guess = probabilities(cnn, clips.samples).argmax(1)
        rows.append(
            {"classifier": CNN, **label_scores(guess, clips.labels, n_classes), "parameters": size_of(cnn)}
        )
    if train is not None:
        guess = nearest_mean(train, clips, model.front_end.cpu(), n_classes)
        rows.append({"classifier": NEAREST, **label_scores(guess, clips.labels, n_classes)})
    counts = confusion(p.argmax(1), clips.labels, n_classes)
    return ClassifyEvaluation(rows, counts, list(model.config.classes), p, clips.labels)


def evaluate_keyword(
    evaluation: ClassifyEvaluation, keyword: str, model: Classifier, recording: Audio | None = None
) -> KeywordEvaluation:
    """One class as a keyword among the others, and its false alarms in a long recording without it.

    The recording is read in windows of 0.75 s every 0.1 s; alarms within a second are one.

    Raises:
        UsageError: If there is no such class, or no recording of it (or none of others) was measured.
    """
    if keyword not in evaluation.classes:
        raise UsageError(f"keyword: {keyword!r} is none of {', '.join(evaluation.classes)}")
    at = evaluation.classes.index(keyword)
    is_keyword = (evaluation.labels == at).numpy()
    if not is_keyword.any() or is_keyword.all():
        raise UsageError(f"keyword: to measure {keyword!r} takes recordings of it and of other classes")
    scores = evaluation.probabilities[:, at].double().numpy()
    trade = keyword_trade(scores, is_keyword)
    if recording is None:
        return KeywordEvaluation(keyword, trade, equal_error(trade), area(trade))
    heard = keyword_scores(model, recording, at)
    hours = recording.seconds / 3600
    rows = []
    for misses in (0.01, 0.05, 0.1, 0.2):
        threshold = float(trade.thresholds[trade.misses <= misses].max())
        rows.append(
            {"misses": misses, "threshold": threshold}
            | {"false_alarms_per_hour": len(alarms(heard, threshold, _HOP_S)) / hours}
        )
    curve = hourly(trade, heard, _HOP_S, hours)
    return KeywordEvaluation(keyword, trade, equal_error(trade), area(trade), hours, rows, curve)


@torch.no_grad()
def keyword_scores(model: Classifier, recording: Audio, place: int) -> NDArray[np.float64]:
    """The class's probability in windows of 0.75 s every 0.1 s, ``(n,)``; silent windows have 0."""
    rate_hz = model.config.model.front_end.rate_hz
    samples = resample(recording.samples, recording.rate_hz, rate_hz)
    cut = windows(samples, round(_WINDOW_S * rate_hz), round(_HOP_S * rate_hz))
    found = [probabilities(model, list(part))[:, place] for part in cut.split(512)]
    return torch.cat(found).masked_fill(~cut.any(1), 0.0).double().numpy()


def size_of(model: Classifier) -> int:
    """Parameters that are learned."""
    return sum(parameter.numel() for parameter in model.parameters())
