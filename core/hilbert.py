"""A Hilbert curve for rectangles of any size: every step goes to a neighbouring cell.

Hilbert's curve goes from one corner of a square to the one beside it: up the first quarter, through the
two far ones, and down the last. The same works for a rectangle of ``length`` (from corner to corner) by
``depth`` cells, wherever such a path exists: cells are coloured as on a chessboard and colours alternate,
so it does if ``length`` is even or ``depth`` odd (or 1). The cuts below keep this true of every part, down
to single rows. For squares whose side is a power of two the result is Hilbert's own curve.

Of the two axes of a rectangle at least one allows the path, the longer one being preferred: that is where
the curve ends. (Hilbert 1891. Other rectangles have been cut up so before, as by Zhang, Kamata & Ueshige
2007, "A pseudo-Hilbert scan for arbitrarily-sized arrays"; the rule of parity here is our own.)
"""

from __future__ import annotations

Path = list[tuple[int, int]]


def hilbert_path(height: int, width: int) -> Path:
    """``(row, column)`` of every cell of the rectangle, from ``(0, 0)`` on, each beside the last.

    It ends in the corner at the other end of the first row, or of the first column.
    """
    if _possible(width, height) and (width >= height or not _possible(height, width)):
        return [(row, column) for column, row in _path(width, height)]
    return _path(height, width)


def _possible(length: int, depth: int) -> bool:
    """Whether a path along ``length``, from corner to corner, can visit every cell."""
    return depth == 1 or (length >= 2 and (length % 2 == 0 or depth % 2 == 1))


def _path(length: int, depth: int) -> Path:
    """Cells ``(along, across)`` from ``(0, 0)`` to ``(length - 1, 0)``; it must be possible."""
    if depth == 1:
        return [(i, 0) for i in range(length)]
    if 2 * length > 3 * depth and length >= 4:  # long: one after the other
        first = length // 2
        if length % 2 == 0 and first % 2:
            first += 1
        return _path(first, depth) + [(first + i, j) for i, j in _path(length - first, depth)]
    left = length // 2
    near = _even_half(depth)
    up = [(i, j) for j, i in _path(near, left)]
    over = [(i, near + j) for i, j in _path(length, depth - near)]
    down = [(length - 1 - i, near - 1 - j) for j, i in _path(near, length - left)]
    return up + over + down


def _even_half(depth: int) -> int:
    """An even number near half of ``depth`` (from 2), and less than it; 1 of 2."""
    if depth == 2:
        return 1
    half = depth // 2
    return half + half % 2
