"""A picture of filled values, with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

MOST_PANELS = 8
_INK, _OURS = "#22303c", "#1668b8"
_MOST_ROWS = 300


def imputation_figure(frame: pd.DataFrame) -> Figure:
    """Of each series (the first eight) the stretch in which most is filled.

    Args:
        frame: What ``imputation.impute`` gives.
    """
    parts = [part for _, part in frame.groupby("unique_id", sort=False)][:MOST_PANELS]
    columns = 1 if len(parts) == 1 else 2
    n_rows = -(-len(parts) // columns)
    figure = Figure(figsize=(10, 1.0 + 3.0 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, columns, squeeze=False).flatten()
    levels = [name for name in frame.columns if name.startswith("q") and name[1:2].isdigit()]
    for axis in axes[len(parts) :]:
        axis.set_visible(False)
    for axis, whole in zip(axes, parts, strict=False):
        part = _stretch(whole)
        filled = part["filled"].to_numpy()
        # from each gap's last value to its next one, so that the drawn line has no hole
        shown = filled | np.roll(filled, 1) | np.roll(filled, -1)
        for k in range(len(levels) // 2):
            low, high = part[levels[k]], part[levels[-1 - k]]
            axis.fill_between(part["ds"], low, high, where=shown, color=_OURS, alpha=0.15, linewidth=0)
        axis.plot(part["ds"], part["y_hat"].where(shown), color=_OURS, linewidth=1.2)
        axis.plot(part["ds"][filled], part["y_hat"][filled], ".", color=_OURS, markersize=4, label="filled")
        axis.plot(part["ds"], part["y"], ".-", color=_INK, linewidth=1.0, markersize=2.5, label="observed")
        axis.set_title(str(part["unique_id"].iloc[0]), fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="x", labelrotation=20)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", frameon=False, ncols=2)
    return figure


def _stretch(part: pd.DataFrame) -> pd.DataFrame:
    if len(part) <= _MOST_ROWS:
        return part
    sums = np.concatenate([[0], part["filled"].to_numpy().cumsum()])
    counts = sums[_MOST_ROWS:] - sums[:-_MOST_ROWS]
    best = np.flatnonzero(counts == counts.max())  # the middle one, so that the gap is not at an edge
    first = int(best[len(best) // 2])
    return part.iloc[first : first + _MOST_ROWS]
