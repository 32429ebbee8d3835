"""Functions of one number for the steps' Triton kernels, in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """``max(x, 0) + log1p(exp(-|x|))``; log1p(e) as 2 artanh(s), whose s = e / (2 + e) is at most 1/3."""
    small = tl.exp(-tl.abs(x))
    s = small / (small + 2.0)
    square = s * s
    series = square * (2.0 / 15.0) + 2.0 / 13.0
    series = series * square + 2.0 / 11.0
    series = series * square + 2.0 / 9.0
    series = series * square + 2.0 / 7.0
    series = series * square + 2.0 / 5.0
    series = series * square + 2.0 / 3.0
    series = series * square + 2.0
    # not tl.maximum, which drops NaN
    return tl.where(x < 0.0, 0.0, x) + s * series


@triton.jit
def effective_dt(dt, bias, low, high, SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr):
    """As ``semantics.effective_dt``; NaN stays NaN."""
    dt = dt + bias
    if SOFTPLUS:
        dt = softplus(dt)
    if CLAMP:
        dt = tl.where(dt < low, low, tl.where(dt > high, high, dt))
    return dt
