"""One token of the causal convolution on CPU: a single compiled call."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from mambakit.kernels.arrays import as_array


def _step(x, weight, bias, state, y, new_state, has_bias, silu):
    batch, channels = x.shape
    n_past = state.shape[2]
    for b in range(batch):
        for c in range(channels):
            value = x[b, c] * weight[c, n_past]
            for k in range(n_past):
                value += weight[c, k] * state[b, c, k]
            # ascending, so that new_state may be state
            for k in range(n_past - 1):
                new_state[b, c, k] = state[b, c, k + 1]
            if n_past > 0:
                new_state[b, c, n_past - 1] = x[b, c]
            if has_bias:
                value += bias[c]
            if silu:
                value /= 1 + math.exp(-value)
            y[b, c] = value


@functools.cache
def _kernel(double: bool) -> Any:
    real = types.float64 if double else types.float32
    a1, a2, a3 = (types.Array(real, rank, "A") for rank in (1, 2, 3))
    signature = types.void(a2, a2, a1, a3, a2, a3, types.boolean, types.boolean)
    return njit(signature, nogil=True, cache=True, error_model="numpy")(_step)


_NONE = {dtype: np.empty(0, dtype) for dtype in (np.float32, np.float64)}


def step_cpu(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    """``causal_conv1d_step`` without gradients; ``state`` is float32 or float64."""
    dtype = state.dtype
    double = dtype == torch.float64
    new_state = state if inplace else torch.empty(state.shape, dtype=dtype)
    y = torch.empty(x.shape, dtype=dtype)
    _kernel(double)(
        as_array(x, dtype),
        as_array(weight, dtype),
        _NONE[np.float64 if double else np.float32] if bias is None else as_array(bias, dtype),
        state.detach().numpy(),
        y.numpy(),
        new_state.detach().numpy(),
        bias is not None,
        silu,
    )
    return y.to(x.dtype), new_state
