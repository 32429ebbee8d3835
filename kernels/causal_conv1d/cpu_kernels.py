"""The causal convolution's inner loops for CPU, compiled by numba.

An item is a run of RUN channels of one batch row, done in blocks of LANES channels. Arrays are
``x, y (batch, length, channels)``, ``weight (width, channels)``, ``past (batch, width - 1, channels)``.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import njit, types

from mambakit.kernels.vector import LANES, aligned_zeros, load, load_lanes, splat_like, store, store_lanes
from mambakit.kernels.vector_math import sigmoid

RUN = 8 * LANES
_CHUNK = 32  # tokens for which a block of channels stays in the cache


# Inner loops call no helper: numba counts references to the arrays at each call, at the price of the work.
# Token s < 0 lies in the past; it belongs to the row's first sequence.


@njit(nogil=True)
def _forward(x, weight, bias, past, seq_idx, y, silu, has_seq, b, first, last):
    length, width = x.shape[1], weight.shape[0]
    for start in range(0, length, _CHUNK):
        for c in range(first, last, LANES):
            count = min(LANES, last - c)
            shift = load_lanes(bias, (c,), count)
            for t in range(start, min(start + _CHUNK, length)):
                value = shift
                for k in range(width):
                    s = t - width + 1 + k
                    if not has_seq or seq_idx[b, max(s, 0)] == seq_idx[b, t]:
                        tap = load_lanes(weight, (k, c), count)
                        if s >= 0:
                            value = value + tap * load_lanes(x, (b, s, c), count)
                        else:
                            value = value + tap * load_lanes(past, (b, s + width - 1, c), count)
                if silu:
                    value = value * sigmoid(value)
                store_lanes(y, (b, t, c), value, count)


@njit(nogil=True)
def _backward(
    dy, dfinal, x, weight, bias, past, seq_idx, dx, dweight, dbias, dpast, silu, has_seq, b, first, last
):
    length, width = x.shape[1], weight.shape[0]
    n_blocks = (last - first + LANES - 1) // LANES
    zero = splat_like(x, 0.0)
    # gradients before the activation, of tokens t ... t + width - 1
    recent = aligned_zeros(n_blocks, width, x)
    dtaps = aligned_zeros(n_blocks, width, x)
    dshift = aligned_zeros(n_blocks, 1, x)
    n_chunks = (length + width - 1 + _CHUNK - 1) // _CHUNK
    for i in range(n_chunks - 1, -1, -1):
        for block in range(n_blocks):
            c = first + block * LANES
            count = min(LANES, last - c)
            shift, dsum = load_lanes(bias, (c,), count), load(dshift, (block, 0, 0))
            for place in range(min((i + 1) * _CHUNK, length + width - 1) - 1, i * _CHUNK - 1, -1):
                t = place - (width - 1)  # the past comes last, as t < 0
                if t >= 0:
                    value = shift
                    dpre = load_lanes(dy, (b, t, c), count)
                    if silu:
                        for k in range(width):
                            s = t - width + 1 + k
                            if not has_seq or seq_idx[b, max(s, 0)] == seq_idx[b, t]:
                                tap = load_lanes(weight, (k, c), count)
                                if s >= 0:
                                    value = value + tap * load_lanes(x, (b, s, c), count)
                                else:
                                    value = value + tap * load_lanes(past, (b, s + width - 1, c), count)
                        gate = sigmoid(value)
                        dpre = dpre * (gate + value * (gate * (1.0 - gate)))
                    for k in range(width):
                        s = t - width + 1 + k
                        if not has_seq or seq_idx[b, max(s, 0)] == seq_idx[b, t]:
                            dtap = load(dtaps, (block, k, 0))
                            if s >= 0:
                                dtap = dtap + dpre * load_lanes(x, (b, s, c), count)
                            else:
                                dtap = dtap + dpre * load_lanes(past, (b, s + width - 1, c), count)
                            store(dtaps, (block, k, 0), dtap)
                    store(recent, (block, t % width, 0), dpre)
                    dsum = dsum + dpre
                grad = zero
                into_final = t - (length - (width - 1))
                if into_final >= 0 and (not has_seq or seq_idx[b, max(t, 0)] == seq_idx[b, length - 1]):
                    grad = load_lanes(dfinal, (b, into_final, c), count)
                for k in range(width):
                    s = t + width - 1 - k  # the token whose tap k reads t
                    if 0 <= s < length and (not has_seq or seq_idx[b, max(t, 0)] == seq_idx[b, s]):
                        grad = grad + load_lanes(weight, (k, c), count) * load(recent, (block, s % width, 0))
                if t >= 0:
                    store_lanes(dx, (b, t, c), grad, count)
                else:
                    store_lanes(dpast, (b, place, c), grad, count)
            store(dshift, (block, 0, 0), dsum)
    for block in range(n_blocks):
        c = first + block * LANES
        count = min(LANES, last - c)
        store_lanes(dbias, (b, c), load(dshift, (block, 0, 0)), count)
        for k in range(width):
            store_lanes(dweight, (b, k, c), load(dtaps, (block, k, 0)), count)


def _forward_items(x, weight, bias, past, seq_idx, y, silu, has_seq, lo, hi):
    n_runs = (x.shape[2] + RUN - 1) // RUN
    for item in range(lo, hi):
        first = item % n_runs * RUN
        last = min(first + RUN, x.shape[2])
        _forward(x, weight, bias, past, seq_idx, y, silu, has_seq, item // n_runs, first, last)


def _backward_items(
    dy, dfinal, x, weight, bias, past, seq_idx, dx, dweight, dbias, dpast, silu, has_seq, lo, hi
):
    n_runs = (x.shape[2] + RUN - 1) // RUN
    for item in range(lo, hi):
        first = item % n_runs * RUN
        last = min(first + RUN, x.shape[2])
        _backward(
            dy, dfinal, x, weight, bias, past, seq_idx, dx, dweight, dbias, dpast, silu, has_seq,
            item // n_runs, first, last,
        )  # fmt: skip


@functools.cache
def forward_kernel(double: bool) -> Any:
    """The forward loop over items ``lo`` to ``hi - 1``, for float32 or float64.

    One compiled version each, whatever the strides.
    """
    real = types.float64 if double else types.float32
    a1, a2, a3 = (types.Array(real, rank, "A") for rank in (1, 2, 3))
    seq, flag, size = types.Array(types.int32, 2, "A"), types.boolean, types.intp
    signature = types.void(a3, a2, a1, a3, seq, a3, flag, flag, size, size)
    return njit(signature, nogil=True, cache=True)(_forward_items)


@functools.cache
def backward_kernel(double: bool) -> Any:
    """The backward loop, as ``forward_kernel``."""
    real = types.float64 if double else types.float32
    a1, a2, a3 = (types.Array(real, rank, "A") for rank in (1, 2, 3))
    seq, flag, size = types.Array(types.int32, 2, "A"), types.boolean, types.intp
    signature = types.void(a3, a3, a3, a2, a1, a3, seq, a3, a3, a2, a3, flag, flag, size, size)
    return njit(signature, nogil=True, cache=True)(_backward_items)
