"""Pictures of attributions: bars over tokens, heat maps of who reads whom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from mambakit.core.attribution.result import Attribution

_FOR, _AGAINST, _INK, _GREY = "#1668b8", "#c2571a", "#22303c", "#8a94a0"
# tokens in a line of bars, names along an axis of a heat map, and panels that a reader can still take in
_PER_LINE, _MOST_NAMES, _MOST_PANELS = 48, 48, 12
_DOTS = 150


def attribution_figure(found: Attribution) -> Figure:
    """Bars over the tokens (in lines of 48), and below them a heat map of each matrix."""
    n_lines = -(-max(len(found.labels), 1) // _PER_LINE)
    maps = dict(list(found.matrices.items())[:_MOST_PANELS])
    columns = _columns(len(maps))
    n_rows = -(-len(maps) // columns)
    width = max(7.0, min(14.0, 0.28 * min(len(found.labels), _PER_LINE) + 2.0), 4.3 * columns)
    heights = [1.0 + 1.4 * n_lines, 3.9 * n_rows] if maps else [1.0 + 1.4 * n_lines]
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(f"{found.method.capitalize()}: {found.target}", fontsize=11, parse_math=False)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _bars(parts[0], found, n_lines)
    if maps:
        more = len(found.matrices) - len(maps)
        _heat_maps(parts[1], maps, found.labels, columns, scale=found.matrix_scale, more=more)
    return figure


def heat_map_figure(
    matrices: Mapping[str, ArrayLike],
    labels: Sequence[str] | None = None,
    *,
    title: str = "",
    scale: str = "weight",
) -> Figure:
    """A heat map for each matrix (the first twelve), negative numbers in a colour of their own.

    Args:
        matrices: ``(length, length)`` by name, such as a block's heads; a row for the token that reads.
        labels: The tokens' names; their numbers by default.
        title: Above all.
        scale: What the numbers are, beside the colours.

    Raises:
        ValueError: If there are no matrices, one is not square, or there are other than ``length`` labels.
    """
    arrays = {name: np.asarray(matrix, dtype=np.float64) for name, matrix in matrices.items()}
    if not arrays:
        raise ValueError("matrices: expected at least one, got none")
    length = len(next(iter(arrays.values())))
    for name, array in arrays.items():
        if array.shape != (length, length):
            raise ValueError(f"matrices: {name} has shape {array.shape}, expected {(length, length)}")
    if labels is not None and len(labels) != length:
        raise ValueError(f"labels: expected one for each of the {length} tokens, got {len(labels)}")
    shown = dict(list(arrays.items())[:_MOST_PANELS])
    columns = _columns(len(shown))
    n_rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.3 * columns + 0.4, 3.9 * n_rows + 0.6), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    _heat_maps(figure, shown, labels, columns, scale=scale, more=len(arrays) - len(shown))
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, folders included; returns the path.

    Raises:
        ValueError: If the ending names no format that matplotlib writes.
    """
    path = Path(path)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.lower().lstrip(".") not in known:
        raise ValueError(f"path: expected an ending of {', '.join(sorted(known))}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DOTS)
    return path


def _bars(figure: Any, found: Attribution, n_lines: int) -> None:
    scores = found.scores
    low, high = min(scores.min(initial=0.0), 0.0), max(scores.max(initial=0.0), 0.0)
    margin = 0.08 * ((high - low) or 1.0)
    per_line = len(scores) if n_lines == 1 else _PER_LINE
    lines = figure.subplots(n_lines, 1, squeeze=False)[:, 0]
    for k, axis in enumerate(lines):
        at = range(k * per_line, min((k + 1) * per_line, len(scores)))
        values = scores[at.start : at.stop]
        axis.bar(at, values, color=np.where(values >= 0, _FOR, _AGAINST), width=0.8)
        axis.axhline(0, color=_INK, linewidth=0.8)
        axis.set_xlim(k * per_line - 0.6, (k + 1) * per_line - 0.4)
        axis.set_ylim(low - (margin if low < 0 else 0), high + margin)
        _name_ticks(axis.xaxis, at, [found.labels[i] for i in at])
        axis.tick_params(axis="y", labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    unit = "added to the target" if found.signed else "share read"
    lines[n_lines // 2].set_ylabel(unit, fontsize=9)
    if found.signed:
        signs = [Patch(color=_FOR, label="speaks for"), Patch(color=_AGAINST, label="speaks against")]
        lines[0].legend(
            handles=signs, fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1)
        )
    notes = []
    if found.value is not None and found.baseline_value is not None:
        notes.append(f"value {found.value:.4g}, at the baseline {found.baseline_value:.4g}")
    if found.gap is not None:
        notes.append(f"the scores' sum is off by {found.gap:.1g}")
    lines[0].set_title("; ".join(notes), fontsize=8, color=_GREY, loc="left")


def _heat_maps(
    figure: Any,
    matrices: Mapping[str, Any],
    labels: Sequence[str] | None,
    columns: int,
    *,
    scale: str,
    more: int,
) -> None:
    n_rows = -(-len(matrices) // columns)
    axes = figure.subplots(n_rows, columns, squeeze=False).flatten()
    for axis in axes[len(matrices) :]:
        axis.set_visible(False)
    for axis, (name, matrix) in zip(axes, matrices.items(), strict=False):
        largest = float(np.abs(matrix).max(initial=0.0)) or 1.0
        if (matrix < 0).any():
            options = {"cmap": "RdBu", "norm": TwoSlopeNorm(0.0, -largest, largest)}
        else:
            options = {"cmap": "Blues", "vmin": 0.0, "vmax": largest}
        image = axis.imshow(matrix, interpolation="nearest", **options)
        axis.set_title(name, fontsize=9, loc="left", parse_math=False)
        axis.set_xlabel("token that is read", fontsize=8)
        axis.set_ylabel("token that reads", fontsize=8)
        length = len(matrix)
        every = -(-length // _MOST_NAMES)
        at = range(0, length, every)
        names = [str(i) for i in at] if labels is None else [labels[i] for i in at]
        for direction in (axis.xaxis, axis.yaxis):
            _name_ticks(direction, at, names, most=24)
        bar = figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.set_label(scale, fontsize=8)
    if more > 0:
        figure.supxlabel(f"and {more} more that are not shown", fontsize=8, color=_GREY)


def _columns(n_panels: int) -> int:
    return max(1, math.ceil(math.sqrt(n_panels)))


def _name_ticks(axis: Any, at: Any, names: Sequence[str], *, most: int = _PER_LINE) -> None:
    """Tokens' names as tick labels; long ones stand upright."""
    shown = [_visible(name) for name in names]
    axis.set_ticks(at, shown)
    longest = max((len(name) for name in shown), default=0)
    size = 9 if len(shown) <= 24 else 7 if len(shown) <= most else 6
    for label in axis.get_ticklabels():
        label.set_parse_math(False)  # a dollar sign is one
        label.set_fontsize(size)
        if axis.axis_name == "x" and longest * len(shown) > most:
            label.set_rotation(90)


def _visible(name: str) -> str:
    """White space as something to see, and long names cut."""
    name = name.replace(" ", "␣").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return name if len(name) <= 14 else name[:13] + "…"
