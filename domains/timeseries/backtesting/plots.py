"""Pictures of a backtest: the best, the median and the worst series, and whether the quantiles are honest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mambakit.domains.timeseries.backtesting.backtest import Backtest
from mambakit.domains.timeseries.metrics import central_pairs
from mambakit.domains.timeseries.plots import GREY, INK, OTHERS, OURS, TRUTH, tidy
from mambakit.domains.timeseries.tables.table import Series


def extremes_figure(result: Backtest, series: Sequence[Series]) -> Figure:
    """Of the first forecaster the best, the median and the worst series by MASE, from their last origin.

    With fewer than three series it is the best, the median and the worst origin.

    Args:
        result: The backtest.
        series: What was backtested.
    """
    name = str(result.rows[0]["forecaster"]).replace(" ", "_")
    chosen = _extremes(result)
    figure = Figure(figsize=(10, 0.8 + 2.7 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
    by_id = {one.unique_id: one for one in series}
    for axis, (what, key, cutoff, error) in zip(axes, chosen, strict=True):
        one = by_id[key]
        part = result.table[(result.table.unique_id == key) & (result.table.cutoff == cutoff)]
        n = int(one.stamps.get_loc(cutoff)) + 1
        keep = min(n, max(3 * len(part), 48))
        axis.plot(
            one.stamps[n - keep : n], one.values[n - keep : n], color=INK, linewidth=1.2, label="history"
        )
        # the forecast begins at the last known value, so that no hole opens between the two
        ds = one.stamps[n - 1 : n].append(pd.Index(part.ds))
        said = {column: np.r_[one.values[n - 1], part[column]] for column in part if column.startswith(name)}
        for level in sorted(result.intervals, reverse=True):
            low, high = (said.get(f"{name}-{side}-{level:g}") for side in ("lo", "hi"))
            if low is not None and high is not None:
                label = f"{level:g} % interval"
                axis.fill_between(ds, low, high, color=OURS, alpha=0.14, linewidth=0, label=label)
        axis.plot(ds, said[name], color=OURS, linewidth=1.6, label="forecast")
        axis.plot(part.ds, part.y, **TRUTH)
        axis.axvline(cutoff, color=GREY, linewidth=0.8, linestyle="--")
        axis.set_title(f"{what}: {key} from {cutoff}, MASE {error:.3g}", fontsize=10, loc="left")
        tidy(axis, one.stamps)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper right", frameon=False, ncols=6)
    return figure


def calibration_figure(
    ranks: Sequence[int], levels: Sequence[float], intervals: Mapping[float, float] | None = None
) -> Figure:
    """Empirical against nominal coverage of the central intervals, and the PIT histogram.

    Honest quantiles lie on the diagonal, and fill the histogram evenly (Gneiting, Balabdaoui & Raftery 2007):
    a hump says too wide, a trough too narrow, a slope biased.

    Args:
        ranks: How many targets had 0, 1, ... of the levels under them, ``n_levels + 1``.
        levels: The quantile levels, increasing.
        intervals: Further central intervals, in per cent, and their coverage, 0 to 1.
    """
    counts = np.asarray(ranks, dtype=np.float64)
    total = max(1.0, counts.sum())
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    nominal, found = [0.0], [0.0]
    for level, (low, high) in sorted(central_pairs(levels).items()):
        nominal.append(level)
        found.append(100 * counts[low + 1 : high + 1].sum() / total)
    left.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", label="honest")
    left.plot(nominal, found, color=OURS, marker="o", markersize=4, label="found")
    if intervals:
        shares = [100 * share for share in intervals.values()]
        left.plot(list(intervals), shares, "s", color=OTHERS[0], markersize=6, label="intervals")
    left.set_xlabel("nominal coverage of the central interval, %")
    left.set_title("targets inside, %", fontsize=10, loc="left")
    left.legend(fontsize=8, frameon=False)
    edges = np.r_[0.0, np.asarray(levels, dtype=np.float64), 1.0]
    width = np.diff(edges)
    right.bar(
        edges[:-1], counts / total / width, width, align="edge", color=OURS, alpha=0.6, edgecolor="white"
    )
    right.axhline(1, color=GREY, linewidth=1, linestyle="--")
    right.set_xlabel("predicted probability of less than what came (PIT)")
    right.set_title("density; 1 is honest", fontsize=10, loc="left")
    for axis in (left, right):
        tidy(axis)
    return figure


def _extremes(result: Backtest) -> list[tuple[str, str, object, float]]:
    """What to call it, the series, the origin, and its MASE."""
    name = str(result.rows[0]["forecaster"])
    own = result.by_series[result.by_series.forecaster == name].set_index("unique_id")
    table = result.table.assign(error=(result.table.y - result.table[name.replace(" ", "_")]).abs())
    by_origin = table.groupby(["unique_id", "cutoff"], sort=False).error.mean().dropna().reset_index()
    if len(own) >= 3:
        last = by_origin.groupby("unique_id").cutoff.last()
        units = own.mase.fillna(np.inf).rename("mase").to_frame().join(last.rename("cutoff"), how="inner")
        units = units.reset_index().sort_values("mase", kind="stable")
    else:  # a MASE of its own for each origin: the series' scale is its MAE over its MASE
        scale = by_origin.unique_id.map(own.mae / own.mase)
        units = by_origin.assign(mase=by_origin.error / scale).sort_values("mase", kind="stable")
    at = {"best": 0, "median": (len(units) - 1) // 2, "worst": len(units) - 1}
    found = {position: what for what, position in reversed(at.items())}  # the same one twice is shown once
    rows = [(found[i], units.iloc[i]) for i in sorted(found)]
    return [(what, str(row.unique_id), row.cutoff, float(row.mase)) for what, row in rows]
