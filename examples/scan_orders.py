"""A picture of the orders in which scans visit the cells of a grid: ``python examples/scan_orders.py``.

Time runs from dark to bright, from the ring to the square; small grids have the numbers too. Moves to a cell
that is no neighbour are dotted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mambakit.core.scans import scan_orders

PANELS: list[tuple[str, str, tuple[int, ...], dict[str, object], int]] = [
    ("cross: rows (raster)", "cross", (8, 8), {}, 0),
    ("cross: columns", "cross", (8, 8), {}, 1),
    ("cross: rows backwards", "cross", (8, 8), {}, 2),
    ("cross: columns backwards", "cross", (8, 8), {}, 3),
    ("zigzag: rows", "zigzag", (8, 8), {}, 0),
    ("zigzag: columns", "zigzag", (8, 8), {}, 1),
    ("zigzag: rows backwards", "zigzag", (8, 8), {}, 2),
    ("zigzag: columns backwards", "zigzag", (8, 8), {}, 3),
    ("windows, size 4", "windows", (8, 8), {"size": 4}, 0),
    ("dilated, size 2", "dilated", (6, 6), {"size": 2}, 0),
    ("hilbert, 8 x 8", "hilbert", (8, 8), {}, 0),
    ("hilbert, 11 x 14", "hilbert", (11, 14), {}, 0),
    ("spatio-temporal: space first", "spatio_temporal", (3, 3, 2), {}, 0),
    ("spatio-temporal: time first", "spatio_temporal", (3, 3, 2), {}, 1),
    ("zigzag of 3 frames", "zigzag", (3, 3, 2), {}, 0),
    ("hilbert of 3 frames", "hilbert", (3, 3, 2), {}, 0),
]


def draw_order(axes: Axes, order: Sequence[int], grid: tuple[int, ...]) -> None:
    """The path through a plane, or through frames drawn side by side with a gap between them."""
    frames, height, width = (1, *grid)[-3:]
    frame, row, column = np.unravel_index(np.asarray(order), (frames, height, width))
    points = np.stack([frame * (width + 1) + column, row], axis=1).astype(float)
    steps = np.abs(np.diff(np.stack([frame, row, column], axis=1), axis=0)).sum(axis=1)
    beside = (steps == 1) & (np.diff(frame) == 0)
    colours = matplotlib.colormaps["plasma"](np.linspace(0, 0.9, len(points)))
    lines = np.stack([points[:-1], points[1:]], axis=1)
    axes.add_collection(LineCollection(lines[~beside], colors=colours[1:][~beside], lw=0.8, ls=":"))
    axes.add_collection(LineCollection(lines[beside], colors=colours[1:][beside], lw=2.2, capstyle="round"))
    axes.scatter(*points.T, c=colours, s=9, zorder=2)
    axes.scatter(*points[0], s=70, facecolor="none", edgecolor=colours[0], lw=1.6, zorder=3)
    axes.scatter(*points[-1], s=55, marker="s", facecolor="none", edgecolor=colours[-1], lw=1.6, zorder=3)
    for time, (x, y) in enumerate(points if len(points) <= 36 else ()):
        axes.text(x + 0.1, y - 0.12, str(time), fontsize=6, color="#333333")
    for f in range(frames):
        corner = (f * (width + 1) - 0.5, -0.5)
        axes.add_patch(matplotlib.patches.Rectangle(corner, width, height, facecolor="#f2f2f2", zorder=-1))
    axes.set(xlim=(-0.8, frames * (width + 1) - 1.2), ylim=(height - 0.2, -0.8), aspect="equal")
    axes.axis("off")


def draw(path: Path) -> None:
    """All panels into one PNG."""
    figure = Figure(figsize=(10, 9.4), layout="constrained")
    panels = figure.subplots(4, 4, height_ratios=[1, 1, 1, 0.45]).flat
    for axes, (title, scan, grid, options, index) in zip(panels, PANELS, strict=True):
        draw_order(axes, scan_orders(scan, grid, options)[index].tolist(), grid)
        axes.set_title(title, fontsize=9)
    figure.savefig(path, dpi=82, pil_kwargs={"optimize": True})


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
