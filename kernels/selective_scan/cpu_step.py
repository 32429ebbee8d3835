"""One token of the selective scan on CPU: a single compiled call, for it is the overhead that counts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from mambakit.kernels.arrays import as_array
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
from mambakit.kernels.vector_math import clamp, exp, sigmoid, softplus


def _step(
    x, dt, A, B, C, D, z, dt_bias, state, y, new_state, has_D, has_z, has_bias, use_softplus, dt_low, dt_high
):  # fmt: skip
    batch, d_inner = x.shape
    d_state, per_group = A.shape[1], d_inner // B.shape[1]
    steps, outs = aligned_zeros(1, 1, state), aligned_zeros(1, 1, state)
    for b in range(batch):
        for c in range(0, d_inner, LANES):
            count = min(LANES, d_inner - c)
            step = load_lanes(dt, (b, c), count)
            if has_bias:
                step = step + load_lanes(dt_bias, (c,), count)
            if use_softplus:
                step = softplus(step)
            store(steps, (0, 0, 0), clamp(step, dt_low, dt_high))
            for lane in range(count):
                d = c + lane
                group = d // per_group
                scale = splat_like(state, steps[0, 0, lane])
                scaled = scale * x[b, d]
                out = splat_like(state, 0.0)
                for n in range(0, d_state, LANES):
                    some = min(LANES, d_state - n)
                    decay = exp(scale * load_lanes(A, (d, n), some))
                    h = decay * load_lanes(state, (b, d, n), some)
                    h = h + scaled * load_lanes(B, (b, group, n), some)
                    store_lanes(new_state, (b, d, n), h, some)
                    out = out + h * load_lanes(C, (b, group, n), some)
                outs[0, 0, lane] = reduce_add(out)
            result = load(outs, (0, 0, 0))
            if has_D:
                result = result + load_lanes(D, (c,), count) * load_lanes(x, (b, c), count)
            if has_z:
                gate = load_lanes(z, (b, c), count)
                result = result * (gate * sigmoid(gate))
            store_lanes(y, (b, c), result, count)


@functools.cache
def _kernel(double: bool) -> Any:
    real = types.float64 if double else types.float32
    a1, a2, a3 = (types.Array(real, rank, "A") for rank in (1, 2, 3))
    flag = types.boolean
    signature = types.void(a2, a2, a2, a3, a3, a1, a2, a1, a3, a2, a3, flag, flag, flag, flag, real, real)
    return njit(signature, nogil=True, cache=True)(_step)


_NONE = {(rank, dtype): np.empty((0,) * rank, dtype) for rank in (1, 2) for dtype in (np.float32, np.float64)}


def step_cpu(
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
    """``selective_scan_step`` without gradients, of a float32 or float64 state; in place: of unit stride."""
    dtype = state.dtype
    double = dtype == torch.float64
    new_state = state if inplace else torch.empty(state.shape, dtype=dtype)
    y = torch.empty(x.shape, dtype=dtype)
    none1, none2 = (_NONE[rank, np.float64 if double else np.float32] for rank in (1, 2))
    low, high = dt_limit
    if low == 0.0 and high == float("inf"):
        low = -high  # the default clamps nothing
    _kernel(double)(
        as_array(x, dtype),
        as_array(dt, dtype),
        as_array(A, dtype),
        as_array(B, dtype),
        as_array(C, dtype),
        none1 if D is None else as_array(D, dtype),
        none2 if z is None else as_array(z, dtype),
        none1 if dt_bias is None else as_array(dt_bias, dtype),
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
