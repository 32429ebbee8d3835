"""Pictures of an evaluation: predicted over measured, ROC curves, error by distance from training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from mambakit.core.training.curves import tidy
from mambakit.domains.molecules.beside import FOREST
from mambakit.domains.molecules.evaluation import OURS, Evaluation

_OURS, _OTHER, _MARK = "#1668b8", "#8a94a0", "#c2571a"
_MOST = 4  # pictures side by side


def parity_figure(evaluation: Evaluation) -> Figure | None:
    """Predicted over measured values with their intervals; None without regressions."""
    places = [i for i, task in enumerate(evaluation.tasks) if task.kind == "regression"][:_MOST]
    if not places:
        return None
    figure = Figure(figsize=(4.6 * len(places), 4.4), layout="constrained")
    for axis, i in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        task = evaluation.tasks[i]
        known = ~np.isnan(evaluation.labels[:, i])
        target, said = evaluation.labels[known, i], evaluation.predicted.value[known, i]
        low, high = evaluation.predicted.low[known, i], evaluation.predicted.high[known, i]
        if np.isfinite(low).all() and np.isfinite(high).all():
            axis.vlines(target, low, high, color=_OTHER, alpha=0.35, linewidth=0.8)
        axis.scatter(target, said, s=12, color=_OURS, zorder=3)
        if len(target):
            ends = [min(target.min(), said.min()), max(target.max(), said.max())]
            axis.plot(ends, ends, color=_MARK, linewidth=1)
        unit = f", {task.unit}" if task.unit else ""
        axis.set_xlabel(f"measured{unit}", fontsize=9)
        axis.set_ylabel(f"predicted{unit}", fontsize=9)
        axis.set_title(task.name, fontsize=10, loc="left")
        tidy(axis)
    return figure


def roc_figure(evaluation: Evaluation) -> Figure | None:
    """ROC curves of ours and the forest; None without a classification that has labels of both classes."""
    from sklearn.metrics import roc_curve

    places = []
    for i, task in enumerate(evaluation.tasks):
        labels = evaluation.labels[:, i]
        if task.kind == "classification" and len(np.unique(labels[~np.isnan(labels)])) == 2:
            places.append(i)
    places = places[:_MOST]
    if not places:
        return None
    figure = Figure(figsize=(4.4 * len(places), 4.2), layout="constrained")
    for axis, i in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        known = ~np.isnan(evaluation.labels[:, i])
        target = evaluation.labels[known, i]
        for who, color in ((FOREST, _OTHER), (OURS, _OURS)):
            said = evaluation.predicted.value if who == OURS else evaluation.others.get(who)
            if said is not None:
                wrong, right, _ = roc_curve(target, said[known, i])
                axis.plot(wrong, right, color=color, label=who)
        axis.plot([0, 1], [0, 1], color="#e6e9ed", linewidth=1)
        axis.set_xlabel("share of zeros taken for ones", fontsize=9)
        axis.set_ylabel("share of ones found", fontsize=9)
        axis.set_title(evaluation.tasks[i].name, fontsize=10, loc="left")
        axis.legend(fontsize=8, frameon=False)
        tidy(axis)
    return figure


def domain_figure(evaluation: Evaluation) -> Figure | None:
    """The first regression's absolute error over similarity to the nearest training molecule; else None."""
    if evaluation.tasks[0].kind != "regression" or not len(evaluation.labels):
        return None
    known = ~np.isnan(evaluation.labels[:, 0])
    error = np.abs(evaluation.predicted.value[known, 0] - evaluation.labels[known, 0])
    near = evaluation.predicted.similarity[known]
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.scatter(near, error, s=12, color=_OURS, alpha=0.7)
    edges = np.linspace(0, 1, 6)
    for low, high in pairwise(edges):
        inside = (near >= low) & ((near < high) | (high == 1))
        if inside.sum() >= 3:
            axis.hlines(np.sqrt((error[inside] ** 2).mean()), low, high, color=_MARK)
    unit = evaluation.tasks[0].unit
    axis.set_xlabel("similarity to the nearest training molecule", fontsize=9)
    axis.set_ylabel(f"absolute error{f', {unit}' if unit else ''}", fontsize=9)
    axis.set_title("error and distance from training (bars: RMSE)", fontsize=10, loc="left")
    tidy(axis)
    return figure
