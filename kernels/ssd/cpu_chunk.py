"""What the CPU kernels of ssd share: a chunk's decays, its masked matrix, and steps on whole chunks.

Everything is float32; scratch rows have a stride ``pad`` (the chunk size rounded up to whole vectors), and
what lies beyond a chunk's end in them is finite, so that vectors may run over it.
"""

from __future__ import annotations

import numba
import numpy as np

from mambakit.kernels.ssd.cpu_matmul import JIT, ONE, ZERO, add_matmul, transpose
from mambakit.kernels.vector import LANES, load, load_lanes, reduce_add, splat_like, store, store_lanes
from mambakit.kernels.vector_math import exp

# exp(-1000) is zero, and sums of bounded terms have no inf - inf
LOWEST_LOG_DECAY = -1000.0
# rows of a triangular product taken together: two tiles
BAND = 12

_MASKED = np.float32(-1e30)
# added to an exponent: row r masks the lanes after r, or those before r
AFTER = np.where(np.arange(LANES) > np.arange(LANES)[:, None], _MASKED, np.float32(0))
BEFORE = np.where(np.arange(LANES) < np.arange(LANES)[:, None], _MASKED, np.float32(0))


@numba.njit(**JIT)
def chunk_decays(log_decay, n_heads, head, seq_idx, row0, t0, n, high, low, into, out, start):
    """Fill the decays of the ``n`` tokens from ``t0`` of a row that begins at ``row0 = b * length``.

    ``high + low`` is the running log-decay, of twice the usual digits, as differences of it follow.
    ``into`` and ``out`` are the decay from the chunk's start to each token and from each token to its end, 0
    across a sequence's border; ``start`` is the first token of each one's sequence.
    Returns the decay through the chunk, and the first token of another sequence (``n`` if there is none).
    """
    pad = high.size
    total = 0.0
    first = 0
    carried = n
    for i in range(n):
        t = row0 + t0 + i
        total += max(np.float64(log_decay[t * n_heads + head]), LOWEST_LOG_DECAY)
        high[i] = np.float32(total)
        low[i] = np.float32(total - np.float64(high[i]))
        if seq_idx.size and t0 + i > 0 and seq_idx[t] != seq_idx[t - 1]:
            first = i
            carried = min(carried, i)
        start[i] = first
    high[n:pad] = high[n - 1]
    low[n:pad] = low[n - 1]
    last_high, last_low = high[n - 1], low[n - 1]
    for i in range(0, pad, LANES):
        near, far = load(high, (i,)), load(low, (i,))
        store(into, (i,), exp(near + far))
        store(out, (i,), exp((last_high - near) + (last_low - far)))
    through = into[n - 1] if carried == n else np.float32(0)
    into[carried:pad] = np.float32(0)
    out[:first] = np.float32(0)
    return through, carried


@numba.njit(**JIT)
def exponent(high, low, i, j, first, at_high, at_low):
    """``cum_i - cum_j`` for the vector at ``j``, masked where j > i or j is in an earlier sequence."""
    difference = (at_high - load(high, (j,))) + (at_low - load(low, (j,)))
    if j + LANES > i:
        difference = difference + load(AFTER, (min(i - j, LANES - 1), 0))
    if j < first:
        difference = difference + load(BEFORE, (min(first - j, LANES - 1), 0))
        if first - j >= LANES:
            difference = difference + _MASKED
    return difference


@numba.njit(**JIT)
def decay_matrix(CB, pad, high, low, scale, start, n, M):
    """``M_ij = CB_ij exp(cum_i - cum_j) scale_j`` for j <= i in one sequence, else 0."""
    for i in range(n):
        for j in range(0, i + 1, LANES):
            decay = exp(exponent(high, low, i, j, start[i], high[i], low[i]))
            store(M, (i * pad + j,), decay * load(CB, (i * pad + j,)) * load(scale, (j,)))
        # from the diagonal on: a masked decay times the NaN of a later token is NaN
        M[i * pad + i + 1 : (i + 1) * pad] = np.float32(0)


@numba.njit(**JIT)
def scale_rows(source, s0, s_row, factor, rows, columns, target, t0, t_row):
    """``target[t0 + i * t_row + j] = factor[i] * source[s0 + i * s_row + j]``."""
    for i in range(rows):
        for j in range(0, columns, LANES):
            count = min(LANES, columns - j)
            value = load_lanes(source, (s0 + i * s_row + j,), count) * factor[i]
            store_lanes(target, (t0 + i * t_row + j,), value, count)


@numba.njit(**JIT)
def scale_all(values, size, factor):
    """``values[:size] *= factor``."""
    for k in range(0, size, LANES):
        count = min(LANES, size - k)
        store_lanes(values, (k,), load_lanes(values, (k,), count) * factor, count)


@numba.njit(**JIT)
def copy_all(source, size, target):
    """``target[:size] = source[:size]``."""
    for k in range(size):
        target[k] = source[k]


@numba.njit(**JIT)
def fill_skip(target, t0, t_row, D, d0, x, x0, x_row, rows, columns):
    """``target = D * x`` row by row, or zeros where ``D`` is empty."""
    zero = splat_like(target, 0.0)
    for i in range(rows):
        for k in range(0, columns, LANES):
            count = min(LANES, columns - k)
            value = zero
            if D.size:
                value = load_lanes(D, (d0 + k,), count) * load_lanes(x, (x0 + i * x_row + k,), count)
            store_lanes(target, (t0 + i * t_row + k,), value, count)


@numba.njit(**JIT)
def _is_finite(b, b0, b_row, n, width):
    """Whether all of ``b`` ``(n, width)`` is finite."""
    zeros = splat_like(b, 0.0)
    for i in range(n):
        for k in range(0, width, LANES):
            zeros = zeros + load_lanes(b, (b0 + i * b_row + k,), min(LANES, width - k)) * 0.0
    return reduce_add(zeros) == 0.0


@numba.njit(**JIT)
def add_lower_product(c, c0, c_row, a, a_row, b, b0, b_row, n, width):
    """``c += a @ b`` for a lower-triangular ``a`` ``(n, n)`` at its array's start."""
    if not _is_finite(b, b0, b_row, n, width):
        # zeros do not mask the NaN or infinity of a later row, so it must not be read
        for i in range(n):
            at = c0 + i * c_row
            add_matmul(c, at, c_row, a, i * a_row, a_row, ONE, b, b0, b_row, ONE, i + 1, width)
        return
    for i in range(0, n, BAND):
        rows = min(BAND, n - i)
        add_matmul(c, c0 + i * c_row, c_row, a, i * a_row, a_row, ONE, b, b0, b_row, rows, i + rows, width)


@numba.njit(**JIT)
def add_upper_product(c, c0, c_row, a, a_row, b, b0, b_row, n, width):
    """``c += a^T @ b`` for a lower-triangular ``a`` ``(n, n)`` at its array's start."""
    for i in range(0, n, BAND):
        rows = min(BAND, n - i)
        at = i * a_row + i
        add_matmul(c, c0 + i * c_row, c_row, a, at, ONE, a_row, b, b0 + i * b_row, b_row, rows, n - i, width)


@numba.njit(**JIT)
def lower_of_product(c, pad, a, a0, a_row, b, n, depth):
    """The lower triangle of ``a @ b``, ``(n, n)``, and what whole vectors see past the diagonal."""
    for i in range(0, n, BAND):
        rows = min(BAND, n - i)
        c[i * pad : (i + rows) * pad] = np.float32(0)
        width = min(n, (i + rows + LANES - 1) // LANES * LANES)
        add_matmul(c, i * pad, pad, a, a0 + i * a_row, a_row, ONE, b, ZERO, pad, rows, depth, width)


@numba.njit(**JIT)
def chunk_products(lo, hi, B, bb, bt, C, cb, ct, sizes, q, pad, products):
    """Lower triangles of ``C B^T`` for the items ``lo:hi`` of (row, chunk, group); ``products[item]``."""
    length, n_groups, d_state = sizes[1], sizes[4], sizes[5]
    n_chunks = (length + q - 1) // q
    turned = np.empty(d_state * pad, np.float32)
    for item in range(lo, hi):
        b, c, g = item // (n_chunks * n_groups), item // n_groups % n_chunks, item % n_groups
        n = min(q, length - c * q)
        transpose(B, b * bb + c * q * bt + g * d_state, bt, n, d_state, turned, pad)
        lower_of_product(products[item], pad, C, b * cb + c * q * ct + g * d_state, ct, turned, n, d_state)


@numba.njit(**JIT)
def dot_rows(a, a0, a_row, b, rows, columns, target):
    """``target[i] = a_i . b_i``, the rows of ``b`` being next to each other."""
    for i in range(rows):
        total = splat_like(target, 0.0)
        for k in range(0, columns, LANES):
            count = min(LANES, columns - k)
            total = total + load_lanes(a, (a0 + i * a_row + k,), count) * load_lanes(
                b, (i * columns + k,), count
            )
        target[i] = reduce_add(total)


@numba.njit(**JIT)
def dot_all(a, b, size):
    """The sum of ``a * b`` over the first ``size`` values."""
    total = splat_like(a, 0.0)
    for k in range(0, size, LANES):
        count = min(LANES, size - k)
        total = total + load_lanes(a, (k,), count) * load_lanes(b, (k,), count)
    return reduce_add(total)
