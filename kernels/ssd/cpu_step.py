"""One token of SSD on the CPU: a single compiled call, for it is the overhead that counts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from mambakit.kernels.arrays import as_array
from mambakit.kernels.vector import LANES, load, load_lanes, reduce_add, splat_like, store, store_lanes
from mambakit.kernels.vector_math import clamp, exp, sigmoid, softplus


def _step(
    x, dt, A, B, C, D, z, dt_bias, state, y, new_state, has_D, has_z, has_bias, use_softplus, dt_low, dt_high
):  # fmt: skip
    batch, n_heads, head_dim = x.shape
    d_state, per_group = state.shape[3], n_heads // B.shape[1]
    whole = d_state // LANES * LANES
    for b in range(batch):
        for head in range(n_heads):
            group = head // per_group
            step = splat_like(state, dt[b, head])
            if has_bias:
                step = step + dt_bias[head]
            if use_softplus:
                step = softplus(step)
            step = clamp(step, dt_low, dt_high)
            decay = exp(step * A[head])
            for p in range(head_dim):
                scaled, out = step * x[b, head, p], splat_like(state, 0.0)
                for n in range(0, whole, LANES):
                    h = decay * load(state, (b, head, p, n)) + scaled * load(B, (b, group, n))
                    store(new_state, (b, head, p, n), h)
                    out = out + h * load(C, (b, group, n))
                if whole < d_state:
                    rest = d_state - whole
                    h = decay * load_lanes(state, (b, head, p, whole), rest)
                    h = h + scaled * load_lanes(B, (b, group, whole), rest)
                    store_lanes(new_state, (b, head, p, whole), h, rest)
                    out = out + h * load_lanes(C, (b, group, whole), rest)
                y[b, head, p] = reduce_add(out)
            if has_D:
                # (n_heads, 1) or (n_heads, head_dim)
                for p in range(head_dim):
                    y[b, head, p] += D[head, min(p, D.shape[1] - 1)] * x[b, head, p]
            if has_z:
                for p in range(0, head_dim, LANES):
                    count = min(LANES, head_dim - p)
                    gate = load_lanes(z, (b, head, p), count)
                    result = load_lanes(y, (b, head, p), count) * (gate * sigmoid(gate))
                    store_lanes(y, (b, head, p), result, count)


@functools.cache
def _kernel(double: bool) -> Any:
    real = types.float64 if double else types.float32
    a1, a2, a3, a4 = (types.Array(real, rank, "A") for rank in (1, 2, 3, 4))
    flag = types.boolean
    signature = types.void(a3, a2, a1, a3, a3, a2, a3, a1, a4, a3, a4, flag, flag, flag, flag, real, real)
    return njit(signature, nogil=True, cache=True)(_step)


_NONE = {
    (rank, double): np.empty((0,) * rank, "f8" if double else "f4") for rank in (1, 2, 3) for double in (0, 1)
}


def ssd_step_cpu(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    inplace: bool,
) -> tuple[Tensor, Tensor]:
    """``ssd_step`` without gradients, of a float32 or float64 state; in place: of unit stride."""
    dtype = state.dtype
    double = dtype == torch.float64
    new_state = state if inplace else torch.empty(state.shape, dtype=dtype)
    y = torch.empty(x.shape, dtype=dtype)
    if D is not None and D.dim() == 1:
        D = D[:, None]
    low, high = dt_limit
    if low == 0.0 and high == float("inf"):
        low = -high  # the default clamps nothing
    _kernel(double)(
        as_array(x, dtype),
        as_array(dt, dtype),
        as_array(A, dtype),
        as_array(B, dtype),
        as_array(C, dtype),
        _NONE[2, double] if D is None else as_array(D, dtype),
        _NONE[3, double] if z is None else as_array(z, dtype),
        _NONE[1, double] if dt_bias is None else as_array(dt_bias, dtype),
        as_array(state, dtype),
        y.numpy(),
        as_array(new_state, dtype),
        D is not None,
        z is not None,
        dt_bias is not None,
        dt_softplus,
        low,
        high,
    )
    return y.to(x.dtype), new_state
