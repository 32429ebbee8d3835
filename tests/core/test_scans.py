from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.scans import SCANS, inverse, phase_of, scan_orders, window_of, with_reversals

IN_SPACE_ONLY = ("column", "cross", "zigzag", "hilbert")
ROOMY = st.integers(1, 12)
PLANES = st.tuples(ROOMY, ROOMY)
VIDEOS = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def grids_of(scan: str) -> st.SearchStrategy[tuple[int, ...]]:
    if scan == "spatio_temporal":
        return VIDEOS
    return PLANES | VIDEOS if scan in IN_SPACE_ONLY else st.tuples(ROOMY) | PLANES | VIDEOS


def places(order: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Coordinates of the cells in the order of their visit, ``(n_cells, axes)``."""
    steps = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    return torch.stack([order // step % n for step, n in zip(steps, grid, strict=True)], dim=1)


def strides(order: torch.Tensor, grid: tuple[int, ...]) -> list[int]:
    """How far each cell is from the one before, in steps along the axes."""
    return places(order, grid).diff(dim=0).abs().sum(1).tolist()


# --- what holds for all


@pytest.mark.parametrize("scan", SCANS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_order_visits_every_cell_once_and_can_be_undone(scan, data):
    grid = data.draw(grids_of(scan))
    orders = scan_orders(scan, grid, reverse=data.draw(st.booleans()))
    n = math.prod(grid)
    cells = torch.arange(n)
    assert orders.dtype == torch.int64
    assert torch.equal(orders.sort(dim=1).values, cells.expand_as(orders))
    back = inverse(orders)
    for order, undo in zip(orders, back, strict=True):
        x = torch.rand(n)
        assert torch.equal(x[order][undo], x)
        assert torch.equal(x[undo][order], x)
    assert torch.equal(inverse(back), orders)


@pytest.mark.parametrize("scan", SCANS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_with_reversals_every_order_is_there_backwards_and_none_is_added_twice(scan, data):
    grid = data.draw(grids_of(scan))
    forward = scan_orders(scan, grid)
    orders = with_reversals(forward)
    assert torch.equal(orders[: len(forward)], forward)
    rows = {tuple(order) for order in orders.tolist()}
    assert {order[::-1] for order in rows} == rows
    assert torch.equal(with_reversals(orders), orders)
    assert len(orders) <= 2 * len(forward)


# --- each by its definition


def test_small_ones_by_hand():
    grid = (2, 3)  # 0 1 2 / 3 4 5
    assert scan_orders("raster", grid).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert scan_orders("column", grid).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_orders("cross", grid).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]
    assert scan_orders("zigzag", grid).tolist() == [
        [0, 1, 2, 5, 4, 3],
        [0, 3, 4, 1, 2, 5],
        [3, 4, 5, 2, 1, 0],
        [5, 2, 1, 4, 3, 0],
    ]
    assert scan_orders("windows", grid).tolist() == [[0, 1, 3, 4, 2, 5]]
    assert scan_orders("dilated", grid).tolist() == [[0, 2, 1, 3, 5, 4]]
    assert scan_orders("dilated", (7,), {"size": 3}).tolist() == [[0, 3, 6, 1, 4, 2, 5]]
    video = (2, 1, 3)  # 0 1 2, then 3 4 5
    assert scan_orders("spatio_temporal", video).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]
    assert scan_orders("spatio_temporal", video, {"first": "temporal"}).tolist() == [
        [0, 3, 1, 4, 2, 5],
        [5, 2, 4, 1, 3, 0],
    ]


@pytest.mark.parametrize("scan", ["hilbert", "zigzag"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_continuous_ones_go_from_neighbour_to_neighbour(scan, data):
    grid = data.draw(grids_of(scan))
    for order in scan_orders(scan, grid):
        assert set(strides(order, grid)) <= {1}


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 5).map(lambda k: 2**k))
def test_hilbert_of_a_power_of_two_fills_quarter_after_quarter(size):
    """Continuous, from corner to corner, and every aligned square visited whole: that is Hilbert's curve."""
    order = scan_orders("hilbert", (size, size))[0]
    assert order[0] == 0
    assert order[-1] in (size - 1, size * (size - 1))
    side = size
    while side >= 1:
        squares = (places(order, (size, size)) // side).view(-1, side * side, 2)
        assert (squares == squares[:, :1]).all()
        side //= 2


@settings(max_examples=50, deadline=None)
@given(PLANES)
def test_hilbert_of_any_size_ends_at_a_corner_beside_the_first(grid):
    height, width = grid
    order = scan_orders("hilbert", grid)[0]
    assert order[0] == 0
    assert order[-1] in (width - 1, (height - 1) * width)


def test_hilbert_keeps_near_cells_near():
    """n steps go no further than sqrt(6 n), as on Hilbert's own curve (Gotsman & Lindenbaum 1996)."""
    for grid in ((32, 32), (30, 50), (27, 45), (25, 48)):
        path = places(scan_orders("hilbert", grid)[0], grid)
        for n in (16, 64, 256):
            spans = (path[n:] - path[:-n]).double().square().sum(1)
            assert spans.mean() < 1.5 * n, (grid, n)
            assert spans.max() < 6 * n, (grid, n)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_windows_are_visited_whole_one_after_another(data):
    grid = data.draw(st.tuples(ROOMY) | PLANES | VIDEOS)
    size = data.draw(st.lists(st.integers(1, 5), min_size=len(grid), max_size=len(grid)))
    order = scan_orders("windows", grid, {"size": size})[0]
    where = places(order, grid) // torch.tensor(size)
    changes = 1 + int((where.diff(dim=0) != 0).any(1).sum())
    assert changes == math.prod(-(-n // s) for n, s in zip(grid, size, strict=True))
    assert torch.equal(window_of(grid, size)[order], window_of(grid, size).sort().values)
    inside = places(order, grid) % torch.tensor(size)
    stays = (where.diff(dim=0) == 0).all(1)
    weights = torch.tensor([6 ** (len(size) - axis) for axis in range(len(size))])
    assert ((inside * weights).sum(1).diff()[stays] > 0).all()  # row by row inside


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_dilated_passes_are_grids_of_their_own(data):
    grid = data.draw(st.tuples(ROOMY) | PLANES | VIDEOS)
    size = data.draw(st.integers(1, 4))
    order = scan_orders("dilated", grid, {"size": size})[0]
    phase = phase_of(grid, size)[order]
    for number in phase.unique().tolist():
        cells = order[phase == number]
        assert (cells.diff() > 0).all()
        assert ((places(cells, grid) - places(cells[:1], grid)) % size == 0).all()
    assert (phase.diff() >= 0).all()
    assert phase.unique().numel() == math.prod(min(size, n) for n in grid)


@settings(max_examples=50, deadline=None)
@given(VIDEOS)
def test_time_and_space_take_turns(grid):
    spatial, temporal = scan_orders("spatio_temporal", grid)[:2]
    frames, plane = grid[0], grid[1] * grid[2]
    assert torch.equal(spatial // plane, torch.arange(frames).repeat_interleave(plane))
    assert torch.equal(temporal % plane, torch.arange(plane).repeat_interleave(frames))
    assert torch.equal(temporal // plane, torch.arange(frames).repeat(plane))


@pytest.mark.parametrize("scan", IN_SPACE_ONLY)
@settings(max_examples=50, deadline=None)
@given(VIDEOS)
def test_scans_of_the_plane_go_frame_by_frame(scan, grid):
    frames, plane = grid[0], grid[1] * grid[2]
    for order in scan_orders(scan, grid):
        seen = order // plane
        if order[0] >= plane or (frames > 1 and seen[0] > seen[-1]):
            seen = seen.flip(0)
        assert torch.equal(seen, torch.arange(frames).repeat_interleave(plane))


# --- bad input


@pytest.mark.parametrize(
    ("scan", "grid", "options", "message"),
    [
        ("spiral", (2, 2), {}, "scan: expected one of raster, column, .* got 'spiral'"),
        ("hilbert", (2, 2), {"size": 2}, "options of hilbert: it has no option 'size'; it has none"),
        ("windows", (2, 2), {"width": 2}, "it has no option 'width'; valid options are size"),
        ("windows", (2, 2), {"size": 0}, r"size: expected a number from 1, or one for each axis .* got 0"),
        ("dilated", (2, 2), {"size": [2]}, r"one for each axis of \(2, 2\), got \[2\]"),
        (
            "cross",
            (4,),
            {},
            r"grid: this scan needs \(height, width\) or \(frames, height, width\), got \(4,\)",
        ),
        ("spatio_temporal", (4, 4), {}, r"grid: this scan needs \(frames, height, width\), got \(4, 4\)"),
        ("spatio_temporal", (2, 4, 4), {"first": "time"}, "first: expected 'spatial', 'temporal' or 'both'"),
        ("raster", (4, 0), {}, r"grid: every size must be at least 1, got \(4, 0\)"),
    ],
)
def test_bad_scans(scan, grid, options, message):
    with pytest.raises(ValueError, match=message):
        scan_orders(scan, grid, options)


@pytest.mark.parametrize("grid", [8, (2.0, 2), "88", (True, 2)])
def test_grids_are_whole_numbers(grid):
    with pytest.raises(TypeError, match=r"grid: expected whole numbers such as \[height, width\], got"):
        scan_orders("raster", grid)
