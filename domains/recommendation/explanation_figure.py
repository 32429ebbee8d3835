"""The picture of an explanation: a panel of bars an item, a row an event."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mambakit.core.training.curves import tidy
from mambakit.domains.recommendation.explaining import Explanation

_FOR, _AGAINST, _REST, _INK = "#1668b8", "#c2571a", "#8a94a0", "#22303c"
# what a reader can still take in
_MOST_EVENTS, _MOST_ITEMS = 24, 6
_LONG, _WIDE = 34, 22


def explanation_figure(found: Explanation, titles: Mapping[str, str] | None = None) -> Figure:
    """Bars of what each event adds to each item (the first six), events from the first to the last.

    Of long histories the 24 events that add or take most for any of the items; the others are added up in a
    row of their own, and so is what is no event's.

    Args:
        found: From ``explain``.
        titles: Of items, by name.
    """
    titles = titles or {}
    values = found.contribution[:_MOST_ITEMS]
    most = np.argsort(-np.abs(values).max(0), kind="stable")[:_MOST_EVENTS]
    shown = np.sort(most)
    n_others = len(found.past) - len(shown)
    rows = [
        f"{_cut(titles.get(name, '') or name, _LONG)}  {when[:10]}".rstrip()
        for name, when in ((found.past[i], found.time[i]) for i in shown)
    ]
    bars = [values[:, shown]]
    if n_others:
        rows.append(f"{n_others} other events")
        bars.append((values.sum(1) - values[:, shown].sum(1))[:, None])
    rows.append("rest (no event's)")
    table = np.concatenate([*bars, found.rest[: len(values), None]], axis=1)

    k = len(table)
    figure = Figure(figsize=(4.2 + 2.0 * k, 1.9 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots(1, k, sharex=True, sharey=True, squeeze=False)[0]
    at = np.arange(len(rows))
    for axis, own, name, rank, score in zip(axes, table, found.items, found.rank, found.score, strict=False):
        colors = np.where(own >= 0, _FOR, _AGAINST)
        colors[len(shown) :] = _REST
        axis.barh(at, own, color=colors, height=0.75)
        axis.axvline(0, color=_INK, linewidth=0.8)
        label = _cut(titles.get(name, "") or name, _WIDE)
        lift = score - found.average
        axis.set_title(f"{rank}. {label}\nlift {lift:.2f}", fontsize=9, loc="left", parse_math=False)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        tidy(axis)
    axes[0].set_yticks(at, rows, fontsize=8)
    for label in axes[0].get_yticklabels():
        label.set_parse_math(False)  # a dollar sign is one
    axes[0].set_ylim(len(rows) - 0.4, -0.6)  # the first event is at the top
    more = len(found.items) - k
    method = found.method.replace("-", " ", 1) if found.method == "hidden-attention" else found.method
    figure.suptitle(
        f"Why these items for user {found.user} ({method})" + (f"; {more} more not shown" if more else ""),
        fontsize=11,
        x=0.01,
        ha="left",
        parse_math=False,
    )
    figure.supxlabel("added to the item's log-odds against an average item, nats", fontsize=9)
    return figure


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
