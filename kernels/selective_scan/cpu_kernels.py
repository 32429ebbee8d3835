"""The selective scan's inner loops for CPU, compiled by numba.

One call computes a run of channels of one batch row. Channels go in blocks of LANES, one vector each;
time goes in chunks, so that a chunk of a block stays in the cache. Arrays are
``x, dt, z, y (batch, length, d_inner)``, ``B, C (batch, length, n_groups, d_state)``, states and ``A2``
``(..., d_state, d_inner)`` with the channels last.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import njit, types

from mambakit.kernels.vector import (
    LANES,
    aligned_zeros,
    load,
    load_lanes,
    reduce_add,
    splat_like,
    store,
    store_lanes,
)
from mambakit.kernels.vector_math import between, clamp, exp2, sigmoid, softplus


def _forward(
    x, dt, A2, B, C, D, z, dt_bias, h0, seq_idx, y, final, saved,
    has_z, has_seq, use_softplus, dt_low, dt_high, chunk, b, group, first, last,
):  # fmt: skip
    length, d_state = x.shape[1], A2.shape[0]
    n_blocks = (last - first + LANES - 1) // LANES
    h, rates = aligned_zeros(n_blocks, d_state, A2), aligned_zeros(n_blocks, d_state, A2)
    for k in range(n_blocks):
        c = first + k * LANES
        count = min(LANES, last - c)
        for n in range(d_state):
            store(rates, (k, n, 0), load_lanes(A2, (n, c), count))
            store(h, (k, n, 0), load_lanes(h0, (b, n, c), count))
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        for k in range(n_blocks):
            c = first + k * LANES
            count = min(LANES, last - c)
            bias, skip = load_lanes(dt_bias, (c,), count), load_lanes(D, (c,), count)
            if saved.shape[1] > 0:
                for n in range(d_state):
                    store_lanes(saved, (b, start // chunk, n, c), load(h, (k, n, 0)), count)
            for t in range(start, stop):
                step = load_lanes(dt, (b, t, c), count) + bias
                if use_softplus:
                    step = softplus(step)
                step = clamp(step, dt_low, dt_high)
                inputs = load_lanes(x, (b, t, c), count)
                scaled = step * inputs
                out = skip * inputs
                if has_seq and t > 0 and seq_idx[b, t] != seq_idx[b, t - 1]:
                    h[k, :, :] = 0
                for n in range(d_state):
                    state = (
                        exp2(step * load(rates, (k, n, 0))) * load(h, (k, n, 0)) + scaled * B[b, t, group, n]
                    )
                    store(h, (k, n, 0), state)
                    out = out + state * C[b, t, group, n]
                if has_z:
                    gate = load_lanes(z, (b, t, c), count)
                    out = out * (gate * sigmoid(gate))
                store_lanes(y, (b, t, c), out, count)
    for k in range(n_blocks):
        c = first + k * LANES
        for n in range(d_state):
            store_lanes(final, (b, n, c), load(h, (k, n, 0)), min(LANES, last - c))


def _backward(
    dy, dfinal, saved, x, dt, A2, B, C, D, z, dt_bias, seq_idx,
    dx, ddt, dA2, dB, dC, dD, dz, dbias, dh0,
    has_z, has_seq, use_softplus, dt_low, dt_high, chunk, b, group, part, first, last,
):  # fmt: skip
    length, d_state = x.shape[1], A2.shape[0]
    n_blocks = (last - first + LANES - 1) // LANES
    zero = splat_like(A2, 0.0)
    dh, rates = aligned_zeros(n_blocks, d_state, A2), aligned_zeros(n_blocks, d_state, A2)
    drates = aligned_zeros(n_blocks, d_state, A2)
    sums = aligned_zeros(n_blocks, 2, A2)  # of D and dt_bias
    h = aligned_zeros(1, d_state, A2)
    # of one block and chunk: the state before each token, its decay, and the step size
    before = aligned_zeros(chunk, d_state, A2)
    decays = aligned_zeros(chunk, d_state, A2)
    steps = aligned_zeros(chunk, 1, A2)
    # of one chunk: the gradients of B and C, to be summed over the lanes in the end
    dBs = aligned_zeros(chunk, d_state, A2)
    dCs = aligned_zeros(chunk, d_state, A2)
    for k in range(n_blocks):
        c = first + k * LANES
        count = min(LANES, last - c)
        for n in range(d_state):
            store(rates, (k, n, 0), load_lanes(A2, (n, c), count))
            store(dh, (k, n, 0), load_lanes(dfinal, (b, n, c), count))
    n_chunks = (length + chunk - 1) // chunk
    for i in range(n_chunks - 1, -1, -1):
        start, stop = i * chunk, min(i * chunk + chunk, length)
        dBs[:, :, :] = 0
        dCs[:, :, :] = 0
        for k in range(n_blocks):
            c = first + k * LANES
            count = min(LANES, last - c)
            bias, skip = load_lanes(dt_bias, (c,), count), load_lanes(D, (c,), count)
            for n in range(d_state):
                store(h, (0, n, 0), load_lanes(saved, (b, i, n, c), count))
            for t in range(start, stop):
                step = load_lanes(dt, (b, t, c), count) + bias
                if use_softplus:
                    step = softplus(step)
                step = clamp(step, dt_low, dt_high)
                store(steps, (t - start, 0, 0), step)
                scaled = step * load_lanes(x, (b, t, c), count)
                if has_seq and t > 0 and seq_idx[b, t] != seq_idx[b, t - 1]:
                    h[0, :, :] = 0
                for n in range(d_state):
                    decay, state = exp2(step * load(rates, (k, n, 0))), load(h, (0, n, 0))
                    store(before, (t - start, n, 0), state)
                    store(decays, (t - start, n, 0), decay)
                    store(h, (0, n, 0), decay * state + scaled * B[b, t, group, n])
            dskip, draw = load(sums, (k, 0, 0)), load(sums, (k, 1, 0))
            for t in range(stop - 1, start - 1, -1):
                j = t - start
                step, inputs = load(steps, (j, 0, 0)), load_lanes(x, (b, t, c), count)
                scaled = step * inputs
                dout = load_lanes(dy, (b, t, c), count)
                dgate = zero
                if has_z:
                    gate = load_lanes(z, (b, t, c), count)
                    open_part = sigmoid(gate)
                    dgate = dout * (open_part + gate * (open_part * (1.0 - open_part)))
                    dout = dout * (gate * open_part)
                out, dscaled, drate = skip * inputs, zero, zero
                for n in range(d_state):
                    decay, state = load(decays, (j, n, 0)), load(before, (j, n, 0))
                    Bn, Cn = splat_like(A2, B[b, t, group, n]), splat_like(A2, C[b, t, group, n])
                    after = decay * state + scaled * Bn
                    out = out + after * Cn
                    grad = load(dh, (k, n, 0)) + dout * Cn
                    store(dCs, (j, n, 0), load(dCs, (j, n, 0)) + dout * after)
                    store(dBs, (j, n, 0), load(dBs, (j, n, 0)) + grad * scaled)
                    dscaled = dscaled + grad * Bn
                    through = grad * decay
                    store(dh, (k, n, 0), through)
                    ddecay = through * state
                    drate = drate + ddecay * load(rates, (k, n, 0))
                    store(drates, (k, n, 0), load(drates, (k, n, 0)) + ddecay * step)
                if has_seq and t > 0 and seq_idx[b, t] != seq_idx[b, t - 1]:
                    dh[k, :, :] = 0
                store_lanes(dx, (b, t, c), dout * skip + step * dscaled, count)
                dskip = dskip + dout * inputs
                dstep = drate * 0.6931471805599453 + inputs * dscaled
                shifted = load_lanes(dt, (b, t, c), count) + bias
                unclamped = shifted
                if use_softplus:
                    unclamped = softplus(shifted)
                    dstep = dstep * sigmoid(shifted)
                dstep = dstep * between(unclamped, dt_low, dt_high)
                draw = draw + dstep
                store_lanes(ddt, (b, t, c), dstep, count)
                if has_z:
                    store_lanes(dz, (b, t, c), dgate * out, count)
            store(sums, (k, 0, 0), dskip)
            store(sums, (k, 1, 0), draw)
        for t in range(start, stop):
            for n in range(d_state):
                dB[part, b, t, group, n] = reduce_add(load(dBs, (t - start, n, 0)))
                dC[part, b, t, group, n] = reduce_add(load(dCs, (t - start, n, 0)))
    for k in range(n_blocks):
        c = first + k * LANES
        count = min(LANES, last - c)
        store_lanes(dD, (b, c), load(sums, (k, 0, 0)), count)
        store_lanes(dbias, (b, c), load(sums, (k, 1, 0)), count)
        for n in range(d_state):
            store_lanes(dA2, (b, n, c), load(drates, (k, n, 0)), count)
            store_lanes(dh0, (b, n, c), load(dh, (k, n, 0)), count)


@functools.cache
def forward_kernel(double: bool) -> Any:
    """The forward loop for float32 or float64; one compiled version each, whatever the strides."""
    real = types.float64 if double else types.float32
    a1, a2, a3, a4 = (types.Array(real, rank, "A") for rank in (1, 2, 3, 4))
    seq = types.Array(types.int32, 2, "A")
    flag, size = types.boolean, types.intp
    arrays = (a3, a3, a2, a4, a4, a1, a3, a1, a3, seq, a3, a3, a4)
    rest = (flag, flag, flag, real, real, size, size, size, size, size)
    return njit(types.void(*arrays, *rest), nogil=True, cache=True)(_forward)


@functools.cache
def backward_kernel(double: bool) -> Any:
    """The backward loop, as ``forward_kernel``."""
    real = types.float64 if double else types.float32
    a1, a2, a3, a4, a5 = (types.Array(real, rank, "A") for rank in (1, 2, 3, 4, 5))
    seq = types.Array(types.int32, 2, "A")
    flag, size = types.boolean, types.intp
    inputs = (a3, a3, a4, a3, a3, a2, a4, a4, a1, a3, a1, seq)
    grads = (a3, a3, a3, a5, a5, a2, a3, a2, a3)
    rest = (flag, flag, flag, real, real, size, size, size, size, size, size)
    return njit(types.void(*inputs, *grads, *rest), nogil=True, cache=True)(_backward)
