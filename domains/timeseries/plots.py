"""Pictures: forecasts with their intervals, errors along the horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from mambakit.core.training import curves
from mambakit.domains.timeseries.forecasts import Forecast
from mambakit.domains.timeseries.tables.table import Series

INK, OURS, GREY = "#22303c", "#1668b8", "#8a94a0"
OTHERS = ("#c2571a", "#4a8f3c", "#8a94a0", "#8a4fb0", "#b8860b", "#c0392b")
TRUTH = {"color": INK, "linewidth": 1.1, "linestyle": ":", "label": "what came"}
MOST_PANELS = 8


def forecast_figure(
    histories: Sequence[Series],
    forecasts: Sequence[Forecast],
    *,
    truths: Sequence[Series] | None = None,
    title: str = "",
) -> Figure:
    """History, point forecast and intervals, a panel a series (the first eight).

    Args:
        histories: What was known.
        forecasts: What was said, one for each history.
        truths: Each series with what came as its last rows, drawn over the forecast.
        title: Above all panels.
    """
    shown = min(len(forecasts), MOST_PANELS)
    columns = 1 if shown == 1 else 2
    n_rows = -(-shown // columns)
    figure = Figure(figsize=(10, 1.0 + 3.0 * n_rows) if columns == 2 else (10, 4.2), layout="constrained")
    axes = figure.subplots(n_rows, columns, squeeze=False).flatten()
    for axis in axes[shown:]:
        axis.set_visible(False)
    for i in range(shown):
        axis, history, made = axes[i], histories[i], forecasts[i]
        keep = min(len(history.values), max(3 * len(made.point), 48))
        past, values = history.stamps[-keep:], history.values[-keep:]
        axis.plot(past, values, color=INK, linewidth=1.2, label="history")
        # The forecast begins at the last known value, so that no hole opens between the two.
        stamps = past[-1:].append(made.stamps)
        joined = np.concatenate([np.full((1, made.quantiles.shape[1]), values[-1]), made.quantiles])
        n_levels = len(made.levels)
        for k in range(n_levels // 2):
            low, high = joined[:, k], joined[:, n_levels - 1 - k]
            share = round(100 * (made.levels[n_levels - 1 - k] - made.levels[k]))
            label = f"{share} % interval" if k == 0 else None
            axis.fill_between(stamps, low, high, color=OURS, alpha=0.13, linewidth=0, label=label)
        point = np.concatenate([values[-1:], made.point])
        axis.plot(stamps, point, color=OURS, linewidth=1.6, label="forecast")
        if truths is not None:
            n = len(made.point)
            axis.plot(truths[i].stamps[-n:], truths[i].values[-n:], **TRUTH)
        axis.axvline(past[-1], color=GREY, linewidth=0.8, linestyle="--")
        axis.set_title(made.unique_id, fontsize=10, loc="left")
        tidy(axis, past)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", frameon=False, ncols=4)
    if len(forecasts) > shown:
        title = f"{title} (the first {shown} of {len(forecasts)} series)".strip()
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def horizon_figure(mse_by_step: Mapping[str, Sequence[float]], units: str = "scaled values") -> Figure:
    """Mean squared error along the horizon, ours beside the baselines.

    Args:
        mse_by_step: By forecaster, ours first; ``(horizon,)`` each.
        units: What the errors are measured in.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    first = next(iter(mse_by_step), None)
    for (name, values), color in zip(mse_by_step.items(), cycle((OURS, *OTHERS)), strict=False):
        steps = np.arange(1, len(values) + 1)
        axis.plot(steps, values, color=color, label=name, linewidth=2.0 if name == first else 1.2)
    axis.set_xlabel("steps ahead")
    axis.set_title(f"mean squared error, {units}", fontsize=10, loc="left")
    axis.set_ylim(bottom=0)
    figure.legend(fontsize=8, loc="outside upper right", frameon=False, ncols=4)
    tidy(axis)
    return figure


def tidy(axis, stamps=None) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes have no types
    curves.tidy(axis)
    if stamps is not None and hasattr(stamps, "tz"):
        locator = AutoDateLocator(minticks=3, maxticks=7)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
