"""Pictures of a design: how the best grew with the oracle calls, and the best molecules."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mambakit.core.training.curves import tidy
from mambakit.domains.molecules.design.history import Called, History
from mambakit.domains.molecules.language.pictures import grid

_BEST, _TOP, _MANY, _EACH = "#c2571a", "#1668b8", "#4a8f3c", "#c3cad2"
_PARTS = ("#1668b8", "#4a8f3c", "#8a4fb0", "#c2571a", "#8a94a0", "#22303c")
_WINDOW = 100


def running_top(rewards: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Mean of the ``k`` best rewards after each call, ``(n_calls,)``."""
    best: list[float] = []
    means = np.zeros(len(rewards))
    for i, reward in enumerate(rewards):
        if len(best) < k:
            heapq.heappush(best, float(reward))
        else:
            heapq.heappushpop(best, float(reward))
        means[i] = sum(best) / len(best)
    return means


def progress_figure(history: History, budget: int) -> Figure:
    """Each molecule's reward and the means of the best by oracle calls; beside it what the components give.

    Args:
        history: The calls so far.
        budget: Where the axis ends.
    """
    table = history.table()
    parts = [name for name in table.columns if name.endswith(":shaped")]
    n_panels = 2 if len(parts) > 1 else 1
    figure = Figure(figsize=(5.6 * n_panels, 3.6), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    calls, rewards = np.arange(1, len(history) + 1), history.rewards
    axes[0].plot(calls, rewards, ".", color=_EACH, markersize=3, label="each molecule")
    for k, color in ((1, _BEST), (10, _TOP), (100, _MANY)):
        label = "best" if k == 1 else f"mean of the best {k}"
        axes[0].plot(calls, running_top(rewards, k), color=color, linewidth=1.6, label=label)
    axes[0].set_title("reward", fontsize=10, loc="left")
    if n_panels == 2:
        for i, part in enumerate(parts):
            means = table[part].fillna(0.0).rolling(_WINDOW, min_periods=1).mean()
            name = part.removesuffix(":shaped")
            axes[1].plot(calls, means, color=_PARTS[i % len(_PARTS)], linewidth=1.4, label=name)
        axes[1].set_title(f"components, mean of the last {_WINDOW} molecules", fontsize=10, loc="left")
    for axis in axes:
        axis.set_xlim(0, max(budget, len(history)))
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("oracle calls")
        axis.legend(fontsize=8, frameon=False)
        tidy(axis)
    return figure


def best_grid(best: Sequence[tuple[int, Called]], path: Path | None = None) -> bytes:
    """Drawings of molecules, each with its reward and call, as PNG; written to ``path`` too if given."""
    return grid(
        [one.smiles for _, one in best],
        path,
        legends=[f"{one.reward:.3f}   call {call}" for call, one in best],
        per_row=5,
    )
