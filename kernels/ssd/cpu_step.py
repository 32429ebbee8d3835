"""One token of SSD on the CPU: a single compiled call, for it is the overhead that counts."""

from __future__ import annotations

import functools
from typing import Any

from numba import carray, njit, types

from mambakit.kernels.addresses import pointer
from mambakit.kernels.vector import LANES, load, load_lanes, reduce_add, splat_like, store, store_lanes
from mambakit.kernels.vector_math import clamp, exp, sigmoid, softplus


def step_at(
    state_at, x_at, dt_at, A_at, B_at, C_at, D_at, z_at, bias_at, y_at, new_state_at,
    batch, n_heads, head_dim, d_state, n_groups, d_columns, use_softplus, dt_low, dt_high,
):  # fmt: skip
    state = carray(pointer(state_at, dt_low), (batch, n_heads, head_dim, d_state))
    new_state = carray(pointer(new_state_at, dt_low), (batch, n_heads, head_dim, d_state))
    x = carray(pointer(x_at, dt_low), (batch, n_heads, head_dim))
    z = carray(pointer(z_at, dt_low), (batch, n_heads, head_dim))
    y = carray(pointer(y_at, dt_low), (batch, n_heads, head_dim))
    dt = carray(pointer(dt_at, dt_low), (batch, n_heads))
    A = carray(pointer(A_at, dt_low), (n_heads,))
    bias = carray(pointer(bias_at, dt_low), (n_heads,))
    B = carray(pointer(B_at, dt_low), (batch, n_groups, d_state))
    C = carray(pointer(C_at, dt_low), (batch, n_groups, d_state))
    D = carray(pointer(D_at, dt_low), (n_heads, d_columns))
    per_group = n_heads // n_groups
    whole = d_state // LANES * LANES
    for b in range(batch):
        for head in range(n_heads):
            group = head // per_group
            step = splat_like(state, dt[b, head])
            if bias_at:
                step = step + bias[head]
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
                if D_at:
                    y[b, head, p] += D[head, min(p, d_columns - 1)] * x[b, head, p]
            if z_at:
                for p in range(0, head_dim, LANES):
                    count = min(LANES, head_dim - p)
                    gate = load_lanes(z, (b, head, p), count)
                    result = load_lanes(y, (b, head, p), count) * (gate * sigmoid(gate))
                    store_lanes(y, (b, head, p), result, count)


@functools.cache
def compiled_step(double: bool) -> Any:
    """``step(state, x, dt, A, B, C, D, z, dt_bias, y, new_state, sizes..., dt_softplus, dt_low, dt_high)``.

    Tensors by address, contiguous and all float64 if ``double``, else float32; 0 for one not given. The sizes
    are batch, n_heads, head_dim, d_state, n_groups and D's values per head, 1 or head_dim.
    """
    real = types.float64 if double else types.float32
    signature = types.void(*[types.intp] * 17, types.boolean, real, real)
    return njit(signature, nogil=True, cache=True)(step_at)
