"""Tokens through linear maps, a stack of Mamba blocks and another linear map, in one compiled call.

Layer by layer from Python, a stack this small spends more time between its layers than in them.
"""

from __future__ import annotations

from numba import carray, float32, njit

from mambakit.kernels.addresses import pointer
from mambakit.kernels.cpu_step import _linear, linears, mamba2_mix
from mambakit.kernels.gated_rms_norm.cpu import forward_at as _norm
from mambakit.kernels.mamba3_scan.cpu_step import mamba3

_ZERO = float32(0)
_BYTES = 4

N_ADDRESSES = {"mamba2": 13, "mamba3": 20}
"""Of a layer. Its norm's weight; then the parameters as ``mamba2_token`` and ``mamba3_token`` take them,
in_proj's and out_proj's at the beginning and the end; then the states."""
N_INPUTS = 5
"""Of a token: its address, those of a linear map's weight and bias (0 without), of what is added to it (0
without), and its numbers."""


@njit(nogil=True, cache=True)
def mamba2_stack(
    layers, tokens, norm_weight, last_weight, last_bias, y, work, n_tokens, n_read,
    n_layers, n_out, eps, d_model, n_heads, head_dim, d_state, n_groups, d_conv, d_columns,
    norm_before_gate, gate_eps, dt_low, dt_high,
):  # fmt: skip
    """``y = last(norm(blocks(first(x) + added)))`` with tensors by address, 0 for one not given.

    Each token has a ``first`` of its own, see ``N_INPUTS``; ``y`` is of the last ``n_read`` tokens. Without
    ``last`` its size is ``d_model``. The layers' states are overwritten. All tokens go through a layer before
    the next: its weights come from memory once. ``work`` has room for ``2 * d_model`` numbers a token, those
    of a token's two projections, and what ``mamba2_mix`` asks for.
    """
    d_inner = n_heads * head_dim
    width = 2 * d_inner + 2 * n_groups * d_state + n_heads
    hidden, normed = work, work + _BYTES * n_tokens * d_model
    projected = normed + _BYTES * n_tokens * d_model
    mixed = projected + _BYTES * n_tokens * width
    more = mixed + _BYTES * n_tokens * d_inner
    _begin(tokens, hidden, n_tokens, d_model)
    for i in range(n_layers):
        at = layers[i]
        _norm(hidden, at[0], 0, normed, n_tokens, d_model, d_model, eps, False)
        linears(normed, at[1], at[2], projected, n_tokens, d_model, width)
        mamba2_mix(
            projected, at[11], at[12], at[3], at[4], at[5], at[6], at[7], at[8], 0,
            mixed, at[11], at[12], more, 0, 1, n_tokens,
            n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, gate_eps,
            dt_low, dt_high,
        )  # fmt: skip
        linears(mixed, at[9], at[10], normed, n_tokens, d_inner, d_model)
        _add(hidden, normed, n_tokens * d_model)
    _end(hidden, norm_weight, normed, last_weight, last_bias, y, eps, n_tokens, n_read, d_model, n_out)


@njit(nogil=True, cache=True)
def mamba3_stack(
    layers, tokens, norm_weight, last_weight, last_bias, y, work, n_tokens, n_read,
    n_layers, n_out, eps, d_model, n_heads, head_dim, d_state, rank, n_groups, n_angles,
    heavy_tail, floor, block_eps, dt_low, dt_high,
):  # fmt: skip
    """As ``mamba2_stack``, of Mamba-3 blocks."""
    hidden, normed = work, work + _BYTES * n_tokens * d_model
    more = normed + _BYTES * n_tokens * d_model
    mixed, more = more, more + _BYTES * d_model
    _begin(tokens, hidden, n_tokens, d_model)
    for i in range(n_layers):
        at = layers[i]
        _norm(hidden, at[0], 0, normed, n_tokens, d_model, d_model, eps, False)
        for t in range(n_tokens):
            mamba3(
                normed + _BYTES * t * d_model, at[16], at[17], at[18], at[19], at[1], at[2], at[3], at[4],
                at[5], at[6], at[7], at[8], at[9], at[10], at[11], at[12], at[13], at[14], at[15], 0,
                mixed, at[16], at[17], at[18], at[19], more,
                d_model, n_heads, head_dim, d_state, rank, n_groups, n_angles, heavy_tail, floor, block_eps,
                dt_low, dt_high,
            )  # fmt: skip
            _add(hidden + _BYTES * t * d_model, mixed, d_model)
    _end(hidden, norm_weight, normed, last_weight, last_bias, y, eps, n_tokens, n_read, d_model, n_out)


N_PAIR = 34
"""Addresses of a layer of ``mamba2_pairs``: norm, block over time and its states as in ``mamba2_stack``; then
another norm, and in_proj to out_proj of the blocks along the rows, forwards and backwards."""


@njit(nogil=True, cache=True)
def mamba2_pairs(
    layers, x, work, n_frames, n_layers, n_rows, eps,
    d_model, n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, gate_eps,
    dt_low, dt_high,
):  # fmt: skip
    """Each ``x[t]``, ``n_rows`` tokens, through layers of two blocks, in place: ``x + over_time(norm(x))``,
    each row with a past of its own, then ``x + (forwards + backwards)(norm(x))`` along the rows.

    States are overwritten. ``work`` has room for ``3 * d_model`` numbers a row, those of a token's two
    projections, one row's states, and what ``mamba2_mix`` asks for.
    """
    d_inner = n_heads * head_dim
    channels = d_inner + 2 * n_groups * d_state
    width = d_inner + channels + n_heads
    size, past, held = n_rows * d_model, channels * (d_conv - 1), d_inner * d_state
    normed, turned, out = work, work + _BYTES * size, work + _BYTES * 2 * size
    projected = work + _BYTES * 3 * size
    mixed = projected + _BYTES * n_rows * width
    conv = mixed + _BYTES * n_rows * d_inner
    state = conv + _BYTES * past
    more = state + _BYTES * held
    for t in range(n_frames):
        here = x + _BYTES * t * size
        for i in range(n_layers):
            at = layers[i]
            _norm(here, at[0], 0, normed, n_rows, d_model, d_model, eps, False)
            linears(normed, at[1], at[2], projected, n_rows, d_model, width)
            mamba2_mix(
                projected, at[11], at[12], at[3], at[4], at[5], at[6], at[7], at[8], 0,
                mixed, at[11], at[12], more, 0, n_rows, 1,
                n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, gate_eps,
                dt_low, dt_high,
            )  # fmt: skip
            linears(mixed, at[9], at[10], out, n_rows, d_inner, d_model)
            _add(here, out, size)
            _norm(here, at[13], 0, normed, n_rows, d_model, d_model, eps, False)
            for backwards in range(2):
                if backwards:
                    _turn(normed, turned, n_rows, d_model)
                of = at[14 + 10 * backwards :]
                linears(turned if backwards else normed, of[0], of[1], projected, n_rows, d_model, width)
                carray(pointer(conv, _ZERO), (past + held,))[:] = _ZERO
                mamba2_mix(
                    projected, conv, state, of[2], of[3], of[4], of[5], of[6], of[7], 0,
                    mixed, conv, state, more, 0, 1, n_rows,
                    n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, gate_eps,
                    dt_low, dt_high,
                )  # fmt: skip
                linears(mixed, of[8], of[9], out, n_rows, d_inner, d_model)
                if backwards:
                    _turn(out, turned, n_rows, d_model)
                _add(here, turned if backwards else out, size)


@njit(nogil=True, cache=True)
def _turn(from_at, to_at, n_rows, d_model):
    some = carray(pointer(from_at, _ZERO), (n_rows, d_model))
    to = carray(pointer(to_at, _ZERO), (n_rows, d_model))
    for i in range(n_rows):
        to[i] = some[n_rows - 1 - i]


@njit(nogil=True, cache=True)
def _begin(tokens, hidden, n_tokens, d_model):
    for t in range(n_tokens):
        at = tokens[t]
        here = hidden + _BYTES * t * d_model
        if at[1]:
            _linear(at[0], at[1], at[2], here, at[4], d_model)
        else:
            to = carray(pointer(here, _ZERO), (d_model,))
            to[:] = carray(pointer(at[0], _ZERO), (d_model,))
        if at[3]:
            _add(here, at[3], d_model)


@njit(nogil=True, cache=True)
def _end(hidden, norm_weight, normed, weight, bias, y, eps, n_tokens, n_read, d_model, n_out):
    hidden += _BYTES * (n_tokens - n_read) * d_model
    if weight:
        _norm(hidden, norm_weight, 0, normed, n_read, d_model, d_model, eps, False)
        linears(normed, weight, bias, y, n_read, d_model, n_out)
    else:
        _norm(hidden, norm_weight, 0, y, n_read, d_model, d_model, eps, False)


@njit(nogil=True, cache=True)
def _add(to_at, some_at, size):
    to, some = carray(pointer(to_at, _ZERO), (size,)), carray(pointer(some_at, _ZERO), (size,))
    for j in range(size):
        to[j] += some[j]
