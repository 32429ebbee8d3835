"""The selective scan's forward kernel.

h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = (C_t h_t + D x_t) silu(z_t)   (Gu & Dao 2023, eq. 2)

A program walks the tokens of 32 channels (a warp, a channel to a thread) with the states in registers and
loads a tile of tokens ahead of the one it works on. Where batch times channels does not fill the device,
the sequence is cut into segments: a first launch finds each segment's end state from a zero start and the
sum of its step sizes (a segment's whole decay is exp(A sum dt)), and the second folds the segments before
its own into its start state.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from mambakit.kernels.selective_scan.gpu_math import (
    LOG2E,
    load_tile,
    pick_row,
    put_row,
    sigmoid,
    step_size,
    store_tile,
)


@triton.jit(
    # a new length or layout of the states must not compile anew, nor change how tiles lie in registers
    do_not_specialize=[
        "length", "segment_length", "n_segments", "n_saved", "padded_length", "x_b", "dt_b", "z_b", "y_b",
        "seq_b", "A_d", "A_n", "h_b", "h_d", "h_n",
    ],
    do_not_specialize_on_alignment=[
        "x_ptr", "dt_ptr", "z_ptr", "y_ptr", "ends_ptr", "totals_ptr", "states_ptr", "initial_ptr", "A_ptr",
    ],
)  # fmt: skip
def scan_forward_kernel(
    x_ptr, dt_ptr, A_ptr,
    BC_ptr,  # as projections_kernel writes them
    D_ptr, z_ptr, bias_ptr, initial_ptr, seq_ptr,
    ends_ptr,  # [b, n_segments - 1, n, d] each segment's end state from a zero start
    totals_ptr,  # [b, n_segments - 1, d] sum of its step sizes
    y_ptr, final_ptr,
    states_ptr,  # [b, n_saved, n, d] the states before tokens 0, SAVE_EVERY, ...
    x_b, dt_b, z_b, y_b, padded_length, A_d, A_n, h_b, h_d, h_n, seq_b,
    low, high, d_inner, per_group, blocks_per_group, n_blocks, length, segment_length, n_segments, n_saved,
    X_L: tl.constexpr, DT_L: tl.constexpr, Z_L: tl.constexpr, Y_L: tl.constexpr, BC_L: tl.constexpr,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    PACKED: tl.constexpr, SOFTPLUS: tl.constexpr, LIMITED: tl.constexpr,
    OUTPUT: tl.constexpr,  # False: the first launch of two
    SAVE_EVERY: tl.constexpr,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    block = pid % n_blocks
    n_here = n_segments if OUTPUT else n_segments - 1
    segment = (pid // n_blocks) % n_here
    b = (pid // n_blocks // n_here).to(tl.int64)
    group = block // blocks_per_group
    inside = (block % blocks_per_group) * CHANNELS + tl.arange(0, CHANNELS)
    real = inside < per_group
    channel = group * per_group + inside
    n = tl.arange(0, BLOCK_N)
    rows = tl.arange(0, TILE)
    own = (n < D_STATE)[:, None] & real[None, :]

    x_ptr += b * x_b
    dt_ptr += b * dt_b
    z_ptr += b * z_b
    y_ptr += b * y_b
    BC_ptr += b * padded_length * BC_L + group * (2 * BLOCK_N)
    seq_ptr += b * seq_b

    A = tl.load(A_ptr + channel[None, :] * A_d + n[:, None] * A_n, mask=own, other=0.0).to(tl.float32) * LOG2E
    bias = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + channel, mask=real, other=0.0).to(tl.float32)

    h = tl.zeros([BLOCK_N, CHANNELS], tl.float32)
    if OUTPUT:
        if HAS_INITIAL:
            offset = channel.to(tl.int64)[None, :] * h_d + n[:, None] * h_n
            h = tl.load(initial_ptr + b * h_b + offset, mask=own, other=0.0).to(tl.float32)
        for earlier in range(segment):
            i = b * (n_segments - 1) + earlier
            total = tl.load(totals_ptr + i * d_inner + channel, mask=real, other=0.0)
            h = h * tl.exp2(A * total[None, :])
            if PACKED:
                before = tl.maximum(earlier * segment_length - 1, 0)
                crossed = tl.load(seq_ptr + before) != tl.load(seq_ptr + (earlier + 1) * segment_length - 1)
                h = tl.where(crossed, 0.0, h)
            offset = (i * D_STATE + n[:, None]) * d_inner + channel[None, :]
            h += tl.load(ends_ptr + offset, mask=own, other=0.0)

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    total = tl.zeros([CHANNELS], tl.float32)
    if PACKED:
        previous = tl.load(seq_ptr + tl.maximum(begin - 1, 0), mask=length > 0, other=0)
    valid = (begin + rows < end)[:, None] & real[None, :]
    x_next = load_tile(x_ptr, begin, rows, channel, valid, X_L)
    dt_next = load_tile(dt_ptr, begin, rows, channel, valid, DT_L)
    if OUTPUT and HAS_Z:
        z_next = load_tile(z_ptr, begin, rows, channel, valid, Z_L)
    for start in range(begin, end, TILE):
        # also where nothing is saved: with this branch in the loop the compiler orders its loads better
        if (start % SAVE_EVERY == 0) & (n_saved > 0):
            place = (b * n_saved + start // SAVE_EVERY) * D_STATE
            tl.store(states_ptr + (place + n[:, None]) * d_inner + channel[None, :], h, mask=own)
        valid = (start + rows < end)[:, None] & real[None, :]
        x = x_next.to(tl.float32)
        dt = step_size(dt_next, bias, valid, low, high, SOFTPLUS, LIMITED)
        if OUTPUT and HAS_Z:
            z = z_next.to(tl.float32)
        ahead = start + TILE
        valid_ahead = (ahead + rows < end)[:, None] & real[None, :]
        x_next = load_tile(x_ptr, ahead, rows, channel, valid_ahead, X_L)
        dt_next = load_tile(dt_ptr, ahead, rows, channel, valid_ahead, DT_L)
        if OUTPUT and HAS_Z:
            z_next = load_tile(z_ptr, ahead, rows, channel, valid_ahead, Z_L)
        update = dt * x
        y = tl.zeros([TILE, CHANNELS], tl.float32)
        BC = BC_ptr + tl.cast(start, tl.int64) * BC_L + n
        for t in tl.static_range(TILE):
            # tokens beyond the end have dt = 0 and B = 0: they change nothing
            if PACKED:
                current = tl.load(seq_ptr + tl.minimum(start + t, end - 1))
                h = tl.where(current != previous, 0.0, h)
                previous = current
            B = tl.load(BC + t * BC_L)
            decay = tl.exp2(A * pick_row(dt, rows, t)[None, :])
            h = decay * h + B[:, None] * pick_row(update, rows, t)[None, :]
            if OUTPUT:
                C = tl.load(BC + (t * BC_L + BLOCK_N))
                y = put_row(y, rows, t, tl.sum(h * C[:, None], axis=0))
        if OUTPUT:
            if HAS_D:
                y += skip[None, :] * x
            if HAS_Z:
                y *= z * sigmoid(z)
            store_tile(y_ptr, start, rows, channel, valid, y, Y_L)
        else:
            total += tl.sum(dt, axis=0)
    if OUTPUT:
        if segment == n_segments - 1:
            offset = channel.to(tl.int64)[None, :] * D_STATE + n[:, None]
            tl.store(final_ptr + b * d_inner * D_STATE + offset, h, mask=own)
    else:
        i = b * (n_segments - 1) + segment
        tl.store(totals_ptr + i * d_inner + channel, total, mask=real)
        offset = (i * D_STATE + n[:, None]) * d_inner + channel[None, :]
        tl.store(ends_ptr + offset, h, mask=own)
