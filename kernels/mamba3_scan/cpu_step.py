"""One token through a Mamba-3 block in float32: everything between its projections, row by row."""

from __future__ import annotations

import math

from numba import carray, float32, float64, njit

from mambakit.kernels.addresses import pointer
from mambakit.kernels.cpu_step import _linear
from mambakit.kernels.gated_rms_norm.cpu import forward_at as norm_at
from mambakit.kernels.vector import LANES, load_lanes, reduce_add, splat_like, store_lanes
from mambakit.kernels.vector_math import clamp, exp, sigmoid, softplus

_ZERO = float32(0)
_ONE = float32(1)
_TURN = float64(2 * math.pi)
_BYTES = 4


@njit(nogil=True, cache=True)
def _array(at, shape):
    return carray(pointer(at, _ZERO), shape)


@njit(nogil=True, cache=True)
def mamba3(
    x, ssm, angles, key, value, in_weight, in_bias, dt_bias, A_bias, B_weight, C_weight, B_bias, C_bias,
    mimo_x, mimo_z, mimo_o, D, norm_weight, out_weight, out_bias, elapsed,
    y, new_ssm, new_angles, new_key, new_value, work,
    d_model, n_heads, head_dim, d_state, rank, n_groups, n_angles, heavy_tail, floor, eps, dt_low, dt_high,
):  # fmt: skip
    """``mamba3_token`` with tensors by address, 0 for one not given, and memory to work in."""
    d_inner = n_heads * head_dim
    width = 2 * d_inner + 2 * rank * n_groups * d_state + 3 * n_heads + n_angles
    projected, mixed = work, work + _BYTES * width
    _linear(x, in_weight, in_bias, projected, d_model, width)
    mamba3_mix(
        projected, ssm, angles, key, value, dt_bias, A_bias, B_weight, C_weight, B_bias, C_bias,
        mimo_x, mimo_z, mimo_o, D, norm_weight, elapsed,
        mixed, new_ssm, new_angles, new_key, new_value, mixed + _BYTES * d_inner, 0, 1,
        n_heads, head_dim, d_state, rank, n_groups, n_angles, heavy_tail, floor, eps, dt_low, dt_high,
    )  # fmt: skip
    _linear(mixed, out_weight, out_bias, y, d_inner, d_model)


@njit(nogil=True, cache=True)
def mamba3_mix(
    projected, ssm, angles, key, value, dt_bias, A_bias, B_weight, C_weight, B_bias, C_bias,
    mimo_x, mimo_z, mimo_o, D, norm_weight, elapsed,
    y, new_ssm, new_angles, new_key, new_value, work, first, last,
    n_heads, head_dim, d_state, rank, n_groups, n_angles, heavy_tail, floor, eps, dt_low, dt_high,
):  # fmt: skip
    """The rows ``first`` to ``last`` of ``mamba3_mix``; the new states may be the old ones.

    ``work`` has room for ``work_room`` numbers.
    """
    d_inner, d_bc = n_heads * head_dim, rank * n_groups * d_state
    width = 2 * d_inner + 2 * d_bc + 3 * n_heads + n_angles
    B, C = work, work + _BYTES * d_bc
    numbers = C + _BYTES * d_bc
    of_head = numbers + _BYTES * (4 * n_heads + n_angles)
    for row in range(first, last):
        z = projected + _BYTES * row * width
        u = z + _BYTES * d_inner
        B_in = u + _BYTES * d_inner
        C_in = B_in + _BYTES * d_bc
        rates = C_in + _BYTES * d_bc
        norm_at(B_in, B_weight, 0, B, rank * n_groups, d_state, d_state, eps, False)
        norm_at(C_in, C_weight, 0, C, rank * n_groups, d_state, d_state, eps, False)
        _numbers(
            rates, dt_bias, A_bias, elapsed + _BYTES * row if elapsed else 0, numbers,
            n_heads, n_angles, heavy_tail, floor, dt_low, dt_high,
        )  # fmt: skip
        for head in range(n_heads):
            group = head // (n_heads // n_groups)
            channels = _BYTES * head * head_dim
            of_ranks = channels * rank
            at = row * n_heads + head
            keys_at = row * rank * n_heads + head
            _head(
                z + channels, u + channels, B + _BYTES * group * d_state, C + _BYTES * group * d_state,
                numbers, B_bias + _BYTES * head * rank * d_state, C_bias + _BYTES * head * rank * d_state,
                mimo_x + of_ranks if mimo_x else 0, mimo_z + of_ranks if mimo_z else 0,
                mimo_o + of_ranks if mimo_o else 0, D + _BYTES * head,
                norm_weight + channels if norm_weight else 0,
                ssm + _BYTES * at * head_dim * d_state, angles + _BYTES * at * n_angles,
                key + _BYTES * keys_at * d_state, value + _BYTES * at * head_dim,
                y + _BYTES * row * d_inner + channels,
                new_ssm + _BYTES * at * head_dim * d_state, new_angles + _BYTES * at * n_angles,
                new_key + _BYTES * keys_at * d_state, new_value + _BYTES * at * head_dim, of_head,
                head, n_heads, head_dim, d_state, rank, n_groups, n_angles, eps,
            )  # fmt: skip


def work_room(n_heads: int, head_dim: int, d_state: int, rank: int, n_groups: int, n_angles: int) -> int:
    """Numbers that ``mamba3_mix`` needs to work in."""
    of_head = 2 * rank * (d_state + 1) + 2 * n_angles + (rank + 2) * head_dim
    return 2 * rank * n_groups * d_state + 4 * n_heads + n_angles + of_head


@njit(nogil=True, cache=True)
def _numbers(
    rates_at, dt_bias_at, A_bias_at, elapsed_at, numbers_at,
    n_heads, n_angles, heavy_tail, floor, dt_low, dt_high,
):  # fmt: skip
    """Each head's step, decay and weights of an interval's two ends, then the turns: one after the other."""
    rates = _array(rates_at, (3, n_heads))
    bias, A_bias = _array(dt_bias_at, (n_heads,)), _array(A_bias_at, (n_heads,))
    numbers = _array(numbers_at, (4, n_heads))
    gap = _array(elapsed_at, (1,))[0] if elapsed_at else _ONE
    low, high, least = float32(dt_low), float32(dt_high), float32(floor)
    for k in range(0, n_heads, LANES):
        count = min(LANES, n_heads - k)
        step = softplus(load_lanes(rates, (0, k), count) + load_lanes(bias, (k,), count))
        step = clamp(step, low, high) * gap
        a = load_lanes(rates, (1, k), count)
        if A_bias_at:
            a = a + load_lanes(A_bias, (k,), count)
        if heavy_tail:  # 1 + a, or 1 / (1 - a) of one below zero
            positive = clamp(a, _ZERO, float32(math.inf))
            rate = 1.0 / (1.0 - (a - positive)) + positive
        else:
            rate = softplus(a)
        rate = clamp(rate, least, float32(math.inf))
        alpha = exp(0.0 - step * rate)
        later = sigmoid(load_lanes(rates, (2, k), count))
        store_lanes(numbers, (0, k), step, count)
        store_lanes(numbers, (1, k), alpha, count)
        store_lanes(numbers, (2, k), (1.0 - later) * step * alpha, count)
        store_lanes(numbers, (3, k), later * step, count)
    given = _array(rates_at + _BYTES * 3 * n_heads, (n_angles,))
    turns = _array(numbers_at + _BYTES * 4 * n_heads, (n_angles,))
    for i in range(n_angles):
        turns[i] = float32(math.pi) * math.tanh(given[i])


@njit(nogil=True, cache=True)
def _head(
    z_at, u_at, B_at, C_at, numbers_at, B_bias_at, C_bias_at, up_at, gate_at, down_at, D_at, norm_weight,
    ssm_at, angles_at, key_at, value_at, y_at, new_ssm_at, new_angles_at, new_key_at, new_value_at, work,
    head, n_heads, head_dim, d_state, rank, n_groups, n_angles, eps,
):  # fmt: skip
    """One head of a row; ranks of keys are ``n_heads * d_state`` apart, those of B and C their groups'."""
    numbers = _array(numbers_at, (4, n_heads))
    step, alpha = numbers[0, head], numbers[1, head]
    near, far = numbers[2, head], numbers[3, head]
    u, value, new_value = _array(u_at, head_dim), _array(value_at, head_dim), _array(new_value_at, head_dim)
    B, C = _array(B_at, (rank, n_groups * d_state)), _array(C_at, (rank, n_groups * d_state))
    B_bias, C_bias = _array(B_bias_at, (rank, d_state)), _array(C_bias_at, (rank, d_state))
    up, down = _array(up_at, (rank, head_dim)), _array(down_at, (rank, head_dim))
    old_key = _array(key_at, (rank, n_heads * d_state))
    new_key = _array(new_key_at, (rank, n_heads * d_state))
    ssm, new_ssm = _array(ssm_at, (head_dim, d_state)), _array(new_ssm_at, (head_dim, d_state))
    y, skip = _array(y_at, head_dim), _array(D_at, 1)[0]
    k, q = _array(work, (rank, d_state)), _array(work + _BYTES * rank * d_state, (rank, d_state))
    more = work + 2 * _BYTES * rank * d_state
    ends = _array(more, (2, rank))
    turning = more + 2 * _BYTES * rank
    out_at = turning + 2 * _BYTES * n_angles
    out = _array(out_at, (rank, head_dim))
    gate_in, gated_at = out_at + _BYTES * rank * head_dim, out_at + _BYTES * (rank + 1) * head_dim

    _turn(angles_at, numbers_at + _BYTES * 4 * n_heads, new_angles_at, turning, step, n_angles)
    for r in range(rank):
        _turned(k, r, B, B_bias, turning, n_angles, d_state)
        _turned(q, r, C, C_bias, turning, n_angles, d_state)
    for p in range(head_dim):
        for r in range(rank):
            scale = up[r, p] if up_at else _ONE
            ends[0, r] = near * (scale * value[p])
            ends[1, r] = far * (scale * u[p])
        total = splat_like(ssm, 0.0)
        for n in range(0, d_state, LANES):
            count = min(LANES, d_state - n)
            h = alpha * load_lanes(ssm, (p, n), count)
            for r in range(rank):
                h = h + ends[0, r] * load_lanes(old_key, (r, n), count)
                h = h + ends[1, r] * load_lanes(k, (r, n), count)
            store_lanes(new_ssm, (p, n), h, count)
            total = total + h * load_lanes(q, (0, n), count)
        out[0, p] = reduce_add(total)
        for r in range(1, rank):
            total = splat_like(ssm, 0.0)
            for n in range(0, d_state, LANES):
                count = min(LANES, d_state - n)
                total = total + load_lanes(new_ssm, (p, n), count) * load_lanes(q, (r, n), count)
            out[r, p] = reduce_add(total)
        for r in range(rank):
            out[r, p] += skip * (up[r, p] * u[p] if up_at else u[p])
        new_value[p] = u[p]
    for r in range(rank):
        for n in range(d_state):
            new_key[r, n] = k[r, n]

    for r in range(rank):
        result_at = gated_at if down_at else y_at
        _gate(
            out_at + _BYTES * r * head_dim, z_at, gate_at + _BYTES * r * head_dim if gate_at else 0,
            norm_weight, gate_in, result_at, head_dim, eps,
        )  # fmt: skip
        if down_at:
            result = _array(result_at, head_dim)
            for p in range(head_dim):
                y[p] = (y[p] if r else _ZERO) + result[p] * down[r, p]


@njit(nogil=True, cache=True)
def _turn(angles_at, turns_at, new_angles_at, turning_at, step, n_angles):
    """The next angles in [0, 2 pi), their cosines and then their sines."""
    angles, new_angles = _array(angles_at, n_angles), _array(new_angles_at, n_angles)
    turns, turning = _array(turns_at, n_angles), _array(turning_at, (2, n_angles))
    for i in range(n_angles):
        # in float64, which costs nothing here, so that many steps add up to little error
        angle = float64(angles[i]) + float64(step) * float64(turns[i])
        rest = float32(angle - math.floor(angle / _TURN) * _TURN)
        if rest >= float32(_TURN):
            rest = _ZERO
        new_angles[i] = rest
        turning[0, i], turning[1, i] = math.cos(rest), math.sin(rest)


@njit(nogil=True, cache=True)
def _turned(into, r, B, bias, turning_at, n_angles, d_state):
    """``into[r] = rotate(B[r] + bias[r])``."""
    turning = _array(turning_at, (2, n_angles))
    for i in range(n_angles):
        even, odd = B[r, 2 * i] + bias[r, 2 * i], B[r, 2 * i + 1] + bias[r, 2 * i + 1]
        into[r, 2 * i] = even * turning[0, i] - odd * turning[1, i]
        into[r, 2 * i + 1] = even * turning[1, i] + odd * turning[0, i]
    for n in range(2 * n_angles, d_state):
        into[r, n] = B[r, n] + bias[r, n]


@njit(nogil=True, cache=True)
def _gate(out_at, z_at, scale_at, norm_weight, gate_at, result_at, head_dim, eps):
    """``result = norm(out) * silu(z * scale)``; without a weight, of ``out`` as it is."""
    out, result, z = _array(out_at, head_dim), _array(result_at, head_dim), _array(z_at, head_dim)
    gate, scale = _array(gate_at, head_dim), _array(scale_at, head_dim)
    for p in range(0, head_dim, LANES):
        count = min(LANES, head_dim - p)
        given = load_lanes(z, (p,), count)
        if scale_at:
            given = given * load_lanes(scale, (p,), count)
        if norm_weight:
            store_lanes(gate, (p,), given, count)
        else:
            given = given * sigmoid(given)
            store_lanes(result, (p,), load_lanes(out, (p,), count) * given, count)
    if norm_weight:
        norm_at(out_at, norm_weight, gate_at, result_at, 1, head_dim, head_dim, eps, True)
