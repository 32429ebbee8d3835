"""Scores of labels, and of a keyword: its trade between misses and false alarms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)


def label_scores(guess: Tensor, target: Tensor, n_classes: int) -> dict[str, float]:
    """Accuracy, macro F1 and the number wrong.

    Args:
        guess, target: ``(n,)`` int64.
        n_classes: How many there are.
    """
    return {
        "accuracy": float(multiclass_accuracy(guess, target, n_classes, average="micro")),
        "macro_f1": float(multiclass_f1_score(guess, target, n_classes, average="macro")),
        "wrong": int((guess != target).sum()),
        "n": len(target),
    }


def confusion(guess: Tensor, target: Tensor, n_classes: int) -> NDArray[np.int64]:
    """How many of each class (row) were taken for each (column)."""
    counts: NDArray[np.int64] = multiclass_confusion_matrix(guess, target, n_classes).numpy()
    return counts


class Trade(NamedTuple):
    """What a keyword's threshold trades, from the strictest on."""

    thresholds: NDArray[np.float64]
    false_alarms: NDArray[np.float64]
    """Share of the recordings without it that are taken for it, or alarms an hour."""
    misses: NDArray[np.float64]
    """Share of its recordings that are not."""


def keyword_trade(scores: NDArray[np.float64], is_keyword: NDArray[np.bool_]) -> Trade:
    """The receiver operating characteristic of recordings, with misses in place of hits.

    Args:
        scores: Probability of the keyword, ``(n,)``.
        is_keyword: Whether it is said, ``(n,)``; some do, some don't.
    """
    thresholds = np.unique(scores)[::-1]
    misses = np.array([(scores[is_keyword] < one).mean() for one in thresholds])
    alarms = np.array([(scores[~is_keyword] >= one).mean() for one in thresholds])
    return Trade(thresholds, alarms, misses)


def alarms(
    scores: NDArray[np.float64], threshold: float, hop_s: float, refractory_s: float = 1.0
) -> list[float]:
    """Times, in seconds, at which a keyword is said to have been heard.

    Scores at or above the threshold that lie closer than ``refractory_s`` to the last alarm belong to it.

    Args:
        scores: Of windows every ``hop_s``, ``(n,)``.
        threshold: Least score of an alarm.
        hop_s: Seconds from a window to the next.
        refractory_s: How long one alarm lasts.
    """
    apart = round(refractory_s / hop_s)  # in windows: sums of 0.1 s miss a second by a rounding
    found: list[int] = []
    for i in np.flatnonzero(scores >= threshold).tolist():
        if not found or i - found[-1] >= apart:
            found.append(i)
    return [i * hop_s for i in found]


def equal_error(trade: Trade) -> float:
    """The share of misses and false alarms where they are equal."""
    at = int(np.abs(trade.false_alarms - trade.misses).argmin())
    return float((trade.false_alarms[at] + trade.misses[at]) / 2)


def area(trade: Trade) -> float:
    """Area under the receiver operating characteristic, straight from one threshold to the next."""
    alarms_ = np.concatenate([[0.0], trade.false_alarms])
    hits = 1 - np.concatenate([[1.0], trade.misses])
    return float(np.trapezoid(hits, alarms_))


def hourly(trade: Trade, scores: NDArray[np.float64], hop_s: float, hours: float, most: int = 50) -> Trade:
    """Misses over false alarms an hour, at some of a trade's thresholds.

    Args:
        trade: Of recordings with and without the keyword.
        scores: Of the windows of a long recording without it, ``(n,)``.
        hop_s: Seconds from a window to the next.
        hours: Of the long recording.
        most: Thresholds at most, evenly over the trade's.
    """
    at = np.unique(np.linspace(0, len(trade.thresholds) - 1, most).round().astype(int))
    counts = [len(alarms(scores, float(one), hop_s)) for one in trade.thresholds[at]]
    return Trade(trade.thresholds[at], np.array(counts) / hours, trade.misses[at])


def windows(samples: Tensor, window: int, hop: int) -> Tensor:
    """Overlapping windows ``(n, window)`` of ``(n_samples,)``, the last one filled up with zeros."""
    short = (window - len(samples)) if len(samples) < window else (-(len(samples) - window)) % hop
    return torch.nn.functional.pad(samples, (0, short)).unfold(0, window, hop)
