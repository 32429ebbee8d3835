"""Learning curves from a run's ``metrics.csv``, in the style of all pictures, and a report's section."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from mambakit.core.training.report import Report
from mambakit.core.training.run_folder import RunFolder

if TYPE_CHECKING:
    from mambakit.core.training.result import FitResult

_TRAIN, _KEPT = "#8a94a0", "#c2571a"
_VALIDATION = ("#1668b8", "#4a8f3c", "#8a4fb0")


class Panel(NamedTuple):
    """Some metrics by step."""

    title: str
    names: Sequence[str]
    """Columns of ``metrics.csv``; validation's begin with ``val``."""
    best: Literal["min", "max", ""] = ""
    """Marks the least or greatest value of the last of them: that of the weights kept."""


def learning_figure(metrics_csv: Path, panels: Sequence[Panel]) -> Figure:
    """Metrics by optimizer step, a panel beside the other.

    Args:
        metrics_csv: A run folder's ``metrics.csv``.
        panels: What to draw.
    """
    with metrics_csv.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    figure = Figure(figsize=(5 * len(panels), 3.4), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        colors = cycle(_VALIDATION)
        for name in panel.names:
            pairs = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            color = next(colors) if name.startswith("val") else _TRAIN
            steps, values = [step for step, _ in pairs], [value for _, value in pairs]
            axis.plot(steps, values, color=color, marker="o", markersize=3.5, label=name.replace("/", " "))
        if panel.best and pairs:
            at = int(np.argmin(values) if panel.best == "min" else np.argmax(values))
            axis.plot(steps[at], values[at], "o", color=_KEPT, markersize=7, label="kept")
        axis.set_xlabel("optimizer steps")
        axis.set_title(panel.title, fontsize=10, loc="left")
        axis.legend(fontsize=8, frameon=False)
        tidy(axis)
    return figure


def add_training(
    report: Report, run: RunFolder, result: FitResult, panels: Sequence[Panel], kept: str
) -> None:
    """Adds the section on training, whose curves the run folder keeps too.

    Args:
        report: To add to.
        run: The run.
        result: How it went.
        panels: What to draw.
        kept: Goes on from "The weights kept are those of", and says what else is worth knowing.
    """
    report.add_heading("Training")
    figure = learning_figure(run.metrics_path, panels)
    report.add_figure(run.save_picture(figure, "learning_curve"))
    ended = f"Stopped by: {result.stopped}, after {result.epochs} epochs and {result.steps} steps."
    report.add_text(f"{ended} The weights kept are those of {kept}")


def tidy(axis) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes have no types
    """Few lines: no box, a faint grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e6e9ed", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
