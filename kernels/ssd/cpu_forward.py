"""Chunked SSD forward on the CPU in float32: one numba kernel from the inputs to ``y``.

The algebra is ``portable``'s. A work item is one head of one row; it walks the chunks with its state
``[n, p]`` in the first-level cache: nothing but ``y`` and ``C B^T`` (which heads share) goes to memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from mambakit.kernels.parallel import in_portions
from mambakit.kernels.ssd.cpu_chunk import (
    add_lower_product,
    chunk_decays,
    chunk_products,
    decay_matrix,
    fill_skip,
    scale_all,
    scale_rows,
)
from mambakit.kernels.ssd.cpu_matmul import JIT, ONE, ZERO, add_matmul
from mambakit.kernels.vector import LANES, load_lanes, store_lanes
from mambakit.kernels.vector_math import sigmoid

NONE = np.zeros(0, np.float32)
NO_SEQUENCES = np.zeros(0, np.int32)


def ssd_forward_cpu(
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
) -> tuple[Tensor, Tensor]:
    """``(y, final_state)``; as ``ssd_forward``, no dimension may be 0."""
    sizes = sizes_of(x, B)
    q = min(chunk_size, sizes[1])
    y = torch.empty(x.shape)
    state = inner_state(initial_state, sizes)
    Bs, Cs = rows(B), rows(C)
    in_parallel(
        _forward,
        sizes[0] * sizes[2],
        *rows(x),
        flat(log_decay),
        flat(scale),
        *Bs,
        *Cs,
        products(Bs, Cs, sizes, q),
        flat(D),
        *rows(z),
        NO_SEQUENCES if seq_idx is None else seq_idx.contiguous().view(-1).numpy(),
        sizes,
        q,
        state.view(-1).numpy(),
        y.view(-1).numpy(),
    )
    return y.to(x.dtype), state.transpose(2, 3).contiguous()


def sizes_of(x: Tensor, B: Tensor) -> tuple[int, ...]:
    """batch, length, n_heads, head_dim, n_groups, d_state."""
    return (*x.shape, *B.shape[2:])


def rows(v: Tensor | None) -> tuple[np.ndarray, int, int]:
    """``[b, l, h, p]`` as one flat float32 array with the strides of b and l; copied only if it must be."""
    if v is None:
        return NONE, 0, 0
    v = v.detach().float()
    b, length, h, p = v.shape
    if (p > 1 and v.stride(3) != 1) or (h > 1 and v.stride(2) != p):
        v = v.contiguous()
    size = (b - 1) * v.stride(0) + (length - 1) * v.stride(1) + h * p
    return v.as_strided((size,), (1,)).numpy(), v.stride(0), v.stride(1)


def flat(v: Tensor | None) -> np.ndarray:
    """As one flat float32 array."""
    return NONE if v is None else v.detach().float().contiguous().view(-1).numpy()


def inner_state(state: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
    """A fresh float32 copy of ``[b, h, p, n]`` as ``[b, h, n, p]``; zeros for None."""
    batch, _, n_heads, head_dim, _, d_state = sizes
    inner = torch.zeros(batch, n_heads, d_state, head_dim)
    return inner if state is None else inner.copy_(state.detach().transpose(2, 3))


def products(
    B: tuple[np.ndarray, int, int], C: tuple[np.ndarray, int, int], sizes: tuple[int, ...], q: int
) -> np.ndarray:
    """``C B^T`` of every chunk and group, ``[bcg, q * pad]``; only the lower triangles are filled."""
    n_items = sizes[0] * -(-sizes[1] // q) * sizes[4]
    pad = -(-q // LANES) * LANES
    result = np.empty((n_items, q * pad), np.float32)
    in_parallel(chunk_products, n_items, *B, *C, sizes, q, pad, result)
    return result


def in_parallel(kernel: Callable[..., object], n_items: int, *args: object) -> None:
    """``kernel(lo, hi, *args)`` over the items."""
    in_portions(n_items, lambda lo, hi: kernel(lo, hi, *args))


@numba.njit(**JIT)
def _forward(
    lo, hi, x, xb, xt, log_decay, scale, B, bb, bt, C, cb, ct, products, D, z, zb, zt,
    seq_idx, sizes, q, states, y,
):  # fmt: skip
    _, length, n_heads, p, n_groups, d_state = sizes
    n_chunks, pad = (length + q - 1) // q, (q + LANES - 1) // LANES * LANES
    high, low, into, out = (
        np.zeros(pad, np.float32),
        np.zeros(pad, np.float32),
        np.zeros(pad, np.float32),
        np.zeros(pad, np.float32),
    )
    weight, scales, start = np.zeros(pad, np.float32), np.zeros(pad, np.float32), np.zeros(pad, np.int64)
    M, scaled = np.empty(q * pad, np.float32), np.empty(q * d_state, np.float32)
    for item in range(lo, hi):
        b, head = item // n_heads, item % n_heads
        g = head * n_groups // n_heads
        state = states[item * d_state * p : (item + 1) * d_state * p]
        for c in range(n_chunks):
            t0 = c * q
            n = min(q, length - t0)
            token0 = b * length + t0
            x0, b0, c0 = (
                b * xb + t0 * xt + head * p,
                b * bb + t0 * bt + g * d_state,
                b * cb + t0 * ct + g * d_state,
            )
            y0, y_row = (token0 * n_heads + head) * p, n_heads * p
            through, _ = chunk_decays(
                log_decay, n_heads, head, seq_idx, b * length, t0, n, high, low, into, out, start
            )
            for i in range(n):
                scales[i] = scale[(token0 + i) * n_heads + head]
                weight[i] = scales[i] * out[i]
            fill_skip(y, y0, y_row, D, head * p, x, x0, xt, n, p)
            scale_rows(C, c0, ct, into, n, d_state, scaled, ZERO, d_state)
            add_matmul(y, y0, y_row, scaled, ZERO, d_state, ONE, state, ZERO, p, n, d_state, p)
            decay_matrix(products[(b * n_chunks + c) * n_groups + g], pad, high, low, scales, start, n, M)
            add_lower_product(y, y0, y_row, M, pad, x, x0, xt, n, p)
            if z.size:
                z0 = b * zb + t0 * zt + head * p
                for i in range(n):
                    for k in range(0, p, LANES):
                        count, at = min(LANES, p - k), y0 + i * y_row + k
                        gate = load_lanes(z, (z0 + i * zt + k,), count)
                        store_lanes(y, (at,), load_lanes(y, (at,), count) * gate * sigmoid(gate), count)
            scale_rows(B, b0, bt, weight, n, d_state, scaled, ZERO, d_state)
            scale_all(state, d_state * p, through)
            add_matmul(state, ZERO, p, scaled, ZERO, ONE, d_state, x, x0, xt, d_state, n, p)
