"""The picture of anomaly scores: the series and what was forecast of it, the score, flagged rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mambakit.domains.timeseries.anomalies.metrics import labelled_ranges
from mambakit.domains.timeseries.plots import GREY, INK, OTHERS, OURS, tidy

MOST_SERIES = 4


def anomaly_figure(table: pd.DataFrame) -> Figure:
    """Two panels a series (the first four): values over their band, and the score; flagged rows shaded.

    Args:
        table: As ``anomaly_scores`` gives it.
    """
    names = list(table["unique_id"].unique())
    shown = names[:MOST_SERIES]
    figure = Figure(figsize=(11, 0.6 + 3.6 * len(shown)), layout="constrained")
    axes = figure.subplots(2 * len(shown), 1, squeeze=False, height_ratios=[2, 1] * len(shown))[:, 0]
    for i, name in enumerate(shown):
        one = table[table["unique_id"] == name]
        stamps, above, below = pd.Index(one["ds"]), axes[2 * i], axes[2 * i + 1]
        above.fill_between(stamps, one["lo"], one["hi"], color=OURS, alpha=0.18, linewidth=0, label="band")
        above.plot(stamps, one["y_hat"], color=OURS, linewidth=0.7, label="forecast")
        above.plot(stamps, one["y"], color=INK, linewidth=0.9, label="series")
        below.plot(stamps, one["score"], color=OTHERS[0], linewidth=1.0, label="score")
        below.axhline(1.0, color=GREY, linewidth=0.7, linestyle="--")
        for begin, end in labelled_ranges(one["anomaly"].to_numpy(bool)):
            for axis in (above, below):
                axis.axvspan(stamps[begin], stamps[end - 1], color=OTHERS[0], alpha=0.25, linewidth=0.8)
        # one wild forecast is not to flatten the series
        values = one["y"].to_numpy(np.float64)
        low, high = np.nanmin(values), np.nanmax(values)
        room = 0.25 * (high - low) or 1.0
        above.set_ylim(low - room, high + room)
        below.set_ylim(bottom=0)
        above.set_title(str(name), fontsize=10, loc="left")
        below.set_ylabel("score", fontsize=8)
        below.sharex(above)
        above.tick_params(labelbottom=False)
        tidy(above)
        tidy(below, stamps)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", frameon=False, ncols=3)
    if len(names) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(names)} series", fontsize=11)
    return figure
