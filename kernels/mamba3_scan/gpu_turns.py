"""Triton: how far the state's channels have turned at every token, forward and backward.

    theta_t = theta_{t-1} + dt_t turn_t                         from zero, or from what an initial state has
    dturn_t = sum_h dt_th g_th,   ddt_th = turn_t . g_th,       g_t = sum_{i>=t} dtheta_i within a sequence

A sum over all of a sequence, in float64: tiles of ``TILE`` tokens add up what they turn by, ``carry_tiles``
makes of that what each tile starts from, and the tiles then finish side by side. The step of a token is the
only thing read in forward, and what is written is the angle itself: no product ``dt turn`` lies in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakit.kernels.ssd.gpu_common import sequences

_TURN = tl.constexpr(6.283185307179586)
_SIZES = ["length", "n_heads", "n_tiles"]


@triton.jit
def _sum(left, right):  # type: ignore[no-untyped-def]
    return left + right


@triton.jit
def _sum_of_sequence(value, opens, later, later_opens):  # type: ignore[no-untyped-def]
    """What is added up, and whether another sequence has begun in it."""
    return tl.where(later_opens != 0, later, value + later), opens | later_opens


@triton.jit
def _numbers(ptr, b, t0, h, n_heads, length, rows, mask):  # type: ignore[no-untyped-def]
    """A tile of ``(batch, length, n_heads)`` in float64, ``[rows, 1]``."""
    where = ptr + ((tl.cast(b, tl.int64) * length + t0) * n_heads + h) + rows * n_heads
    return tl.load(where, mask=mask, other=0.0).to(tl.float64)[:, None]


@triton.jit
def _rows_of(ptr, at, row_stride, rows, ks, mask, N_ANGLES: tl.constexpr):  # type: ignore[no-untyped-def]
    where = ptr + at + rows[:, None] * row_stride + ks[None, :]
    return tl.load(where, mask=mask[:, None] & (ks < N_ANGLES)[None, :], other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=_SIZES)
def turn_totals(  # type: ignore[no-untyped-def]
    dt, turn, seq, totals, length, n_heads, n_tiles,
    N_ANGLES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``totals``, ``(batch, n_tiles, n_heads, n_angles)``: what a tile's last sequence turns by in it."""
    pid = tl.program_id(0)
    h = pid % n_heads
    c = (pid // n_heads) % n_tiles
    b = pid // n_heads // n_tiles
    rows = tl.arange(0, TILE)
    ks = tl.arange(0, BLOCK)
    t0 = c * TILE
    mask = t0 + rows < length
    step = _numbers(dt, b, t0, h, n_heads, length, rows, mask)
    speed = _rows_of(
        turn, (tl.cast(b, tl.int64) * length + t0) * N_ANGLES, N_ANGLES, rows, ks, mask, N_ANGLES
    )
    steps = step * speed
    if seq is not None:
        ids, _before, last_id = sequences(seq, b, t0, length, rows, TILE)
        steps = tl.where((ids == last_id)[:, None], steps, 0.0)
    tl.store(totals + tl.cast(pid, tl.int64) * N_ANGLES + ks, tl.sum(steps, 0), mask=ks < N_ANGLES)


@triton.jit(do_not_specialize=_SIZES)
def carry_tiles(  # type: ignore[no-untyped-def]
    totals, begin, seq, end, length, n_heads, n_tiles,
    N_ANGLES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Replace each tile's total by what it starts from: ``begin``, or zero, and what came before it.

    With ``REVERSE`` it is what comes behind it. ``end``, which may be None, is what there is after all;
    ``begin`` and ``end`` are ``(batch, n_heads, n_angles)``.
    """
    pid = tl.program_id(0)
    h = pid % n_heads
    b = pid // n_heads
    ks = tl.arange(0, BLOCK)
    some = ks < N_ANGLES
    carry = tl.zeros((BLOCK,), tl.float64)
    if begin is not None:
        carry = tl.load(begin + tl.cast(pid, tl.int64) * N_ANGLES + ks, mask=some, other=0.0).to(tl.float64)
    for i in range(n_tiles):
        c = i
        if REVERSE:
            c = n_tiles - 1 - i
        where = totals + ((tl.cast(b, tl.int64) * n_tiles + c) * n_heads + h) * N_ANGLES + ks
        total = tl.load(where, mask=some, other=0.0)
        tl.store(where, carry, mask=some)
        if seq is not None:
            row = seq + tl.cast(b, tl.int64) * length
            before = tl.load(row + tl.maximum(c * TILE - 1, 0))
            last = tl.load(row + tl.minimum(c * TILE + TILE, length) - 1)
            carry = tl.where(before == last, carry, 0.0)
        carry += total
    if end is not None:
        tl.store(end + tl.cast(pid, tl.int64) * N_ANGLES + ks, carry.to(end.dtype.element_ty), mask=some)


@triton.jit(do_not_specialize=_SIZES)
def turn_angles(  # type: ignore[no-untyped-def]
    dt, turn, seq, carries, angles, length, n_heads, n_tiles,
    N_ANGLES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``angles``, ``(batch, length, n_heads, n_angles)`` in [0, 2 pi), from what each tile starts from."""
    pid = tl.program_id(0)
    h = pid % n_heads
    c = (pid // n_heads) % n_tiles
    b = pid // n_heads // n_tiles
    rows = tl.arange(0, TILE)
    ks = tl.arange(0, BLOCK)
    t0 = c * TILE
    mask = t0 + rows < length
    token = tl.cast(b, tl.int64) * length + t0
    step = _numbers(dt, b, t0, h, n_heads, length, rows, mask)
    steps = step * _rows_of(turn, token * N_ANGLES, N_ANGLES, rows, ks, mask, N_ANGLES)
    carry = tl.load(carries + tl.cast(pid, tl.int64) * N_ANGLES + ks, mask=ks < N_ANGLES, other=0.0)
    if seq is None:
        theta = tl.associative_scan(steps, 0, _sum) + carry[None, :]
    else:
        ids, before, _last_id = sequences(seq, b, t0, length, rows, TILE)
        previous = tl.load(
            seq + tl.cast(b, tl.int64) * length + tl.maximum(tl.minimum(t0 + rows, length) - 1, 0)
        )
        opens = (ids != previous).to(tl.int32)[:, None] + tl.zeros((TILE, BLOCK), tl.int32)
        theta, _ = tl.associative_scan((steps, opens), 0, _sum_of_sequence)
        theta += tl.where((ids == before)[:, None], carry[None, :], 0.0)
    theta -= tl.floor(theta / _TURN) * _TURN
    where = angles + (token * n_heads + h) * N_ANGLES + rows[:, None] * (n_heads * N_ANGLES) + ks[None, :]
    tl.store(where, theta.to(angles.dtype.element_ty), mask=mask[:, None] & (ks < N_ANGLES)[None, :])


@triton.jit(do_not_specialize=_SIZES)
def angle_totals(  # type: ignore[no-untyped-def]
    dangles, seq, totals, length, n_heads, n_tiles,
    N_ANGLES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``totals``: the gradient that reaches the sequence of a tile's first token in the tile."""
    pid = tl.program_id(0)
    h = pid % n_heads
    c = (pid // n_heads) % n_tiles
    b = pid // n_heads // n_tiles
    rows = tl.arange(0, TILE)
    ks = tl.arange(0, BLOCK)
    t0 = c * TILE
    mask = t0 + rows < length
    at = ((tl.cast(b, tl.int64) * length + t0) * n_heads + h) * N_ANGLES
    gradient = _rows_of(dangles, at, n_heads * N_ANGLES, rows, ks, mask, N_ANGLES)
    if seq is not None:
        ids, before, _last_id = sequences(seq, b, t0, length, rows, TILE)
        gradient = tl.where((ids == before)[:, None], gradient, 0.0)
    tl.store(totals + tl.cast(pid, tl.int64) * N_ANGLES + ks, tl.sum(gradient, 0), mask=ks < N_ANGLES)


@triton.jit(do_not_specialize=_SIZES)
def turn_gradients(  # type: ignore[no-untyped-def]
    dangles, dt, turn, seq, carries, ddt, dturn, length, n_heads, n_tiles,
    N_ANGLES: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``ddt`` and ``dturn`` of one tile, from all heads."""
    c = tl.program_id(0) % n_tiles
    b = tl.program_id(0) // n_tiles
    rows = tl.arange(0, TILE)
    ks = tl.arange(0, BLOCK)
    some = ks < N_ANGLES
    t0 = c * TILE
    mask = t0 + rows < length
    token = tl.cast(b, tl.int64) * length + t0
    speed = _rows_of(turn, token * N_ANGLES, N_ANGLES, rows, ks, mask, N_ANGLES)
    opens = tl.zeros((TILE, BLOCK), tl.int32)
    goes_on = rows >= 0
    if seq is not None:
        ids, _before, last_id = sequences(seq, b, t0, length, rows, TILE)
        following = tl.load(seq + tl.cast(b, tl.int64) * length + tl.minimum(t0 + rows + 1, length - 1))
        opens += (ids != following).to(tl.int32)[:, None]
        goes_on = ids == last_id
    total = tl.zeros((TILE, BLOCK), tl.float32)
    for h in tl.range(0, n_heads, num_stages=STAGES):
        g = _rows_of(dangles, (token * n_heads + h) * N_ANGLES, n_heads * N_ANGLES, rows, ks, mask, N_ANGLES)
        at_carry = ((tl.cast(b, tl.int64) * n_tiles + c) * n_heads + h) * N_ANGLES
        carry = tl.load(carries + at_carry + ks, mask=some, other=0.0)
        if seq is None:
            g = tl.associative_scan(g, 0, _sum, reverse=True) + carry[None, :]
        else:
            g, _ = tl.associative_scan((g, opens), 0, _sum_of_sequence, reverse=True)
            g += tl.where(goes_on[:, None], carry[None, :], 0.0)
        step = _numbers(dt, b, t0, h, n_heads, length, rows, mask)
        total += (g * step).to(tl.float32)
        of_step = tl.sum(g * speed, 1)
        tl.store(ddt + token * n_heads + h + rows * n_heads, of_step.to(ddt.dtype.element_ty), mask=mask)
    where = dturn + token * N_ANGLES + rows[:, None] * N_ANGLES + ks[None, :]
    tl.store(where, total.to(dturn.dtype.element_ty), mask=mask[:, None] & some[None, :])
