"""One token of the selective scan on CPU: a single compiled call, for it is the overhead that counts."""

from __future__ import annotations

import functools
from typing import Any

from numba import carray, njit, types

from mambakit.kernels.addresses import pointer
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


def step_at(
    state_at, x_at, dt_at, A_at, B_at, C_at, D_at, z_at, bias_at, y_at, new_state_at,
    batch, d_inner, d_state, n_groups, use_softplus, dt_low, dt_high,
):  # fmt: skip
    state = carray(pointer(state_at, dt_low), (batch, d_inner, d_state))
    new_state = carray(pointer(new_state_at, dt_low), (batch, d_inner, d_state))
    x = carray(pointer(x_at, dt_low), (batch, d_inner))
    dt = carray(pointer(dt_at, dt_low), (batch, d_inner))
    z = carray(pointer(z_at, dt_low), (batch, d_inner))
    y = carray(pointer(y_at, dt_low), (batch, d_inner))
    A = carray(pointer(A_at, dt_low), (d_inner, d_state))
    B = carray(pointer(B_at, dt_low), (batch, n_groups, d_state))
    C = carray(pointer(C_at, dt_low), (batch, n_groups, d_state))
    D = carray(pointer(D_at, dt_low), (d_inner,))
    bias = carray(pointer(bias_at, dt_low), (d_inner,))
    per_group = d_inner // n_groups
    steps, outs = aligned_zeros(1, 1, state), aligned_zeros(1, 1, state)
    for b in range(batch):
        for c in range(0, d_inner, LANES):
            count = min(LANES, d_inner - c)
            step = load_lanes(dt, (b, c), count)
            if bias_at:
                step = step + load_lanes(bias, (c,), count)
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
            if D_at:
                result = result + load_lanes(D, (c,), count) * load_lanes(x, (b, c), count)
            if z_at:
                gate = load_lanes(z, (b, c), count)
                result = result * (gate * sigmoid(gate))
            store_lanes(y, (b, c), result, count)


@functools.cache
def compiled_step(double: bool) -> Any:
    """``step(state, x, dt, A, B, C, D, z, dt_bias, y, new_state, sizes..., dt_softplus, dt_low, dt_high)``.

    Tensors by address, contiguous and all float64 if ``double``, else float32; 0 for one not given. The sizes
    are batch, d_inner, d_state and n_groups.
    """
    real = types.float64 if double else types.float32
    signature = types.void(*[types.intp] * 15, types.boolean, real, real)
    return njit(signature, nogil=True, cache=True)(step_at)
