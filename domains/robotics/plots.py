"""Pictures: returns of policies beside those of their data, and what happened in a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mambakit.core.training.curves import tidy
from mambakit.domains.robotics.metrics import bootstrap_interval, interquartile_mean

_COLOURS = ("#1668b8", "#d97706", "#15803d", "#7c3aed", "#be123c", "#0f766e")
_GREY = "#64748b"


def returns_figure(groups: Mapping[str, ArrayLike], *, best_of_data: float | None = None) -> Figure:
    """Each episode's return as a dot, and the interquartile mean with its interval, by group.

    Args:
        groups: Returns by what acted.
        best_of_data: The best return of the data, as a line.
    """
    figure = Figure(figsize=(6.4, 0.9 + 0.62 * max(len(groups), 1)), layout="constrained")
    axis = figure.subplots()
    rng = np.random.default_rng(0)  # of the dots' places across
    for i, (name, returns) in enumerate(groups.items()):
        values = np.asarray(returns, dtype=np.float64)
        colour = _GREY if name == "data" else _COLOURS[i % len(_COLOURS)]
        axis.scatter(values, i + rng.uniform(-0.22, 0.22, len(values)), s=9, alpha=0.4, color=colour, lw=0)
        low, high = bootstrap_interval([values])
        centre = interquartile_mean(values)
        axis.plot([low, high], [i, i], color=colour, lw=5, alpha=0.85, solid_capstyle="butt")
        axis.plot([centre], [i], "|", color="white", ms=9, mew=2)
    if best_of_data is not None:
        axis.axvline(best_of_data, color=_GREY, lw=1, ls="--")
        axis.text(best_of_data, -0.62, " best of the data", fontsize=7, color=_GREY, ha="right")
    axis.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axis.set_ylim(len(groups) - 0.4, -0.8)
    axis.set_xlabel("return (dots: episodes; bar: 95% interval of the interquartile mean)")
    tidy(axis)
    axis.grid(axis="y", visible=False)
    return figure


def rollout_figure(
    rewards: ArrayLike, actions: NDArray[np.float64], *, control_hz: float | None, title: str
) -> Figure:
    """What was earned and done in an episode, over time.

    Args:
        rewards: ``(n,)``.
        actions: ``(n, action_dim)`` or ``(n,)``.
        control_hz: Steps a second; the axis counts steps where it is not known.
        title: Above it.
    """
    earned = np.cumsum(np.asarray(rewards, dtype=np.float64))
    done = actions.reshape(len(actions), -1)
    when = np.arange(len(earned)) / (control_hz or 1.0)
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(when, earned, color=_COLOURS[0])
    above.set_ylabel("return so far")
    above.set_title(title, fontsize=10, loc="left")
    for i in range(min(done.shape[1], len(_COLOURS))):
        below.plot(when, done[:, i], lw=0.8, color=_COLOURS[i], label=f"action {i}")
    below.set_ylabel("action")
    below.set_xlabel("seconds" if control_hz else "steps")
    below.legend(fontsize=7, ncols=6, loc="upper right", frameon=False)
    for axis in (above, below):
        tidy(axis)
    return figure


def error_figure(rows: Sequence[Mapping[str, object]], column: str) -> Figure:
    """Held-out action errors of policies side by side."""
    figure = Figure(figsize=(5.2, 0.8 + 0.45 * len(rows)), layout="constrained")
    axis = figure.subplots()
    values = [float(str(row[column])) for row in rows]
    axis.barh(range(len(rows)), values, color=[_COLOURS[0], *[_GREY] * (len(rows) - 1)])
    axis.set_yticks(range(len(rows)), [str(row["policy"]) for row in rows], fontsize=8)
    axis.invert_yaxis()
    for i, value in enumerate(values):
        axis.text(value, i, f" {value:.4g}", va="center", fontsize=8)
    axis.set_xlabel(f"held-out action error ({column})")
    tidy(axis)
    return figure
