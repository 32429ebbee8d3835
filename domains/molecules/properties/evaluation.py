"""A property model beside a random forest and the training mean on labelled molecules, in one table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mambakit.domains.molecules.molecules import Molecules, Task
from mambakit.domains.molecules.properties.model import PropertyModel
from mambakit.domains.molecules.properties.prediction import ALPHA, Predictions, inputs_of, predict
from mambakit.domains.molecules.properties.scores import classification_scores, regression_scores

OURS, FOREST, MEAN = "mambakit", "random forest", "training mean"
_OF_NUMBERS = ("rmse", "mae", "r2")
_OF_CLASSES = ("roc_auc", "pr_auc", "log_loss")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores on labelled molecules.

    Attributes:
        rows: One mapping a task and predictor. Of numbers ``rmse``, ``mae`` (in ``unit``) and ``r2``, of
            classes ``roc_auc``, ``pr_auc`` and ``log_loss``; None where the labels can't tell. Of ours also
            ``coverage``, the share of labels inside the intervals or sets, and their mean ``width`` or size.
        tasks: What was measured.
        labels: ``(n, n_tasks)``.
        predicted: What the model says of the same molecules.
        others: Predictions of the baselines by name, ``(n, n_tasks)`` each.
        alpha: The share of labels that intervals may miss.
        n_known: Molecules that were trained on too, by their fragments.
    """

    rows: list[dict[str, object]]
    tasks: tuple[Task, ...]
    labels: NDArray[np.float64]
    predicted: Predictions
    others: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    alpha: float = ALPHA
    n_known: int = 0

    def table(self, kind: str) -> list[dict[str, object]]:
        """The rows of regressions or classifications, with the mean over tasks where there are several."""
        names = {task.name for task in self.tasks if task.kind == kind}
        rows = [row for row in self.rows if row["task"] in names]
        if len(names) < 2:
            return rows
        means = []
        # units differ between regressions, so only their share of explained variance has a mean
        keys = ("r2", "coverage") if kind == "regression" else (*_OF_CLASSES, "coverage")
        for who in dict.fromkeys(str(row["model"]) for row in rows):
            mine = [row for row in rows if row["model"] == who]
            mean: dict[str, object] = {"task": f"mean of {len(mine)}", "model": who}
            for key in keys:
                values = [row[key] for row in mine if isinstance(row.get(key), float)]
                if values:
                    mean[key] = float(np.mean(values))  # type: ignore[arg-type]
            means.append(mean)
        return rows + means

    def score(self, who: str) -> float | None:
        """RMSE, or ROC-AUC, of one predictor: the mean over the tasks of the first one's kind."""
        key = "rmse" if self.tasks[0].kind == "regression" else "roc_auc"
        values = [row[key] for row in self.rows if row["model"] == who and isinstance(row.get(key), float)]
        return float(np.mean(values)) if values else None  # type: ignore[arg-type]


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
    rows: list[dict[str, object]] = []
    for i, task in enumerate(molecules.tasks):
        known = ~np.isnan(labels[:, i])
        target = labels[known, i]
        for who, said in {OURS: predicted.value, **baselines}.items():
            row: dict[str, object] = {"task": task.name, "model": who}
            if task.kind == "regression":
                row |= regression_scores(target, said[known, i])
                row["unit"] = task.unit or "-"
            else:
                row |= classification_scores(target, said[known, i])
            if who == OURS:
                row |= _honesty(predicted, known, target, i, task)
            row["n"] = int(known.sum())
            rows.append(row)
    return Evaluation(
        rows,
        molecules.tasks,
        labels,
        predicted,
        baselines,
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
