"""One token of the causal convolution on CPU: a single compiled call."""

from __future__ import annotations

import functools
from typing import Any

from numba import carray, njit, types

from mambakit.kernels.addresses import pointer
from mambakit.kernels.vector import LANES, load_lanes, store_lanes
from mambakit.kernels.vector_math import sigmoid


def step_at(state_at, x_at, weight_at, bias_at, y_at, new_state_at, batch, channels, n_past, silu, zero):
    state = carray(pointer(state_at, zero), (batch, channels, n_past))
    new_state = carray(pointer(new_state_at, zero), (batch, channels, n_past))
    x = carray(pointer(x_at, zero), (batch, channels))
    y = carray(pointer(y_at, zero), (batch, channels))
    weight = carray(pointer(weight_at, zero), (channels, n_past + 1))
    bias = carray(pointer(bias_at, zero), (channels,))
    # for the usual width, of which the compiler then knows where everything is
    flat, flat_new = (
        carray(pointer(state_at, zero), (batch * channels * 3,)),
        carray(pointer(new_state_at, zero), (batch * channels * 3,)),
    )
    taps = carray(pointer(weight_at, zero), (channels, 4))
    for b in range(batch):
        if n_past == 3:
            for c in range(channels):
                at = 3 * (b * channels + c)
                first, second, third, new = flat[at], flat[at + 1], flat[at + 2], x[b, c]
                y[b, c] = new * taps[c, 3] + taps[c, 0] * first + taps[c, 1] * second + taps[c, 2] * third
                flat_new[at], flat_new[at + 1], flat_new[at + 2] = second, third, new
        else:
            for c in range(channels):
                value = x[b, c] * weight[c, n_past]
                for k in range(n_past):
                    value += weight[c, k] * state[b, c, k]
                y[b, c] = value
                # ascending, so that new_state may be state
                for k in range(n_past - 1):
                    new_state[b, c, k] = state[b, c, k + 1]
                if n_past > 0:
                    new_state[b, c, n_past - 1] = x[b, c]
        for c in range(0, channels, LANES):
            count = min(LANES, channels - c)
            result = load_lanes(y, (b, c), count)
            if bias_at:
                result = result + load_lanes(bias, (c,), count)
            if silu:
                result = result * sigmoid(result)
            store_lanes(y, (b, c), result, count)


@functools.cache
def compiled_step(double: bool) -> Any:
    """``step(state, x, weight, bias, y, new_state, batch, channels, n_past, silu, 0.0)``.

    Tensors by address, contiguous and all float64 if ``double``, else float32; 0 for one not given.
    """
    real = types.float64 if double else types.float32
    signature = types.void(*[types.intp] * 9, types.boolean, real)
    return njit(signature, nogil=True, cache=True, error_model="numpy")(step_at)
