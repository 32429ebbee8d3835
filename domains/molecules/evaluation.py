"""A property model beside a random forest and the training mean on labelled molecules, in one table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.molecules.metrics import METRICS, Scores, score
from mambakit.domains.molecules.model import PropertyModel
from mambakit.domains.molecules.molecules import Molecules, Task, TaskKind
from mambakit.domains.molecules.prediction import ALPHA, Predictions, inputs_of, predict

OURS = "mambakit"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores on labelled molecules.

    Attributes:
        rows: One mapping a task and predictor. Of numbers ``rmse``, ``mae`` (in ``unit``) and ``r2``, of
            classes ``roc_auc`` and ``pr_auc``; None where the labels can't tell. Of ours also ``coverage``,
            the share of labels inside the intervals or sets, and their mean ``width`` or ``set_size``.
        tasks: What was measured.
        labels: ``(n, n_tasks)``.
        predicted: What the model says of the same molecules.
        others: Predictions of the baselines by name, ``(n, n_tasks)`` each.
        scores: All figures, by predictor.
        alpha: The share of labels that intervals may miss.
        n_known: Molecules that were trained on too, by their fragments.
    """

    rows: list[dict[str, object]]
    tasks: tuple[Task, ...]
    labels: NDArray[np.float64]
    predicted: Predictions
    others: dict[str, NDArray[np.float64]]
    scores: dict[str, Scores]
    alpha: float
    n_known: int

    def table(self, kind: TaskKind) -> list[dict[str, object]]:
        """The rows of regressions or classifications, with the means over tasks where there are several."""
        names = [task.name for task in self.tasks if task.kind == kind]
        rows = [row for row in self.rows if row["task"] in names]
        if len(names) < 2:
            return rows
        for who, scores in self.scores.items():
            means = {name: value for name, value in scores.means.items() if name in METRICS[kind]}
            rows.append({"task": f"mean of {len(names)}", "model": who, **means})
        return rows

    @property
    def notes(self) -> tuple[str, ...]:
        """Which figures don't exist, and why."""
        return self.scores[OURS].notes

    def figure(self, who: str, name: str) -> float:
        """One number of a predictor: the only task's, or the mean over tasks; NaN if there is none."""
        return self.scores[who].figure(name)


def evaluate(
    model: PropertyModel,
    molecules: Molecules,
    places: NDArray[np.int64],
    baselines: dict[str, NDArray[np.float64]],
    *,
    alpha: float = ALPHA,
) -> Evaluation:
    """Measures a model and baselines on the same molecules.

    Args:
        model: Trained.
        molecules: With the model's tasks, in its order.
        places: Which of them.
        baselines: Their predictions by name, ``(n, n_tasks)`` each.
        alpha: The share of labels that intervals may miss.
    """
    predicted = predict(model, inputs_of(model, molecules.smiles[places].tolist()), alpha=alpha)
    labels = molecules.labels[places]
    everyone = {OURS: predicted.value, **baselines}
    scores = {who: score(said, labels, molecules.tasks) for who, said in everyone.items()}
    rows: list[dict[str, object]] = []
    for i, task in enumerate(molecules.tasks):
        known = ~np.isnan(labels[:, i])
        for who, made in scores.items():
            values = {name: None if np.isnan(x) else x for name, x in made.tasks[i].values.items()}
            row: dict[str, object] = {"task": task.name, "model": who, **values, "n": int(known.sum())}
            if task.kind == "regression":
                row["unit"] = task.unit or "-"
            if who == OURS:
                row |= _honesty(predicted, known, labels[known, i], i, task)
            rows.append(row)
    return Evaluation(
        rows,
        molecules.tasks,
        labels,
        predicted,
        baselines,
        scores,
        alpha,
        int((predicted.similarity >= 1 - 1e-9).sum()),
    )


def _honesty(
    predicted: Predictions, known: NDArray[np.bool_], target: NDArray[np.float64], i: int, task: Task
) -> dict[str, object]:
    if not len(target):
        return {}
    if task.kind == "classification":
        sets = predicted.sets[known, i]
        inside = sets[np.arange(len(target)), target.astype(int)]
        return {"coverage": float(inside.mean()), "set_size": float(sets.sum(1).mean())}
    low, high = predicted.low[known, i], predicted.high[known, i]
    width = high - low
    return {
        "coverage": float(((low <= target) & (target <= high)).mean()),
        "width": float(width.mean()) if np.isfinite(width).all() else None,
    }
