"""Chunked SSD backward on the CPU in float32.

One numba kernel walks the chunks forwards for the states, another backwards for every gradient. A work
item of the second is a block of a group's heads in one row: it sums the block's part of the gradients of B
and C, and the blocks' parts are added at the end: the result does not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from mambakit.kernels.ssd.cpu_chunk import (
    add_lower_product,
    add_upper_product,
    chunk_decays,
    copy_all,
    decay_matrix,
    dot_all,
    dot_rows,
    exponent,
    fill_skip,
    lower_of_product,
    scale_all,
    scale_rows,
)
from mambakit.kernels.ssd.cpu_forward import (
    NO_SEQUENCES,
    flat,
    in_parallel,
    inner_state,
    products,
    rows,
    sizes_of,
)
from mambakit.kernels.ssd.cpu_matmul import JIT, ONE, ZERO, add_matmul, transpose
from mambakit.kernels.vector import LANES, load, load_lanes, reduce_add, splat_like, store, store_lanes
from mambakit.kernels.vector_math import exp, sigmoid

# blocks of heads a call is cut into at least, if it has the heads
_MIN_ITEMS = 8


def ssd_backward_cpu(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """As ``ssd_backward``; no dimension may be 0."""
    sizes = sizes_of(x, B)
    batch, length, n_heads, head_dim, n_groups, d_state = sizes
    q = min(chunk_size, length)
    n_blocks = _head_blocks(batch * n_groups, n_heads // n_groups)
    packed = NO_SEQUENCES if seq_idx is None else seq_idx.contiguous().view(-1).numpy()
    xs, Bs, Cs = rows(x), rows(B), rows(C)
    decays, scales = flat(log_decay), flat(scale)
    n_items = batch * n_heads
    states = np.empty((n_items, -(-length // q), d_state * head_dim), np.float32)
    running = inner_state(initial_state, sizes).view(-1).numpy()
    in_parallel(_states, n_items, *xs, decays, scales, *Bs, packed, sizes, q, running, states)
    dstate = inner_state(dfinal, sizes)
    dx = torch.empty(x.shape)
    dz = torch.empty(x.shape if z is not None else (0,))
    dB, dC = torch.zeros(2, n_blocks, batch, length, n_groups, d_state)
    dD = torch.zeros(batch, n_heads * head_dim if D is not None else 0)
    dlog_decay, dscale = torch.empty(batch, length, n_heads), torch.empty(batch, length, n_heads)
    in_parallel(
        _backward,
        batch * n_groups * n_blocks,
        *rows(dy),
        *xs,
        decays,
        scales,
        *Bs,
        *Cs,
        products(Bs, Cs, sizes, q),
        flat(D),
        *rows(z),
        packed,
        sizes,
        q,
        n_blocks,
        states,
        *(v.view(-1).numpy() for v in (dstate, dx, dlog_decay, dscale, dB, dC, dD, dz)),
    )
    return (
        dx.to(x.dtype),
        dlog_decay.to(log_decay.dtype),
        dscale.to(scale.dtype),
        dB.sum(0).to(B.dtype),
        dC.sum(0).to(C.dtype),
        None if D is None else dD.sum(0).view(n_heads, head_dim),
        None if z is None else dz.to(z.dtype),
        dstate.transpose(2, 3).contiguous(),
    )


def _head_blocks(n_items: int, heads: int) -> int:
    """Into how many blocks of equal size the heads of a group are cut."""
    return next(
        n for n in range(1, heads + 1) if heads % n == 0 and (n_items * n >= _MIN_ITEMS or n == heads)
    )


@numba.njit(**JIT)
def _states(lo, hi, x, xb, xt, log_decay, scale, B, bb, bt, seq_idx, sizes, q, running, states):
    """The state at the start of every chunk."""
    _, length, n_heads, p, n_groups, d_state = sizes
    n_chunks, pad = (length + q - 1) // q, (q + LANES - 1) // LANES * LANES
    high, low = np.zeros(pad, np.float32), np.zeros(pad, np.float32)
    into, out, weight = np.zeros(pad, np.float32), np.zeros(pad, np.float32), np.zeros(pad, np.float32)
    start, scaled = np.zeros(pad, np.int64), np.empty(q * d_state, np.float32)
    for item in range(lo, hi):
        b, head = item // n_heads, item % n_heads
        state = running[item * d_state * p : (item + 1) * d_state * p]
        for c in range(n_chunks):
            copy_all(state, d_state * p, states[item, c])
            t0 = c * q
            n = min(q, length - t0)
            through, _ = chunk_decays(
                log_decay, n_heads, head, seq_idx, b * length, t0, n, high, low, into, out, start
            )
            for i in range(n):
                weight[i] = scale[(b * length + t0 + i) * n_heads + head] * out[i]
            b0 = b * bb + t0 * bt + head * n_groups // n_heads * d_state
            scale_rows(B, b0, bt, weight, n, d_state, scaled, ZERO, d_state)
            scale_all(state, d_state * p, through)
            x0 = b * xb + t0 * xt + head * p
            add_matmul(state, ZERO, p, scaled, ZERO, ONE, d_state, x, x0, xt, d_state, n, p)


@numba.njit(**JIT)
def _gradient_matrix(CB, dM, pad, high, low, scale, start, n, M, dCB, column, spans):
    """M again, its gradient's share of ``dCB``, and two sums of ``W = dM * M``.

    ``column_j`` sums ``W_ij / scale_j`` over i; ``spans_t`` sums ``W_ij`` over i >= t > j, which are the
    pairs that pass through the decay of token t. A difference of row and column sums would give it as well,
    but at the cost of the digits that cancel.
    """
    column[:] = np.float32(0)
    # upwards, so that the column sums hold the tokens from i on when span_i is taken
    for i in range(n - 1, -1, -1):
        span = splat_like(M, 0.0)
        for j in range(0, i + 1, LANES):
            at = i * pad + j
            decay, scales = exp(exponent(high, low, i, j, start[i], high[i], low[i])), load(scale, (j,))
            product, grad = load(CB, (at,)), load(dM, (at,)) * decay
            store(M, (at,), decay * product * scales)
            store(dCB, (at,), load(dCB, (at,)) + grad * scales)
            total = load(column, (j,)) + grad * product
            store(column, (j,), total)
            if j + LANES <= i:
                span = span + total * scales
        spans[i] = reduce_add(span)
        for j in range(i // LANES * LANES, i):
            spans[i] += column[j] * scale[j]
        M[i * pad + (i // LANES + 1) * LANES : (i + 1) * pad] = np.float32(0)


@numba.njit(**JIT)
def _through_gate(dy, dy0, dy_row, z, z0, z_row, y, rows, p, dz, dz0, dz_row, grad):
    """``dz`` and, in place of ``y`` ``[rows, p]``'s gradient behind the gate, ``grad`` before it."""
    for i in range(rows):
        for k in range(0, p, LANES):
            count = min(LANES, p - k)
            given, gate = (
                load_lanes(dy, (dy0 + i * dy_row + k,), count),
                load_lanes(z, (z0 + i * z_row + k,), count),
            )
            s = sigmoid(gate)
            if dz.size:
                slope = s * (gate * (1.0 - s) + 1.0)
                value = given * load_lanes(y, (i * p + k,), count) * slope
                store_lanes(dz, (dz0 + i * dz_row + k,), value, count)
            store_lanes(grad, (i * p + k,), given * gate * s, count)


@numba.njit(**JIT)
def _add_skip_gradient(dD, d0, x, x0, x_row, dy, dy0, dy_row, rows, p):
    """``dD += sum_i x_i dy_i``."""
    for k in range(0, p, LANES):
        count = min(LANES, p - k)
        total = load_lanes(dD, (d0 + k,), count)
        for i in range(rows):
            total = total + load_lanes(x, (x0 + i * x_row + k,), count) * load_lanes(
                dy, (dy0 + i * dy_row + k,), count
            )
        store_lanes(dD, (d0 + k,), total, count)


@numba.njit(**JIT)
def _add_scaled_rows(target, t0, t_row, source, factor, rows, columns):
    """``target_i += factor_i source_i``."""
    for i in range(rows):
        for k in range(0, columns, LANES):
            count, at = min(LANES, columns - k), t0 + i * t_row + k
            value = (
                load_lanes(target, (at,), count) + load_lanes(source, (i * columns + k,), count) * factor[i]
            )
            store_lanes(target, (at,), value, count)


@numba.njit(**JIT)
def _backward(
    lo, hi, dy, dyb, dyt, x, xb, xt, log_decay, scale, B, bb, bt, C, cb, ct, products, D, z, zb, zt, seq_idx,
    sizes, q, n_blocks, states, dstates, dx, dlog_decay, dscale, dB, dC, dD, dz,
):  # fmt: skip
    batch, length, n_heads, p, n_groups, d_state = sizes
    n_chunks, pad = (length + q - 1) // q, (q + LANES - 1) // LANES * LANES
    block_heads = n_heads // n_groups // n_blocks
    y_row, g_row = n_heads * p, n_groups * d_state
    high, low = np.zeros(pad, np.float32), np.zeros(pad, np.float32)
    into, out, weight = np.zeros(pad, np.float32), np.zeros(pad, np.float32), np.zeros(pad, np.float32)
    scales, column, spans = np.zeros(pad, np.float32), np.zeros(pad, np.float32), np.zeros(pad, np.float32)
    leaving, entering = np.zeros(pad, np.float32), np.zeros(pad, np.float32)
    start = np.zeros(pad, np.int64)
    M, dM, dCB = np.empty(q * pad, np.float32), np.zeros(q * pad, np.float32), np.empty(q * pad, np.float32)
    by_state, turned = np.empty(q * d_state, np.float32), np.empty(p * max(pad, d_state), np.float32)
    grad, y = np.empty(q * p, np.float32), np.empty(q * p if z.size else 0, np.float32)
    for item in range(lo, hi):
        block, g, b = item % n_blocks, item // n_blocks % n_groups, item // (n_blocks * n_groups)
        for c in range(n_chunks - 1, -1, -1):
            t0 = c * q
            n = min(q, length - t0)
            token0 = b * length + t0
            b0, c0 = b * bb + t0 * bt + g * d_state, b * cb + t0 * ct + g * d_state
            g0 = ((block * batch + b) * length + t0) * g_row + g * d_state
            CB = products[(b * n_chunks + c) * n_groups + g]
            dCB[:] = np.float32(0)
            for head in range((g * n_blocks + block) * block_heads, (g * n_blocks + block + 1) * block_heads):
                S = states[b * n_heads + head, c]
                dS = dstates[(b * n_heads + head) * d_state * p : (b * n_heads + head + 1) * d_state * p]
                x0, y0 = b * xb + t0 * xt + head * p, (token0 * n_heads + head) * p
                through, _ = chunk_decays(
                    log_decay, n_heads, head, seq_idx, b * length, t0, n, high, low, into, out, start
                )
                for i in range(n):
                    scales[i] = scale[(token0 + i) * n_heads + head]
                    weight[i] = scales[i] * out[i]

                dy_head, dy0, dy_row = dy, b * dyb + t0 * dyt + head * p, dyt
                if z.size:
                    z0 = b * zb + t0 * zt + head * p
                    decay_matrix(CB, pad, high, low, scales, start, n, M)
                    fill_skip(y, ZERO, p, D, head * p, x, x0, xt, n, p)
                    scale_rows(C, c0, ct, into, n, d_state, by_state, ZERO, d_state)
                    add_matmul(y, ZERO, p, by_state, ZERO, d_state, ONE, S, ZERO, p, n, d_state, p)
                    add_lower_product(y, ZERO, p, M, pad, x, x0, xt, n, p)
                    _through_gate(dy, dy0, dyt, z, z0, zt, y, n, p, dz, y0, y_row, grad)
                    dy_head, dy0, dy_row = grad, 0, p

                # inside the chunk
                transpose(x, x0, xt, n, p, turned, pad)
                lower_of_product(dM, pad, dy_head, dy0, dy_row, turned, n, p)
                _gradient_matrix(CB, dM, pad, high, low, scales, start, n, M, dCB, column, spans)
                fill_skip(dx, y0, y_row, D, head * p, dy_head, dy0, dy_row, n, p)
                add_upper_product(dx, y0, y_row, M, pad, dy_head, dy0, dy_row, n, p)
                if D.size:
                    _add_skip_gradient(dD, (b * n_heads + head) * p, x, x0, xt, dy_head, dy0, dy_row, n, p)

                # what leaves the chunk in its last state
                scale_rows(B, b0, bt, weight, n, d_state, by_state, ZERO, d_state)
                add_matmul(dx, y0, y_row, by_state, ZERO, d_state, ONE, dS, ZERO, p, n, d_state, p)
                transpose(dS, ZERO, p, d_state, p, turned, d_state)
                by_state[:] = np.float32(0)
                add_matmul(by_state, ZERO, d_state, x, x0, xt, ONE, turned, ZERO, d_state, n, p, d_state)
                dot_rows(B, b0, bt, by_state, n, d_state, leaving)
                _add_scaled_rows(dB, g0, g_row, by_state, weight, n, d_state)

                # what entered it with its first
                transpose(S, ZERO, p, d_state, p, turned, d_state)
                by_state[:] = np.float32(0)
                add_matmul(
                    by_state, ZERO, d_state, dy_head, dy0, dy_row, ONE, turned, ZERO, d_state, n, p, d_state
                )
                dot_rows(C, c0, ct, by_state, n, d_state, entering)
                _add_scaled_rows(dC, g0, g_row, by_state, into, n, d_state)
                kept = through * dot_all(dS, S, d_state * p)
                scale_rows(C, c0, ct, into, n, d_state, by_state, ZERO, d_state)
                scale_all(dS, d_state * p, through)
                add_matmul(dS, ZERO, p, by_state, ZERO, ONE, d_state, dy_head, dy0, dy_row, d_state, n, p)

                # tokens after i that entered decays pass through i's; so do those before that leave
                total = np.float64(kept)
                for i in range(n):
                    at = (token0 + i) * n_heads + head
                    dscale[at] = column[i] + out[i] * leaving[i]
                    dlog_decay[at] = np.float32(total + spans[i])
                    total += np.float64(weight[i]) * leaving[i]
                total = np.float64(0.0)
                for i in range(n - 1, -1, -1):
                    total += np.float64(into[i]) * entering[i]
                    dlog_decay[(token0 + i) * n_heads + head] += np.float32(total)
            add_lower_product(dC, g0, g_row, dCB, pad, B, b0, bt, n, d_state)
            add_upper_product(dB, g0, g_row, dCB, pad, C, c0, ct, n, d_state)
