"""The picture of known_tasks.py: who solves what, at which lengths, and how fast it is learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from known_tasks_runs import NETWORKS, PLANS
from matplotlib.figure import Figure

from mambakit.core.training.curves import tidy

Groups = dict[tuple[str, str], list[dict[str, Any]]]

_COLORS = dict(zip(NETWORKS, ("#8ab4d8", "#1668b8", "#c2571a", "#8a4fb0", "#4a8f3c", "#8a94a0"), strict=True))


def draw(groups: Groups, path: Path) -> None:
    """Writes the picture of the runs by task and network: a row of panels for every task there is.

    Above, accuracy by the test's length; below, in validation while training, each seed a line.
    """
    tasks = [task for task in PLANS if any(key[0] == task for key in groups)]
    figure = Figure(figsize=(3.1 * len(tasks) + 0.6, 5.6), layout="constrained")
    above, below = figure.subplots(2, len(tasks), squeeze=False, sharey=True)
    for task, tested, learnt in zip(tasks, above, below, strict=True):
        for network, color in _COLORS.items():
            runs = groups.get((task, network), [])
            if not runs:
                continue
            lengths = [int(length) for length in runs[0]["test"]]
            values = np.array([list(run["test"].values()) for run in runs])
            tested.plot(lengths, values.mean(0), "o-", color=color, markersize=4, label=network)
            tested.fill_between(lengths, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
            for run in runs:
                learnt.plot(*zip(*run["curve"], strict=True), color=color, linewidth=0.9, alpha=0.8)
        for axis in (tested, learnt):
            axis.axhline(PLANS[task].task.chance, color="#b9c0c8", linewidth=0.8, linestyle=":")
            axis.set_ylim(-0.02, 1.04)
            tidy(axis)
        tested.set_xscale("log", base=2)
        tested.set_title(f"{task}: trained at {PLANS[task].trained_length}", fontsize=9, loc="left")
        tested.set_xlabel("tokens of the test", fontsize=8)
        learnt.set_xlabel("optimizer steps", fontsize=8)
    above[0].set_ylabel("accuracy, mean and range of seeds", fontsize=8)
    below[0].set_ylabel("accuracy in validation", fontsize=8)
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(_COLORS), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
