"""The selective scan's backward kernels.

With g_t the gradient of C_t h_t + D x_t and dh_t that of h_t,

    dh_t = g_t C_t + exp(dt_{t+1} A) dh_{t+1}           q_t = exp(dt_t A) dh_t h_{t-1}
    dx_t = D g_t + dt_t sum_n dh_t B_t                  ddt_t = sum_n A q_t + x_t sum_n dh_t B_t
    dB_t = sum_d dh_t dt_t x_t    dC_t = sum_d g_t h_t    dA = sum_t dt_t q_t

The sequence is cut into segments. ``segment_gradients_kernel`` finds what each passes on to the state
before it when nothing reaches its end, ``carry_gradients_kernel`` folds these from the last segment to the
first, and ``scan_backward_kernel`` then does all segments side by side. Inside a segment it takes the
forward pass's saved states one by one from the last: walks the tokens from one to the next and notes the
state before every tile, then takes the tiles from the last: recomputes a tile's states into registers and
walks it in reverse. Gradients of B and C are summed over the channels of a program, and by the caller
over programs; no atomics, so results repeat to the bit.
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
    step_slope,
    store_channel_sums,
    store_tile,
)


@triton.jit(
    do_not_specialize=[
        "length",
        "segment_length",
        "n_segments",
        "padded_length",
        "dy_b",
        "dt_b",
        "z_b",
        "seq_b",
        "A_d",
        "A_n",
    ],
    do_not_specialize_on_alignment=["dy_ptr", "dt_ptr", "z_ptr", "carry_ptr", "totals_ptr", "A_ptr"],
)
def segment_gradients_kernel(
    dy_ptr, dt_ptr, A_ptr, BC_ptr, z_ptr, bias_ptr, seq_ptr,
    carry_ptr,  # [b, n_segments, n, d]: gradient of the state before the segment from the segment alone
    totals_ptr,  # [b, n_segments, d]: sum of its step sizes
    dy_b, dt_b, z_b, padded_length, A_d, A_n, seq_b,
    low, high, d_inner, per_group, blocks_per_group, n_blocks, length, segment_length, n_segments,
    DY_L: tl.constexpr, DT_L: tl.constexpr, Z_L: tl.constexpr, BC_L: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, PACKED: tl.constexpr,
    SOFTPLUS: tl.constexpr, LIMITED: tl.constexpr,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    block = pid % n_blocks
    segment = (pid // n_blocks) % (n_segments - 1) + 1  # nobody asks for the first one's
    b = (pid // n_blocks // (n_segments - 1)).to(tl.int64)
    group = block // blocks_per_group
    inside = (block % blocks_per_group) * CHANNELS + tl.arange(0, CHANNELS)
    real = inside < per_group
    channel = group * per_group + inside
    n = tl.arange(0, BLOCK_N)
    rows = tl.arange(0, TILE)
    own = (n < D_STATE)[:, None] & real[None, :]

    dy_ptr += b * dy_b
    dt_ptr += b * dt_b
    z_ptr += b * z_b
    BC_ptr += b * padded_length * BC_L + group * (2 * BLOCK_N)
    seq_ptr += b * seq_b
    A = tl.load(A_ptr + channel[None, :] * A_d + n[:, None] * A_n, mask=own, other=0.0).to(tl.float32) * LOG2E
    bias = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    n_tiles = tl.cdiv(end - begin, TILE)
    dh = tl.zeros([BLOCK_N, CHANNELS], tl.float32)
    total = tl.zeros([CHANNELS], tl.float32)
    start = begin + (n_tiles - 1) * TILE
    valid = (start + rows < end)[:, None] & real[None, :]
    dt_next = load_tile(dt_ptr, start, rows, channel, valid, DT_L)
    dy_next = load_tile(dy_ptr, start, rows, channel, valid, DY_L)
    if HAS_Z:
        z_next = load_tile(z_ptr, start, rows, channel, valid, Z_L)
    for i in range(n_tiles):
        start = begin + (n_tiles - 1 - i) * TILE
        valid = (start + rows < end)[:, None] & real[None, :]
        dt = step_size(dt_next, bias, valid, low, high, SOFTPLUS, LIMITED)
        g = dy_next.to(tl.float32)
        if HAS_Z:
            z = z_next.to(tl.float32)
            g *= z * sigmoid(z)
        ahead = tl.maximum(start - TILE, begin)  # reads one tile twice at the end
        valid_ahead = (ahead + rows < end)[:, None] & real[None, :]
        dt_next = load_tile(dt_ptr, ahead, rows, channel, valid_ahead, DT_L)
        dy_next = load_tile(dy_ptr, ahead, rows, channel, valid_ahead, DY_L)
        if HAS_Z:
            z_next = load_tile(z_ptr, ahead, rows, channel, valid_ahead, Z_L)
        total += tl.sum(dt, axis=0)
        BC = BC_ptr + tl.cast(start, tl.int64) * BC_L + n
        for t in tl.static_range(TILE - 1, -1, -1):
            C = tl.load(BC + (t * BC_L + BLOCK_N))
            dh += C[:, None] * pick_row(g, rows, t)[None, :]
            dh *= tl.exp2(A * pick_row(dt, rows, t)[None, :])
            if PACKED:
                token = tl.minimum(start + t, end - 1)
                opens = tl.load(seq_ptr + token) != tl.load(seq_ptr + token - 1)
                dh = tl.where(opens & (start + t < end), 0.0, dh)
    i = b * n_segments + segment
    tl.store(totals_ptr + i * d_inner + channel, total, mask=real)
    tl.store(carry_ptr + (i * D_STATE + n[:, None]) * d_inner + channel[None, :], dh, mask=own)


@triton.jit(
    do_not_specialize=["length", "segment_length", "n_segments", "seq_b", "A_d", "A_n"],
    do_not_specialize_on_alignment=["dfinal_ptr", "carry_ptr", "totals_ptr", "A_ptr"],
)
def carry_gradients_kernel(
    A_ptr, seq_ptr, dfinal_ptr, totals_ptr,
    carry_ptr,  # in: what a segment passes on alone; out: the gradient of the state after the segment
    A_d, A_n, seq_b, dfinal_b, dfinal_d, dfinal_n, d_inner, n_blocks, length, segment_length, n_segments,
    HAS_DFINAL: tl.constexpr, PACKED: tl.constexpr,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    b = (pid // n_blocks).to(tl.int64)
    channel = (pid % n_blocks) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < d_inner
    n = tl.arange(0, BLOCK_N)
    own = (n < D_STATE)[:, None] & real[None, :]
    A = tl.load(A_ptr + channel[None, :] * A_d + n[:, None] * A_n, mask=own, other=0.0).to(tl.float32) * LOG2E
    seq_ptr += b * seq_b
    dh = tl.zeros([BLOCK_N, CHANNELS], tl.float32)
    if HAS_DFINAL:
        offset = b * dfinal_b + channel.to(tl.int64)[None, :] * dfinal_d + n[:, None] * dfinal_n
        dh = tl.load(dfinal_ptr + offset, mask=own, other=0.0).to(tl.float32)
    for k in range(n_segments):
        segment = n_segments - 1 - k
        i = b * n_segments + segment
        here = carry_ptr + (i * D_STATE + n[:, None]) * d_inner + channel[None, :]
        alone = tl.load(here, mask=own & (segment > 0), other=0.0)
        total = tl.load(totals_ptr + i * d_inner + channel, mask=real & (segment > 0), other=0.0)
        tl.store(here, dh, mask=own)
        dh *= tl.exp2(A * total[None, :])
        if PACKED:
            first = segment * segment_length
            last = tl.minimum(first + segment_length, length) - 1
            opens = tl.load(seq_ptr + tl.maximum(first - 1, 0)) != tl.load(seq_ptr + last)
            dh = tl.where(opens, 0.0, dh)
        dh += alone


@triton.jit(
    do_not_specialize=[
        "length", "segment_length", "n_segments", "n_saved", "passes", "chunks_per_group", "padded_length",
        "batch", "dy_b", "x_b", "dt_b", "z_b", "seq_b", "A_d", "A_n",
        "after_b", "after_segment", "after_d", "after_n", "has_after",
    ],
    do_not_specialize_on_alignment=[
        "dy_ptr", "x_ptr", "dt_ptr", "z_ptr", "A_ptr", "states_ptr", "after_ptr", "scratch_ptr", "dx_ptr",
        "ddt_ptr", "dz_ptr", "dA_ptr", "dD_ptr", "dbias_ptr", "dinitial_ptr",
    ],
)  # fmt: skip
def scan_backward_kernel(
    dy_ptr, x_ptr, dt_ptr, A_ptr, BC_ptr, D_ptr, z_ptr, bias_ptr, seq_ptr,
    after_ptr,  # gradient of the state after each segment, read if has_after
    states_ptr,  # [b, n_saved, n, d] the states before tokens 0, SAVED_EVERY, ...
    scratch_ptr,  # [programs, SAVED_EVERY / TILE, n, CHANNELS]
    dx_ptr, ddt_ptr, dz_ptr,
    dA_ptr,  # [b, n_segments, n, d]
    dBC_ptr,  # [chunks of a group, b, l, g, 2, BLOCK_N]
    dD_ptr, dbias_ptr,  # [b, n_segments, d]
    dinitial_ptr,  # [b, d, n]
    dy_b, x_b, dt_b, z_b, padded_length, A_d, A_n, seq_b,
    after_b, after_segment, after_d, after_n, has_after,
    low, high, batch, d_inner, n_groups, per_group, blocks_per_group, chunks_per_group, length,
    segment_length, n_segments, n_saved,
    passes,  # blocks of channels that a program takes one after the other
    DY_L: tl.constexpr, X_L: tl.constexpr, DT_L: tl.constexpr, Z_L: tl.constexpr, BC_L: tl.constexpr,
    OUT_L: tl.constexpr,  # d_inner
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    PACKED: tl.constexpr,
    SOFTPLUS: tl.constexpr, LIMITED: tl.constexpr, SAVED_EVERY: tl.constexpr,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHANNELS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    chunk = pid % chunks_per_group
    group = (pid // chunks_per_group) % n_groups
    item = pid // (chunks_per_group * n_groups)
    segment = item % n_segments
    b = (item // n_segments).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    rows = tl.arange(0, TILE)
    lane = tl.arange(0, CHANNELS)

    dy_ptr += b * dy_b
    x_ptr += b * x_b
    dt_ptr += b * dt_b
    z_ptr += b * z_b
    BC_ptr += b * padded_length * BC_L + group * (2 * BLOCK_N)
    seq_ptr += b * seq_b
    dx_ptr += b * length * d_inner
    ddt_ptr += b * length * d_inner
    dz_ptr += b * length * d_inner
    dBC_ptr += (chunk * batch + b) * length * BC_L + group * (2 * BLOCK_N)
    scratch_ptr += pid.to(tl.int64) * ((SAVED_EVERY // TILE) * D_STATE * CHANNELS)
    # where the program notes the state before each of its tiles
    note = n[:, None] * CHANNELS + lane[None, :]
    noted = (n < D_STATE)[:, None] & (lane >= 0)[None, :]

    begin = segment * segment_length
    end = tl.minimum(begin + segment_length, length)
    first_saved = begin // SAVED_EVERY
    end_saved = tl.cdiv(end, SAVED_EVERY)
    for step in range(passes):
        inside = (chunk * passes + step) * CHANNELS + lane
        real = inside < per_group
        channel = group * per_group + inside
        own = (n < D_STATE)[:, None] & real[None, :]
        A = (
            tl.load(A_ptr + channel[None, :] * A_d + n[:, None] * A_n, mask=own, other=0.0).to(tl.float32)
            * LOG2E
        )
        bias = tl.zeros([CHANNELS], tl.float32)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + channel, mask=real, other=0.0).to(tl.float32)
        skip = tl.zeros([CHANNELS], tl.float32)
        if HAS_D:
            skip = tl.load(D_ptr + channel, mask=real, other=0.0).to(tl.float32)
        i_segment = b * n_segments + segment
        state_offset = (i_segment * D_STATE + n[:, None]) * d_inner + channel[None, :]
        offset = segment * after_segment + channel.to(tl.int64)[None, :] * after_d + n[:, None] * after_n
        dh = tl.load(after_ptr + b * after_b + offset, mask=own & (has_after != 0), other=0.0).to(tl.float32)
        dA = tl.zeros([BLOCK_N, CHANNELS], tl.float32)
        dskip = tl.zeros([CHANNELS], tl.float32)
        dbias = tl.zeros([CHANNELS], tl.float32)
        for back in range(end_saved - first_saved):
            saved = end_saved - 1 - back
            first = saved * SAVED_EVERY
            last = tl.minimum(first + SAVED_EVERY, end)
            n_tiles = tl.cdiv(last - first, TILE)
            offset = ((b * n_saved + saved) * D_STATE + n[:, None]) * d_inner + channel[None, :]
            h = tl.load(states_ptr + offset, mask=own, other=0.0)
            tl.store(scratch_ptr + note, h, mask=noted)
            for i in range(n_tiles - 1):
                start = first + i * TILE
                valid = (start + rows < last)[:, None] & real[None, :]
                x = load_tile(x_ptr, start, rows, channel, valid, X_L).to(tl.float32)
                dt = load_tile(dt_ptr, start, rows, channel, valid, DT_L)
                dt = step_size(dt, bias, valid, low, high, SOFTPLUS, LIMITED)
                update = dt * x
                BC = BC_ptr + tl.cast(start, tl.int64) * BC_L + n
                for t in tl.static_range(TILE):
                    B = tl.load(BC + t * BC_L)
                    if PACKED:
                        before = tl.load(seq_ptr + tl.maximum(start + t - 1, 0))
                        h = tl.where(tl.load(seq_ptr + start + t) != before, 0.0, h)
                    decay = tl.exp2(A * pick_row(dt, rows, t)[None, :])
                    h = decay * h + B[:, None] * pick_row(update, rows, t)[None, :]
                tl.store(scratch_ptr + (i + 1) * (D_STATE * CHANNELS) + note, h, mask=noted)
            tl.debug_barrier()  # the notes are read in the layout they were written in, or another
            for i in range(n_tiles):
                tile = n_tiles - 1 - i
                start = first + tile * TILE
                valid = (start + rows < last)[:, None] & real[None, :]
                x = load_tile(x_ptr, start, rows, channel, valid, X_L).to(tl.float32)
                raw_dt = load_tile(dt_ptr, start, rows, channel, valid, DT_L)
                dt = step_size(raw_dt, bias, valid, low, high, SOFTPLUS, LIMITED)
                dy = load_tile(dy_ptr, start, rows, channel, valid, DY_L).to(tl.float32)
                g = dy
                if HAS_Z:
                    z = load_tile(z_ptr, start, rows, channel, valid, Z_L).to(tl.float32)
                    gate = sigmoid(z)
                    g = dy * z * gate
                    y = skip[None, :] * x
                update = dt * x
                h = tl.load(scratch_ptr + tile * (D_STATE * CHANNELS) + note, mask=noted, other=0.0)
                states = (h,)
                BC = BC_ptr + tl.cast(start, tl.int64) * BC_L + n
                for t in tl.static_range(TILE):
                    B = tl.load(BC + t * BC_L)
                    if PACKED:
                        token = tl.minimum(start + t, last - 1)
                        before = tl.load(seq_ptr + tl.maximum(token - 1, 0))
                        opens = (tl.load(seq_ptr + token) != before) & (start + t < last)
                        h = tl.where(opens, 0.0, h)
                    decay = tl.exp2(A * pick_row(dt, rows, t)[None, :])
                    h = decay * h + B[:, None] * pick_row(update, rows, t)[None, :]
                    states = states + (h,)  # noqa: RUF005 - Triton knows no starred tuple
                    if HAS_Z:
                        C = tl.load(BC + (t * BC_L + BLOCK_N))
                        y = put_row(y, rows, t, pick_row(y, rows, t) + tl.sum(h * C[:, None], axis=0))
                if HAS_Z:
                    dz = dy * y * gate * (1.0 + z * (1.0 - gate))
                    store_tile(dz_ptr, start, rows, channel, valid, dz, OUT_L)
                dx = tl.zeros([TILE, CHANNELS], tl.float32)
                ddt = tl.zeros([TILE, CHANNELS], tl.float32)
                dBC = dBC_ptr + tl.cast(start, tl.int64) * BC_L
                for t in tl.static_range(TILE - 1, -1, -1):
                    inside_segment = start + t < last
                    B = tl.load(BC + t * BC_L)
                    C = tl.load(BC + (t * BC_L + BLOCK_N))
                    g_t = pick_row(g, rows, t)
                    dt_t = pick_row(dt, rows, t)
                    dh += C[:, None] * g_t[None, :]
                    dx = put_row(dx, rows, t, tl.sum(dh * B[:, None], axis=0))
                    dB = dh * pick_row(update, rows, t)[None, :]
                    dC = states[t + 1] * g_t[None, :]
                    store_channel_sums(
                        dBC + t * BC_L, dB, dC, n, lane, inside_segment, step > 0, BLOCK_N, CHANNELS
                    )
                    dh *= tl.exp2(A * dt_t[None, :])
                    if PACKED:
                        token = tl.minimum(start + t, last - 1)
                        before = tl.load(seq_ptr + tl.maximum(token - 1, 0))
                        opens = (tl.load(seq_ptr + token) != before) & inside_segment
                        dh = tl.where(opens, 0.0, dh)
                        q = tl.where(opens, 0.0, dh * states[t])
                    else:
                        q = dh * states[t]
                    ddt = put_row(ddt, rows, t, tl.sum(q * A, axis=0))
                    dA += q * dt_t[None, :]
                slope = step_slope(raw_dt, bias, valid, low, high, SOFTPLUS, LIMITED)
                ddt = (ddt * (1.0 / LOG2E) + x * dx) * slope
                store_tile(ddt_ptr, start, rows, channel, valid, ddt, OUT_L)
                store_tile(dx_ptr, start, rows, channel, valid, skip[None, :] * g + dt * dx, OUT_L)
                dbias += tl.sum(ddt, axis=0)
                dskip += tl.sum(g * x, axis=0)
            tl.debug_barrier()  # the notes are overwritten next
        tl.store(dA_ptr + state_offset, dA, mask=own)
        if HAS_D:
            tl.store(dD_ptr + i_segment * d_inner + channel, dskip, mask=real)
        if HAS_BIAS:
            tl.store(dbias_ptr + i_segment * d_inner + channel, dbias, mask=real)
        if HAS_INITIAL:  # noqa: SIM102 - one is known when compiling
            if segment == 0:
                offset = channel.to(tl.int64)[None, :] * D_STATE + n[:, None]
                tl.store(dinitial_ptr + b * d_inner * D_STATE + offset, dh, mask=own)
