"""The gated norm's Triton kernels: a program norms one group of channels of many rows, one pass a row.

Forward, with ``u = x silu(z)`` (or ``u = x``, and the gate applied to what is normed):

    y = u r w,    r = 1 / sqrt(mean(u^2) + eps)

Backward, with ``g = dy w`` (times the gate, where it is applied to what is normed), everything recomputed:

    du = r (g - u mean(u g) r^2),    dw = sum_rows dy u r

A group is held in registers as a tuple of PIECES tiles (ROWS, BLOCK), which together cover it: 1,536 channels
are three tiles of 512, where one power of two would leave a quarter idle. A program keeps the weight and its
part of dw in registers from row to row.
"""

# ruff: noqa: RUF005 (Triton unpacks no tuples)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _columns(group_size, piece: tl.constexpr, BLOCK: tl.constexpr):
    columns = piece * BLOCK + tl.arange(0, BLOCK)
    return columns, columns < group_size


@triton.jit
def _weights(weight_ptr, group, group_size, BLOCK: tl.constexpr, PIECES: tl.constexpr):
    weights = ()
    for piece in tl.static_range(PIECES):
        columns, inside = _columns(group_size, piece, BLOCK)
        weight = tl.load(weight_ptr + group * group_size + columns, mask=inside, other=0.0)
        weights = weights + (weight.to(tl.float32)[None, :],)
    return weights


@triton.jit
def _tiles(ptr, rows, n_rows, group, group_size, BLOCK: tl.constexpr, PIECES: tl.constexpr):
    """One group of some rows as stored; ``ptr`` points to the first column of each row of the tile."""
    tiles = ()
    for piece in tl.static_range(PIECES):
        columns, inside = _columns(group_size, piece, BLOCK)
        at = ptr + group * group_size + columns[None, :]
        tiles = tiles + (tl.load(at, mask=(rows < n_rows)[:, None] & inside[None, :], other=0.0),)
    return tiles


@triton.jit
def _store(ptr, tile, rows, n_rows, group, group_size, piece: tl.constexpr, BLOCK: tl.constexpr):
    columns, inside = _columns(group_size, piece, BLOCK)
    at = ptr + group * group_size + columns[None, :]
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=(rows < n_rows)[:, None] & inside[None, :])


# A new number of rows must compile nothing, so no size is specialised; UNIT says what divides them.
@triton.jit(do_not_specialize=["x_stride", "z_stride", "n_rows", "n_groups", "group_size", "eps"])
def norm_forward_kernel(
    x_ptr, weight_ptr, z_ptr, y_ptr, x_stride, z_stride, n_rows, n_groups, group_size, eps,
    UNIT: tl.constexpr, NORM_BEFORE_GATE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Strides and ``group_size`` in units of UNIT; ``y`` and ``weight`` are contiguous."""
    group_size = group_size * UNIT
    program = tl.program_id(0)
    group = program % n_groups
    weights = _weights(weight_ptr, group, group_size, BLOCK, PIECES)
    n_tiles = tl.cdiv(n_rows, ROWS)
    for tile in range(program // n_groups, n_tiles, tl.num_programs(0) // n_groups):
        rows = tl.arange(0, ROWS).to(tl.int64) + tile * ROWS
        xs = _tiles(
            x_ptr + rows[:, None] * x_stride * UNIT, rows, n_rows, group, group_size, BLOCK, PIECES
        )  # fmt: skip
        if z_ptr is not None:
            zs = _tiles(
                z_ptr + rows[:, None] * z_stride * UNIT, rows, n_rows, group, group_size, BLOCK, PIECES
            )  # fmt: skip
        us = ()
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        for piece in tl.static_range(PIECES):
            u = xs[piece].to(tl.float32)
            if z_ptr is not None and not NORM_BEFORE_GATE:
                z = zs[piece].to(tl.float32)
                u = u * (z / (1.0 + tl.exp(-z)))
            squares += u * u
            us = us + (u,)
        inverse = tl.rsqrt(tl.sum(squares, axis=1) / group_size + eps)[:, None]
        y_rows = y_ptr + rows[:, None] * n_groups * group_size
        for piece in tl.static_range(PIECES):
            y = us[piece] * inverse * weights[piece]
            if z_ptr is not None and NORM_BEFORE_GATE:
                z = zs[piece].to(tl.float32)
                y = y * (z / (1.0 + tl.exp(-z)))
            _store(y_rows, y, rows, n_rows, group, group_size, piece, BLOCK)


@triton.jit(
    do_not_specialize=["x_stride", "z_stride", "dy_stride", "n_rows", "n_groups", "group_size", "eps"]
)
def norm_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, z_ptr, dx_ptr, dz_ptr, partial_ptr,
    dy_stride, x_stride, z_stride, n_rows, n_groups, group_size, eps,
    UNIT: tl.constexpr, NORM_BEFORE_GATE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """As forward; ``partial`` ``(programs / n_groups, channels)``: each program's part of dweight."""
    group_size = group_size * UNIT
    channels = n_groups * group_size
    program = tl.program_id(0)
    group = program % n_groups
    weights = _weights(weight_ptr, group, group_size, BLOCK, PIECES)
    dweights = ()
    for _piece in tl.static_range(PIECES):
        dweights = dweights + (tl.zeros((ROWS, BLOCK), tl.float32),)
    n_tiles = tl.cdiv(n_rows, ROWS)
    for tile in range(program // n_groups, n_tiles, tl.num_programs(0) // n_groups):
        rows = tl.arange(0, ROWS).to(tl.int64) + tile * ROWS
        dys = _tiles(
            dy_ptr + rows[:, None] * dy_stride * UNIT, rows, n_rows, group, group_size, BLOCK, PIECES
        )  # fmt: skip
        xs = _tiles(
            x_ptr + rows[:, None] * x_stride * UNIT, rows, n_rows, group, group_size, BLOCK, PIECES
        )  # fmt: skip
        if z_ptr is not None:
            zs = _tiles(
                z_ptr + rows[:, None] * z_stride * UNIT, rows, n_rows, group, group_size, BLOCK, PIECES
            )  # fmt: skip
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        products = tl.zeros((ROWS, BLOCK), tl.float32)
        us = ()
        givens = ()
        gates = ()
        for piece in tl.static_range(PIECES):
            u = xs[piece].to(tl.float32)
            given = dys[piece].to(tl.float32)
            if z_ptr is not None:
                z = zs[piece].to(tl.float32)
                gate = 1.0 / (1.0 + tl.exp(-z))
                if NORM_BEFORE_GATE:
                    given = given * (z * gate)
                else:
                    u = u * (z * gate)
                gates = gates + (gate,)
            squares += u * u
            products += u * given * weights[piece]
            us = us + (u,)
            givens = givens + (given,)
        inverse = tl.rsqrt(tl.sum(squares, axis=1) / group_size + eps)[:, None]
        mean = tl.sum(products, axis=1)[:, None] * inverse * inverse / group_size
        row_starts = rows[:, None] * channels
        sums = ()
        for piece in tl.static_range(PIECES):
            normed = us[piece] * inverse
            sums = sums + (dweights[piece] + givens[piece] * normed,)
            du = (givens[piece] * weights[piece] - us[piece] * mean) * inverse
            if z_ptr is not None:
                z = zs[piece].to(tl.float32)
                slope = gates[piece] * (1.0 + z * (1.0 - gates[piece]))
                if NORM_BEFORE_GATE:
                    dgate = dys[piece].to(tl.float32) * normed * weights[piece]
                else:
                    dgate = du * xs[piece].to(tl.float32)
                    du = du * (z * gates[piece])
                _store(dz_ptr + row_starts, dgate * slope, rows, n_rows, group, group_size, piece, BLOCK)
            _store(dx_ptr + row_starts, du, rows, n_rows, group, group_size, piece, BLOCK)
        dweights = sums
    partial_row = partial_ptr + (program // n_groups).to(tl.int64) * channels + group * group_size
    for piece in tl.static_range(PIECES):
        columns, inside = _columns(group_size, piece, BLOCK)
        tl.store(partial_row + columns, tl.sum(dweights[piece], axis=0), mask=inside)
