"""Pictures of an evaluation: accuracy by length of list, and by kind of case."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from mambakit.core.errors import UsageError
from mambakit.core.training.curves import tidy
from mambakit.domains.recommendation import metrics
from mambakit.domains.recommendation.evaluation import Evaluation
from mambakit.domains.recommendation.ranking import FILTERS

COLORS = ("#1668b8", "#c2571a", "#4a8f3c", "#8a94a0", "#8a4fb0", "#b8860b", "#c0392b")
TITLES = {"unfiltered": "all items", "filtered": "without items seen before"}
LABELS = {
    "history": "events before the case; below, the number of cases",
    "gap": "time since the event before; below, the number of cases",
    "target": "whether the target was seen in training; below, the number of cases",
}


def ndcg_figure(evaluation: Evaluation, longest: int = 50) -> Figure:
    """NDCG@k over k of each scorer, all items at the left and unseen ones at the right.

    Args:
        evaluation: What was measured.
        longest: The greatest k.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    ks = np.arange(1, longest + 1)
    for axis, column in zip(axes, FILTERS, strict=True):
        for name, color in zip(evaluation.scorers, cycle(COLORS), strict=False):
            ranks = evaluation.ranks[name, column]
            values = [metrics.ndcg(ranks, int(k)).mean() for k in ks]
            first = name == evaluation.scorers[0]
            axis.plot(ks, values, color=color, linewidth=2.0 if first else 1.3, label=name)
        axis.set_title(f"NDCG@k, {TITLES[column]}", fontsize=10, loc="left")
        axis.set_xlabel("k")
        tidy(axis)
    axes[0].set_ylim(bottom=0)  # once both are drawn: it ends the scaling of the shared axis
    _legend(figure, axes[0])
    return figure


def groups_figure(evaluation: Evaluation, by: str = "history", metric: str = "") -> Figure:
    """A metric of parts of the cases, with confidence intervals; under each part its number of cases.

    Args:
        evaluation: What was measured.
        by: ``history``, ``gap`` or ``target``.
        metric: Such as ``ndcg@10``; NDCG at 10, or at the longest list measured, by default.

    Raises:
        UsageError: On a grouping or metric that was not measured.
    """
    metric = metric or f"ndcg@{10 if 10 in evaluation.ks else evaluation.ks[-1]}"
    groups = evaluation.groups[evaluation.groups.by == by]
    if not len(groups):
        raise UsageError(f"by: expected one of {', '.join(evaluation.groups.by.unique())}, got {by!r}")
    if metric not in groups:
        raise UsageError(f"metric: expected one that was measured, such as ndcg@10, got {metric!r}")
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = list(dict.fromkeys(groups.group))
    width = 0.8 / len(evaluation.scorers)
    for axis, column in zip(axes, FILTERS, strict=True):
        for i, (name, color) in enumerate(zip(evaluation.scorers, cycle(COLORS), strict=False)):
            mine = (groups.scorer == name) & (groups["filter"] == column)
            own = groups[mine].set_index("group").loc[labels]
            low, high = (own[f"{metric}-{end}"].fillna(own[metric]) for end in ("lo", "hi"))
            reach = np.stack([own[metric] - low, high - own[metric]])
            at = np.arange(len(labels)) + (i - (len(evaluation.scorers) - 1) / 2) * width
            bar = {"elinewidth": 0.8, "ecolor": "#22303c"}
            axis.bar(at, own[metric], width, yerr=reach, color=color, label=name, error_kw=bar)
        counts = own.cases.tolist()
        axis.set_xticks(range(len(labels)), [f"{a}\n{n:,}" for a, n in zip(labels, counts, strict=True)])
        axis.set_title(f"{_upper(metric)}, {TITLES[column]}", fontsize=10, loc="left")
        axis.set_xlabel(LABELS[by])
        tidy(axis)
    axes[0].set_ylim(bottom=0)
    _legend(figure, axes[0])
    return figure


def _upper(metric: str) -> str:
    name, at, k = metric.partition("@")
    return name.upper() + at + k


def _legend(figure, axis) -> None:  # type: ignore[no-untyped-def]  # matplotlib has no types
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", frameon=False, ncols=6)
