"""What the Triton kernels of ``ssd`` share: a token's decay, a chunk's packed sequences, loads of tiles.

Notation in all of them: inside a chunk ``cum`` is the running sum of the log-decay, in units of log 2;
``into = exp2(cum)`` carries the state at the chunk's start to a token, ``out = exp2(cum_last - cum)`` a
token's input to the chunk's end. Operands of products are of type ``DOT``, sums and states float32.

Strides are passed in units of ``UNIT`` elements (8 where all allow it): the compiler then knows the
alignment of rows whatever the length is, and nothing has to be recompiled for a new one.
"""

from __future__ import annotations

import triton
import triton.language as tl

STRIDES = [
    "x_b", "x_l", "x_h", "B_b", "B_l", "B_g", "C_b", "C_l", "C_g", "z_b", "z_l", "z_h",
]  # fmt: skip
SIZES = ["length", "n_heads", "group_heads", "n_chunks", "segment_chunks", "n_segments", "block_heads"]


@triton.jit
def address(ptr, i, i_stride, j, j_stride, k, k_stride, UNIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """``ptr`` moved to ``[i, j, k]``; in int64, since tensors may have more than 2**31 elements."""
    offset = (
        tl.cast(i, tl.int64) * i_stride + tl.cast(j, tl.int64) * j_stride + tl.cast(k, tl.int64) * k_stride
    )
    return ptr + offset * UNIT


@triton.jit
def tile(  # type: ignore[no-untyped-def]
    ptr, row_stride, rows, columns, row_mask, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Rows of a ``(length, WIDTH)`` matrix, zero outside; ``columns`` has ``BLOCK`` entries."""
    where = ptr + rows[:, None] * row_stride + columns[None, :]
    if WIDTH % BLOCK == 0:
        return tl.load(where, mask=row_mask[:, None], other=0.0)
    return tl.load(where, mask=row_mask[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def store_tile(  # type: ignore[no-untyped-def]
    ptr, value, row_stride, rows, columns, row_mask, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    where = ptr + rows[:, None] * row_stride + columns[None, :]
    value = value.to(ptr.dtype.element_ty)
    if WIDTH % BLOCK == 0:
        tl.store(where, value, mask=row_mask[:, None])
    else:
        tl.store(where, value, mask=row_mask[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def load_state(  # type: ignore[no-untyped-def]
    ptr, ns, ps, TRANSPOSED: tl.constexpr, HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """An ``[n, p]`` tile of a state, which lies as ``[p, n]`` if ``TRANSPOSED``; zero outside."""
    if TRANSPOSED:
        where = ptr + (ps[None, :] * D_STATE + ns[:, None])
    else:
        where = ptr + (ns[:, None] * HEAD_DIM + ps[None, :])
    if D_STATE % BLOCK_N == 0 and HEAD_DIM % BLOCK_P == 0:
        return tl.load(where)
    return tl.load(where, mask=(ns < D_STATE)[:, None] & (ps < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_state(  # type: ignore[no-untyped-def]
    ptr, S, ns, ps, TRANSPOSED: tl.constexpr, HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    if TRANSPOSED:
        where = ptr + (ps[None, :] * D_STATE + ns[:, None])
    else:
        where = ptr + (ns[:, None] * HEAD_DIM + ps[None, :])
    S = S.to(ptr.dtype.element_ty)
    if D_STATE % BLOCK_N == 0 and HEAD_DIM % BLOCK_P == 0:
        tl.store(where, S)
    else:
        tl.store(where, S, mask=(ns < D_STATE)[:, None] & (ps < HEAD_DIM)[None, :])


@triton.jit
def softplus(value):  # type: ignore[no-untyped-def]
    """``log(1 + exp(value))``, precise where the result is tiny as well."""
    e = tl.exp(tl.minimum(value, 20.0))
    u = 1.0 + e
    # Kahan's log1p: the rounding of u cancels
    small = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(value > 20.0, value, tl.where(value == value, small, value))


@triton.jit
def opaque(i, positive):  # type: ignore[no-untyped-def]
    """``i``, which the compiler cannot see to count up.

    It would keep an address of its own for every row of every tile, and move all of them on at each
    iteration: dozens of registers, where a kernel has none to spare.
    """
    return i ^ (positive >> 31)


@triton.jit
def decays(cum, steps, row, n_chunks, c, rows, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``(scale, cum, last)`` of the tokens of one head's chunk; ``row`` counts batch and heads."""
    at = (tl.cast(row, tl.int64) * n_chunks + c) * CHUNK
    return tl.load(steps + at + rows), tl.load(cum + at + rows), tl.load(cum + at + CHUNK - 1)


@triton.jit
def numbers_of(numbers, row, n_chunks, c, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a chunk's numbers are of what lies as steps, one a token; None of None."""
    at = numbers
    if numbers is not None:
        at = numbers + (tl.cast(row, tl.int64) * n_chunks + c) * CHUNK
    return at


@triton.jit
def own_or(own, s, rows, INPUTS_FIRST: tl.constexpr):  # type: ignore[no-untyped-def]
    """What scales input j in output i, to be broadcast to ``[i, j]``, or ``[j, i]`` if ``INPUTS_FIRST``."""
    weight = s[:, None] if INPUTS_FIRST else s[None, :]
    if own is not None:
        o = tl.load(own + rows)
        weight = tl.where(rows[:, None] == rows[None, :], o[:, None] if INPUTS_FIRST else o[None, :], weight)
    return weight


@triton.jit
def skip_of(D, row, h, n_chunks, c, D_COLUMNS: tl.constexpr, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a head's D is: one number, one a channel, or (``D_COLUMNS`` 0) one a token, laid out as steps."""
    at = D
    if D is not None:
        if D_COLUMNS == 0:
            at = D + (tl.cast(row, tl.int64) * n_chunks + c) * CHUNK
        else:
            at = D + h * D_COLUMNS
    return at


@triton.jit
def skip_weight(  # type: ignore[no-untyped-def]
    D, rows, ps, D_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """What multiplies x in the skip, to be broadcast to ``[rows, ps]``."""
    if D_COLUMNS == 0:
        weight = tl.load(D + rows).to(tl.float32)[:, None]
    elif D_COLUMNS == 1:
        weight = tl.full((1, 1), 1.0, tl.float32) * tl.load(D).to(tl.float32)
    else:
        weight = tl.load(D + ps, mask=ps < HEAD_DIM, other=0.0).to(tl.float32)[None, :]
    return weight


@triton.jit
def differences(left, right, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """``left[:, None] - right[None, :]`` in float32 of two running sums, without their rounding if WIDE."""
    if WIDE:
        left_high = left.to(tl.float32)
        right_high = right.to(tl.float32)
        left_low = (left - left_high.to(tl.float64)).to(tl.float32)
        right_low = (right - right_high.to(tl.float64)).to(tl.float32)
        result = (left_high[:, None] - right_high[None, :]) + (left_low[:, None] - right_low[None, :])
    else:
        result = left[:, None] - right[None, :]
    return result


@triton.jit
def sequences(seq, b, t0, length, rows, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Ids of a chunk's tokens, of the token before the chunk (the row's first: itself), and of its last."""
    row = seq + tl.cast(b, tl.int64) * length
    ids = tl.load(row + tl.minimum(t0 + rows, length - 1))
    before = tl.load(row + tl.maximum(t0 - 1, 0))
    last = tl.load(row + tl.minimum(t0 + CHUNK, length) - 1)
    return ids, before, last


@triton.jit
def silu(value):  # type: ignore[no-untyped-def]
    return value / (1.0 + tl.exp(-value))
