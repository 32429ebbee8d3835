"""How well scores find labelled anomalies, row by row and by range; nothing is point-adjusted.

Point adjustment counts a whole labelled range as found once any row of it is flagged, which random scores
profit from most (Kim et al. 2022, arXiv:2109.05257).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from mambakit.core.errors import UsageError

# Rows that an anomaly's neighbourhood reaches at most, unless told: the tolerance of the UCR archive.
BUFFER = 100


class Volumes(NamedTuple):
    """Areas under the range-aware curves, averaged over neighbourhoods of 0 to ``buffer`` rows."""

    pr: float
    roc: float


def average_precision(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """Mean precision over the recalls, row by row; NaN scores are left out.

    Raises:
        UsageError: If the two differ in length, or no row or every row is labelled.
    """
    ranks, label = _ranked(score, label)
    return float(binary_average_precision(torch.from_numpy(ranks), torch.from_numpy(label).long()))


def roc_auc(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    """Chance that an anomalous row scores above a normal one; NaN scores are left out.

    Raises:
        UsageError: As ``average_precision``.
    """
    ranks, label = _ranked(score, label)
    return float(binary_auroc(torch.from_numpy(ranks), torch.from_numpy(label).long()))


def vus(score: NDArray[np.float64], label: NDArray[np.bool_], *, buffer: int = BUFFER) -> Volumes:
    """Volume under the surface of range-aware PR and ROC curves (Paparrizos et al. 2022, VLDB 15, sec. 4).

    For a neighbourhood of l rows, rows within l/2 of a labelled range count ``sqrt(1 - distance / l)`` of
    an anomaly; recall is against the mean of the old and new number of anomalous rows, times the share of
    ranges that any flagged row touches. The curves are drawn over every threshold.

    Args:
        score: ``(length,)``, higher is more anomalous; NaN rows are left out, and ranges join over them.
        label: ``(length,)``.
        buffer: The widest neighbourhood, in rows.

    Raises:
        UsageError: As ``average_precision``, or if ``buffer`` is negative.
    """
    if buffer < 0:
        raise UsageError(f"buffer: expected at least 0 rows, got {buffer}")
    ranks, label = _ranked(score, label)
    ranges = labelled_ranges(label)
    order = np.argsort(-ranks, kind="stable")
    last = np.flatnonzero(np.diff(ranks[order], append=-1.0))  # where equal scores end: one threshold each
    flagged = (last + 1).astype(np.float64)
    areas = np.array([_areas(ranks, label, ranges, order, last, flagged, n) for n in range(buffer + 1)])
    return Volumes(*areas.mean(0).tolist())


def found_top_1(
    score: NDArray[np.float64], begin: int, end: int, *, tolerance: int = BUFFER, least: int = 0
) -> bool:
    """Whether the highest score lies on an anomaly or near it: the rule of the UCR archive (Wu & Keogh 2021).

    Args:
        score: ``(length,)``; NaN is never highest.
        begin, end: Rows of the anomaly, ``end`` excluded.
        tolerance: Rows before and after it that count too.
        least: Rows before this one are training rows, and not searched.

    Raises:
        UsageError: If no row that is searched has a score.
    """
    if not (~np.isnan(score[least:])).any():
        raise UsageError(f"score: expected one that is not NaN from row {least} on, got {len(score)} rows")
    best = least + int(np.nanargmax(score[least:]))
    return begin - tolerance <= best < end + tolerance


def labelled_ranges(label: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First row and the row after the last of each labelled range."""
    edges = np.flatnonzero(np.diff(label.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _areas(
    ranks: NDArray[np.float64],
    label: NDArray[np.bool_],
    ranges: Sequence[tuple[int, int]],
    order: NDArray[np.int64],
    last: NDArray[np.int64],
    flagged: NDArray[np.float64],
    buffer: int,
) -> tuple[float, float]:
    """Range-aware average precision and ROC area with one neighbourhood."""
    soft, half = label.astype(np.float64), buffer // 2
    touched = np.zeros(len(last))
    for begin, end in ranges:
        after = np.arange(end, min(end + half, len(soft)))
        before = np.arange(max(begin - half, 0), begin)
        soft[after] += np.sqrt(1 - (after - end + 1) / max(buffer, 1))
        soft[before] += np.sqrt(1 - (begin - before) / max(buffer, 1))
        highest = ranks[before[0] if len(before) else begin : after[-1] + 1 if len(after) else end].max()
        touched += ranks[order[last]] <= highest
    soft = soft.clip(max=1)
    hits = soft[order].cumsum()[last]
    positive = (label.sum() + soft.sum()) / 2
    recall = np.minimum(hits / positive, 1) * touched / len(ranges)
    false = ((flagged - hits) / (len(soft) - positive)).clip(max=1)
    precision = hits / flagged
    area_pr = float((np.diff(recall, prepend=0.0) * precision).sum())
    recall, false = np.r_[0.0, recall, 1.0], np.r_[0.0, false, 1.0]
    area_roc = float((np.diff(false) * (recall[1:] + recall[:-1]) / 2).sum())
    return area_pr, area_roc


def _ranked(
    score: NDArray[np.float64], label: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Ranks in (0, 1], equal for equal scores, where there is a score: torchmetrics squashes others."""
    score, label = np.asarray(score, np.float64), np.asarray(label, bool)
    if score.shape != label.shape or score.ndim != 1:
        raise UsageError(f"label: expected one for each of {score.shape} scores, got {label.shape}")
    there = ~np.isnan(score)
    score, label = score[there], label[there]
    if label.all() or not label.any():
        raise UsageError(
            f"label: expected some of {len(label)} scored rows to be anomalous, got {label.sum()}"
        )
    _, place = np.unique(score, return_inverse=True)
    return (place + 1) / (place.max() + 1), label
