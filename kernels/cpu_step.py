"""One token through a Mamba block in float32: the projections and the ops' own steps, one after the other.

Between torch calls this short most of the time goes into the calls, the more so as the weights they stream
push Python's own code out of the caches.
"""

from __future__ import annotations

from numba import carray, float32, njit

from mambakit.kernels.addresses import pointer
from mambakit.kernels.causal_conv1d.cpu_step import step_at as conv_step_at
from mambakit.kernels.gated_rms_norm.cpu import forward_at as norm_at
from mambakit.kernels.selective_scan.cpu_step import step_at as scan_step_at
from mambakit.kernels.ssd.cpu_step import step_at as ssd_step_at
from mambakit.kernels.vector import LANES, load, load_lanes, reduce_add, splat_like, store_lanes
from mambakit.kernels.vector_math import clamp, exp, softplus

# compiled with what calls them, at the first call
_conv_step, _scan_step, _ssd_step = (
    njit(nogil=True)(step) for step in (conv_step_at, scan_step_at, ssd_step_at)
)
_ZERO = float32(0)
_INFINITY = float32(float("inf"))
_BYTES = 4
_TOGETHER = 3


@njit(nogil=True, cache=True)
def _linear(x_at, weight_at, bias_at, y_at, n_in, n_out):
    """``y = weight @ x + bias``, four rows at once: enough sums in flight to wait for memory alone."""
    x = carray(pointer(x_at, _ZERO), (n_in,))
    weight = carray(pointer(weight_at, _ZERO), (n_out, n_in))
    bias = carray(pointer(bias_at, _ZERO), (n_out,))
    y = carray(pointer(y_at, _ZERO), (n_out,))
    whole = n_in // LANES * LANES
    rest = n_in - whole
    for i in range(0, n_out, 4):
        # past the last row, the last one again
        i1, i2, i3 = min(i + 1, n_out - 1), min(i + 2, n_out - 1), min(i + 3, n_out - 1)
        s0, s1, s2, s3 = splat_like(x, 0.0), splat_like(x, 0.0), splat_like(x, 0.0), splat_like(x, 0.0)
        for j in range(0, whole, LANES):
            some = load(x, (j,))
            s0 = s0 + some * load(weight, (i, j))
            s1 = s1 + some * load(weight, (i1, j))
            s2 = s2 + some * load(weight, (i2, j))
            s3 = s3 + some * load(weight, (i3, j))
        if rest:
            some = load_lanes(x, (whole,), rest)
            s0 = s0 + some * load_lanes(weight, (i, whole), rest)
            s1 = s1 + some * load_lanes(weight, (i1, whole), rest)
            s2 = s2 + some * load_lanes(weight, (i2, whole), rest)
            s3 = s3 + some * load_lanes(weight, (i3, whole), rest)
        y[i3] = reduce_add(s3)
        y[i2] = reduce_add(s2)
        y[i1] = reduce_add(s1)
        y[i] = reduce_add(s0)
    if bias_at:
        for i in range(n_out):
            y[i] += bias[i]


@njit(nogil=True, cache=True)
def linears(x_at, weight_at, bias_at, y_at, n_tokens, n_in, n_out):
    """``_linear`` of several tokens, three at once: weights come from memory once for all three."""
    for t in range(0, n_tokens, _TOGETHER):
        from_at, to_at = x_at + _BYTES * t * n_in, y_at + _BYTES * t * n_out
        n_here = min(_TOGETHER, n_tokens - t)
        if n_here > 1:
            _linear_of_three(from_at, weight_at, bias_at, to_at, n_here, n_in, n_out)
        else:
            _linear(from_at, weight_at, bias_at, to_at, n_in, n_out)


@njit(nogil=True, cache=True)
def _linear_of_three(x_at, weight_at, bias_at, y_at, n_tokens, n_in, n_out):
    x = carray(pointer(x_at, _ZERO), (n_tokens, n_in))
    weight = carray(pointer(weight_at, _ZERO), (n_out, n_in))
    bias = carray(pointer(bias_at, _ZERO), (n_out,))
    y = carray(pointer(y_at, _ZERO), (n_tokens, n_out))
    whole = n_in // LANES * LANES
    rest = n_in - whole
    c = n_tokens - 1  # of two tokens, the second again
    for i in range(0, n_out, 2):
        i1 = min(i + 1, n_out - 1)
        a0, b0, c0 = splat_like(x, 0.0), splat_like(x, 0.0), splat_like(x, 0.0)
        a1, b1, c1 = splat_like(x, 0.0), splat_like(x, 0.0), splat_like(x, 0.0)
        for j in range(0, whole, LANES):
            w0, w1 = load(weight, (i, j)), load(weight, (i1, j))
            some = load(x, (0, j))
            a0, a1 = a0 + some * w0, a1 + some * w1
            some = load(x, (1, j))
            b0, b1 = b0 + some * w0, b1 + some * w1
            some = load(x, (c, j))
            c0, c1 = c0 + some * w0, c1 + some * w1
        if rest:
            w0, w1 = load_lanes(weight, (i, whole), rest), load_lanes(weight, (i1, whole), rest)
            some = load_lanes(x, (0, whole), rest)
            a0, a1 = a0 + some * w0, a1 + some * w1
            some = load_lanes(x, (1, whole), rest)
            b0, b1 = b0 + some * w0, b1 + some * w1
            some = load_lanes(x, (c, whole), rest)
            c0, c1 = c0 + some * w0, c1 + some * w1
        y[c, i1], y[c, i] = reduce_add(c1), reduce_add(c0)
        y[1, i1], y[1, i] = reduce_add(b1), reduce_add(b0)
        y[0, i1], y[0, i] = reduce_add(a1), reduce_add(a0)
    if bias_at:
        for t in range(n_tokens):
            for i in range(n_out):
                y[t, i] += bias[i]


@njit(nogil=True, cache=True)
def _decay_rates(log_at, rates_at, size):
    """``A = -exp(A_log)``."""
    log, rates = carray(pointer(log_at, _ZERO), (size,)), carray(pointer(rates_at, _ZERO), (size,))
    for k in range(0, size, LANES):
        count = min(LANES, size - k)
        store_lanes(rates, (k,), 0.0 - exp(load_lanes(log, (k,), count)), count)


@njit(nogil=True, cache=True)
def _stretch_dt(dt_at, bias_at, elapsed_at, stretched_at, size, dt_low, dt_high):
    """``stretched = clamp(softplus(dt + bias)) * elapsed``; may be ``dt`` itself."""
    dt, bias = carray(pointer(dt_at, _ZERO), (size,)), carray(pointer(bias_at, _ZERO), (size,))
    stretched = carray(pointer(stretched_at, _ZERO), (size,))
    elapsed = carray(pointer(elapsed_at, _ZERO), (1,))
    for k in range(0, size, LANES):
        count = min(LANES, size - k)
        step = softplus(load_lanes(dt, (k,), count) + load_lanes(bias, (k,), count))
        store_lanes(stretched, (k,), clamp(step, dt_low, dt_high) * elapsed[0], count)


@njit(nogil=True, cache=True)
def mamba1(
    x, conv_state, state, in_weight, in_bias, conv_weight, conv_bias,
    x_weight, x_bias, dt_weight, dt_bias, A_log, D, out_weight, out_bias, elapsed,
    y, new_conv_state, new_state, work,
    d_model, d_inner, d_state, dt_rank, d_conv, dt_low, dt_high,
):  # fmt: skip
    """``mamba1_token`` with tensors by address, 0 for one not given, and memory to work in."""
    u_in, z = work, work + _BYTES * d_inner
    u, dt, gated = z + _BYTES * d_inner, z + _BYTES * 2 * d_inner, z + _BYTES * 3 * d_inner
    A = gated + _BYTES * d_inner
    low_rank = A + _BYTES * d_inner * d_state
    B = low_rank + _BYTES * dt_rank
    C = B + _BYTES * d_state
    _linear(x, in_weight, in_bias, u_in, d_model, 2 * d_inner)
    _conv_step(
        conv_state, u_in, conv_weight, conv_bias, u, new_conv_state, 1, d_inner, d_conv - 1, True, _ZERO
    )
    _linear(u, x_weight, x_bias, low_rank, d_inner, dt_rank + 2 * d_state)
    _linear(low_rank, dt_weight, 0, dt, dt_rank, d_inner)
    soft = not elapsed
    dt_low, dt_high = float32(dt_low), float32(dt_high)
    if elapsed:
        _stretch_dt(dt, dt_bias, elapsed, dt, d_inner, dt_low, dt_high)
        dt_bias, dt_low, dt_high = 0, -_INFINITY, _INFINITY
    _decay_rates(A_log, A, d_inner * d_state)
    _scan_step(
        state, u, dt, A, B, C, D, z, dt_bias, gated, new_state,
        1, d_inner, d_state, 1, soft, dt_low, dt_high,
    )  # fmt: skip
    _linear(gated, out_weight, out_bias, y, d_inner, d_model)


@njit(nogil=True, cache=True)
def mamba2(
    x, conv_state, state, in_weight, in_bias, conv_weight, conv_bias,
    dt_bias, A_log, D, norm_weight, out_weight, out_bias, elapsed, y, new_conv_state, new_state, work,
    d_model, n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, eps, dt_low, dt_high,
):  # fmt: skip
    """``mamba2_token`` with tensors by address, 0 for one not given, and memory to work in."""
    d_inner = n_heads * head_dim
    width = 2 * d_inner + 2 * n_groups * d_state + n_heads
    projected, mixed = work, work + _BYTES * width
    _linear(x, in_weight, in_bias, projected, d_model, width)
    mamba2_mix(
        projected, conv_state, state, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, elapsed,
        mixed, new_conv_state, new_state, mixed + _BYTES * d_inner, 0, 1, 1,
        n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, eps, dt_low, dt_high,
    )  # fmt: skip
    _linear(mixed, out_weight, out_bias, y, d_inner, d_model)


@njit(nogil=True, cache=True)
def mamba2_mix(
    projected, conv_state, state, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, elapsed,
    y, new_conv_state, new_state, work, first, last, n_tokens,
    n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, eps, dt_low, dt_high,
):  # fmt: skip
    """The rows ``first`` to ``last`` of ``mamba2_mix``, each done while it is in cache; arguments as above.

    Of each row ``n_tokens``, one after the other. The new states may be the old ones.
    """
    d_inner, d_bc = n_heads * head_dim, n_groups * d_state
    channels = d_inner + 2 * d_bc
    u, gated = work, work + _BYTES * channels
    stretched = gated + _BYTES * d_inner
    A = stretched + _BYTES * n_heads
    B, C = u + _BYTES * d_inner, u + _BYTES * (d_inner + d_bc)
    _decay_rates(A_log, A, n_heads)
    soft = not elapsed
    dt_low, dt_high = float32(dt_low), float32(dt_high)
    scan_bias, scan_low, scan_high = dt_bias, dt_low, dt_high
    if elapsed:
        scan_bias, scan_low, scan_high = 0, -_INFINITY, _INFINITY
    for row in range(first, last):
        conv_at = _BYTES * row * channels * (d_conv - 1)
        state_at = _BYTES * row * d_inner * d_state
        conv_from, conv_to = conv_state + conv_at, new_conv_state + conv_at
        state_from, state_to = state + state_at, new_state + state_at
        for token in range(row * n_tokens, (row + 1) * n_tokens):
            z = projected + _BYTES * token * (d_inner + channels + n_heads)
            inputs = z + _BYTES * d_inner
            dt = inputs + _BYTES * channels
            out = y + _BYTES * token * d_inner
            _conv_step(
                conv_from, inputs, conv_weight, conv_bias, u, conv_to, 1, channels, d_conv - 1, True, _ZERO
            )
            if elapsed:
                _stretch_dt(dt, dt_bias, elapsed + _BYTES * token, stretched, n_heads, dt_low, dt_high)
                dt = stretched
            _ssd_step(
                state_from, u, dt, A, B, C, D, 0 if norm_weight else z, scan_bias,
                gated if norm_weight else out, state_to,
                1, n_heads, head_dim, d_state, n_groups, d_columns, soft, scan_low, scan_high,
            )  # fmt: skip
            if norm_weight:
                norm_at(gated, norm_weight, z, out, 1, d_inner, d_inner // n_groups, eps, norm_before_gate)
            conv_from, state_from = conv_to, state_to
