"""Pictures of a classifier: what it takes for what, and a keyword's trade."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mambakit.core.training.curves import tidy
from mambakit.domains.speech.classify.evaluation import ClassifyEvaluation, KeywordEvaluation

_MOST_NUMBERED = 20


def confusion_figure(evaluation: ClassifyEvaluation) -> Figure:
    """True classes down, ours along, as shares of the true ones."""
    counts = evaluation.confusion
    size = min(3.0 + 0.45 * len(counts), 14.0)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= _MOST_NUMBERED:
        for i, j in np.argwhere(counts > 0):
            color = "white" if shares[i, j] > 0.55 else "#22303c"
            axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=color)
    turned = 0 if max(map(len, evaluation.classes)) <= 3 else 90
    axis.set_xticks(range(len(counts)), evaluation.classes, rotation=turned, fontsize=8)
    axis.set_yticks(range(len(counts)), evaluation.classes, fontsize=8)
    axis.set_xlabel("taken for")
    axis.set_ylabel("is")
    axis.set_title(f"{int(counts.trace())} of {int(counts.sum())} right", fontsize=10, loc="left")
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the class")
    return figure


def keyword_figure(evaluation: KeywordEvaluation) -> Figure:
    """Misses of one class over the others that are taken for it, and over false alarms an hour, if known."""
    curves = [(evaluation.trade, 100.0, "other recordings taken for it, %")]
    if evaluation.hourly is not None:
        curves.append((evaluation.hourly, 1.0, "false alarms an hour"))
    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (trade, scale, label) in zip(axes, curves, strict=True):
        axis.step(scale * trade.false_alarms, 100 * trade.misses, where="post", color="#1668b8")
        axis.set_xlabel(label)
        axis.set_ylabel("missed, %")
        tidy(axis)
    title = f"{evaluation.keyword}: equal error {evaluation.equal_error:.1%}, area {evaluation.area:.4f}"
    figure.axes[0].set_title(title, fontsize=10, loc="left")
    return figure
