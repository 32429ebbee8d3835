"""Orders in which to read the cells of a grid: an image, a video, or a plain sequence.

An order lists, for every moment, the number of the cell visited then; cells are numbered row by row
(frame by frame first), which is how ``x.flatten(1, -2)`` lays them out. Every scan returns
``(n_orders, n_cells)`` int64, each row a permutation:

    raster, column     row by row; column by column                              1 order each
    cross              both, forth and back: VMamba's SS2D (arXiv:2401.10166)    4
    zigzag             rows and columns, every second one backwards, forth and back, so that each cell is a
                       neighbour of the last: PlainMamba (arXiv:2403.17695), ZigMa (arXiv:2403.13802)    4
    windows            one window after another: LocalMamba (arXiv:2403.09338)   1
    hilbert            a Hilbert curve for any size                              1
    dilated            every n-th cell, then those between: the atrous scan of
                       EfficientVMamba (arXiv:2403.09977)                        1
    spatio_temporal    frame by frame, and each place through time, forth and back:
                       VideoMamba (arXiv:2403.06977)                             4 (2 if one is asked for)

``examples/scan_orders.png`` shows them. In a video the scans of the plane go through the frames in turn;
``zigzag`` and ``hilbert`` take every second frame backwards, and so stay continuous.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mambakit.core.hilbert import hilbert_path

Sizes = int | Sequence[int]


def check_grid(grid: Sequence[int], *dims: int) -> tuple[int, ...]:
    """``grid`` as a tuple, if it has one of these numbers of axes and every size is at least 1.

    Raises:
        TypeError: If it is not a list of whole numbers.
        ValueError: On another number of axes, or a size below 1.
    """
    if not isinstance(grid, Sequence) or not all(type(size) is int for size in grid):
        raise TypeError(f"grid: expected whole numbers such as [height, width], got {grid!r}")
    names = {1: "(length)", 2: "(height, width)", 3: "(frames, height, width)"}
    if len(grid) not in dims:
        wanted = " or ".join(names[n] for n in dims)
        raise ValueError(f"grid: this scan needs {wanted}, got {tuple(grid)}")
    if min(grid) < 1:
        raise ValueError(f"grid: every size must be at least 1, got {tuple(grid)}")
    return tuple(grid)


def raster(grid: Sequence[int]) -> Tensor:
    """Row by row."""
    return _cells(check_grid(grid, 1, 2, 3)).reshape(1, -1)


def column(grid: Sequence[int]) -> Tensor:
    """Column by column, in each frame."""
    return _cells(check_grid(grid, 2, 3)).transpose(-1, -2).reshape(1, -1)


def cross(grid: Sequence[int]) -> Tensor:
    """Rows, columns, rows backwards, columns backwards, as VMamba's SS2D."""
    return with_reversals(torch.cat([raster(check_grid(grid, 2, 3)), column(grid)]))


def zigzag(grid: Sequence[int]) -> Tensor:
    """Rows, columns, and both backwards; each cell beside the last (PlainMamba)."""
    cells = _cells(check_grid(grid, 2, 3))
    orders = torch.stack([_boustrophedon(cells), _boustrophedon(cells.transpose(-1, -2))])
    return with_reversals(orders)


def windows(grid: Sequence[int], size: Sizes = 2) -> Tensor:
    """Window by window, row by row in each; what is left at an edge makes smaller windows.

    Args:
        grid: One to three axes.
        size: Of a window along each axis, or one number for all of them.
    """
    return window_of(grid, size).argsort(stable=True)[None]


def dilated(grid: Sequence[int], size: Sizes = 2) -> Tensor:
    """Every ``size``-th cell of each axis from the first, then the same from the next, and so on.

    Args:
        grid: One to three axes.
        size: Distance along each axis, or one number for all of them.
    """
    return phase_of(grid, size).argsort(stable=True)[None]


def hilbert(grid: Sequence[int]) -> Tensor:
    """A Hilbert curve: each cell beside the last, for every size, and near ones visited near in time.

    It starts in the first corner, and ends at one beside it (see ``mambakit.core.hilbert``).
    """
    grid = check_grid(grid, 2, 3)
    height, width = grid[-2:]
    plane = torch.tensor([row * width + column for row, column in hilbert_path(height, width)])
    if len(grid) == 2:
        return plane[None]
    frames = plane + height * width * torch.arange(grid[0])[:, None]
    frames[1::2] = frames[1::2].flip(1)
    return frames.reshape(1, -1)


def spatio_temporal(grid: Sequence[int], first: str = "both") -> Tensor:
    """Space before time (frame by frame), time before space (each place through all frames), and back.

    Args:
        grid: ``(frames, height, width)``.
        first: ``"spatial"``, ``"temporal"`` or ``"both"``.

    Raises:
        ValueError: On another ``first`` or grid.
    """
    if first not in ("spatial", "temporal", "both"):
        raise ValueError(f"first: expected 'spatial', 'temporal' or 'both', got {first!r}")
    cells = _cells(check_grid(grid, 3)).flatten(1)
    orders = [cells.flatten(), cells.T.flatten()]
    return with_reversals(torch.stack({"spatial": orders[:1], "temporal": orders[1:]}.get(first, orders)))


SCANS: dict[str, Callable[..., Tensor]] = {
    "raster": raster,
    "column": column,
    "cross": cross,
    "zigzag": zigzag,
    "windows": windows,
    "hilbert": hilbert,
    "dilated": dilated,
    "spatio_temporal": spatio_temporal,
}


def scan_orders(
    scan: str,
    grid: Sequence[int],
    options: Mapping[str, object] | None = None,
    *,
    reverse: bool = False,
) -> Tensor:
    """The orders of the scan called ``scan``.

    Args:
        scan: A name in ``SCANS``.
        grid: ``(length)``, ``(height, width)`` or ``(frames, height, width)``.
        options: Its other arguments, such as ``{"size": 4}``.
        reverse: Add each order backwards, unless it is there already.

    Returns:
        ``(n_orders, n_cells)`` int64.

    Raises:
        ValueError: On an unknown scan or option, or a grid that the scan does not take.
    """
    if scan not in SCANS:
        raise ValueError(f"scan: expected one of {', '.join(SCANS)}, got {scan!r}")
    valid = list(inspect.signature(SCANS[scan]).parameters)[1:]
    for name in options or {}:
        if name not in valid:
            has = f"valid options are {', '.join(valid)}" if valid else "it has none"
            raise ValueError(f"options of {scan}: it has no option {name!r}; {has}")
    orders = SCANS[scan](grid, **(options or {}))
    return with_reversals(orders) if reverse else orders


def inverse(orders: Tensor) -> Tensor:
    """When each cell is visited: ``x[order][inverse(order)]`` is ``x``; like ``orders``."""
    return orders.argsort(dim=-1)


def with_reversals(orders: Tensor) -> Tensor:
    """``orders`` and after them those that are not among them when read backwards."""
    have = {tuple(order) for order in orders.tolist()}
    added = [order.flip(0) for order in orders if tuple(order.tolist()[::-1]) not in have]
    return torch.cat([orders, torch.stack(added)]) if added else orders


def window_of(grid: Sequence[int], size: Sizes = 2) -> Tensor:
    """The number of each cell's window, ``(n_cells,)``; arguments as of ``windows``."""
    grid = check_grid(grid, 1, 2, 3)
    sizes = _sizes(grid, size)
    return _number(grid, [torch.arange(n) // s for n, s in zip(grid, sizes, strict=True)])


def phase_of(grid: Sequence[int], size: Sizes = 2) -> Tensor:
    """The number of each cell's pass, ``(n_cells,)``; arguments as of ``dilated``."""
    grid = check_grid(grid, 1, 2, 3)
    sizes = _sizes(grid, size)
    return _number(grid, [torch.arange(n) % s for n, s in zip(grid, sizes, strict=True)])


# The scans that go group by group, and the group of each cell.
GROUPS: dict[str, Callable[..., Tensor]] = {"windows": window_of, "dilated": phase_of}


def _cells(grid: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(grid)).view(grid)


def _boustrophedon(cells: Tensor) -> Tensor:
    """As the ox ploughs: every second row backwards, and every second plane of rows as a whole."""
    if cells.dim() == 1:
        return cells
    rows = torch.stack([_boustrophedon(row) for row in cells])
    rows[1::2] = rows[1::2].flip(1)
    return rows.flatten()


def _sizes(grid: tuple[int, ...], size: Sizes) -> list[int]:
    sizes = [size] * len(grid) if isinstance(size, int) else list(size)
    if len(sizes) != len(grid) or not all(type(s) is int and s >= 1 for s in sizes):
        raise ValueError(f"size: expected a number from 1, or one for each axis of {grid}, got {size!r}")
    return sizes


def _number(grid: tuple[int, ...], parts: Sequence[Tensor]) -> Tensor:
    """One number for each combination of the axes' parts, in their order."""
    number = torch.zeros(grid, dtype=torch.int64)
    for axis, part in enumerate(parts):
        shape = [-1 if i == axis else 1 for i in range(len(grid))]
        number = number * (int(part.max()) + 1) + part.view(shape)
    return number.flatten()
