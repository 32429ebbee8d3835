"""How good predictions of properties are, task by task and in the mean; unknown labels don't count.

Regression: root mean squared error and mean absolute error in the label's unit, and R2 (the share of variance
that is explained, 0 for the mean of these labels). Classification: areas under the ROC curve and under the
precision-recall curve (average precision). Where a figure doesn't exist, it is NaN and a note says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.molecules.molecules import Task, TaskKind

METRICS: dict[TaskKind, tuple[str, ...]] = {
    "regression": ("rmse", "mae", "r2"),
    "classification": ("roc_auc", "pr_auc"),
}


@dataclass(frozen=True)
class TaskScore:
    """One task's figures.

    Attributes:
        task: What was predicted.
        count: How many known labels were judged.
        values: By name of ``METRICS``; NaN where a figure doesn't exist.
        spread: Standard deviation of the labels judged, what an error is to be held against; of classes the
            share of ones.
        note: Why a figure doesn't exist; empty if all do.
    """

    task: Task
    count: int
    values: dict[str, float]
    spread: float
    note: str = ""


@dataclass(frozen=True)
class Scores:
    """Every task's figures, and their means over tasks that have them.

    Attributes:
        tasks: In the order of the labels.
        means: By name; only over tasks of one kind and unit, and only where there are several tasks.
    """

    tasks: tuple[TaskScore, ...]
    means: dict[str, float]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing, and why."""
        return tuple(f"{one.task.name}: {one.note}" for one in self.tasks if one.note)

    def figure(self, name: str) -> float:
        """One number of the whole: the mean over tasks, or the only task's; NaN if there is none."""
        if name in self.means:
            return self.means[name]
        held = [one.values[name] for one in self.tasks if name in one.values]
        return held[0] if len(held) == 1 else np.nan


def score(predictions: NDArray[np.float64], labels: NDArray[np.float64], tasks: Sequence[Task]) -> Scores:
    """Figures of all tasks.

    Args:
        predictions: ``(n, n_tasks)``, in the labels' units; of classes the probability of 1, or anything that
            ranks. NaN is not allowed where a label is known.
        labels: ``(n, n_tasks)``, NaN where unknown.
        tasks: What the columns are.

    Raises:
        ValueError: On other shapes, or a prediction that is no number for a known label.
    """
    if predictions.shape != labels.shape or labels.shape[1:] != (len(tasks),):
        raise ValueError(
            f"predictions, labels: expected one shape (n, {len(tasks)}), got {predictions.shape} and "
            f"{labels.shape}"
        )
    known = ~np.isnan(labels)
    bad = known & ~np.isfinite(predictions)
    if bad.any():
        row, column = (int(one[0]) for one in np.nonzero(bad))
        raise ValueError(f"predictions: {predictions[row, column]} in row {row} of {tasks[column].name!r}")
    scores = tuple(
        _of_task(predictions[known[:, i], i], labels[known[:, i], i], task) for i, task in enumerate(tasks)
    )
    return Scores(scores, _means(scores))


def _of_task(predicted: NDArray[np.float64], true: NDArray[np.float64], task: Task) -> TaskScore:
    names = METRICS[task.kind]
    if not len(true):
        return TaskScore(task, 0, dict.fromkeys(names, np.nan), np.nan, "no label is known")
    if task.kind == "regression":
        return _regression(predicted, true, task)
    from sklearn.metrics import average_precision_score, roc_auc_score

    share = float(true.mean())
    if true.min() == true.max():
        note = f"all {len(true)} labels are {true[0]:g}: areas under curves need both classes"
        return TaskScore(task, len(true), dict.fromkeys(names, np.nan), share, note)
    values = {
        "roc_auc": float(roc_auc_score(true, predicted)),
        "pr_auc": float(average_precision_score(true, predicted)),
    }
    return TaskScore(task, len(true), values, share)


def _regression(predicted: NDArray[np.float64], true: NDArray[np.float64], task: Task) -> TaskScore:
    errors = predicted - true
    variance = float(((true - true.mean()) ** 2).mean())
    values = {
        "rmse": float(np.sqrt((errors**2).mean())),
        "mae": float(np.abs(errors).mean()),
        "r2": 1 - float((errors**2).mean()) / variance if variance > 0 else np.nan,
    }
    note = "" if variance > 0 else "R2 needs labels that differ"
    return TaskScore(task, len(true), values, variance**0.5, note)


def _means(scores: tuple[TaskScore, ...]) -> dict[str, float]:
    means: dict[str, float] = {}
    for kind, names in METRICS.items():
        own = [one for one in scores if one.task.kind == kind]
        one_unit = len({one.task.unit for one in own}) == 1 or kind == "classification"
        for name in names:
            values = [one.values[name] for one in own if not np.isnan(one.values[name])]
            if len(own) > 1 and values and (one_unit or name == "r2"):
                means[name] = float(np.mean(values))
    return means
