"""Tokens through a linear map, a stack of Mamba blocks and another linear map, in one compiled call.

Layer by layer from Python, a stack this small spends more time between its layers than in them.
"""

from __future__ import annotations

from numba import carray, float32, njit

from mambakit.kernels.addresses import pointer
from mambakit.kernels.cpu_step import _linear, mamba2
from mambakit.kernels.gated_rms_norm.cpu import forward_at as _norm
from mambakit.kernels.mamba3_scan.cpu_step import mamba3

_ZERO = float32(0)
_BYTES = 4

N_ADDRESSES = {"mamba2": 13, "mamba3": 20}
"""Of a layer. Its norm's weight; then the parameters as ``mamba2_token`` and ``mamba3_token`` take them,
in_proj's and out_proj's at the beginning and the end; then the states."""


@njit(nogil=True, cache=True)
def mamba2_stack(
    layers, x, first_weight, first_bias, added, norm_weight, last_weight, last_bias, y, work,
    n_tokens, n_layers, n_in, n_out, eps, d_model, n_heads, head_dim, d_state, n_groups, d_conv, d_columns,
    norm_before_gate, gate_eps, dt_low, dt_high,
):  # fmt: skip
    """``y = last(norm(blocks(first(x) + added)))`` with tensors by address, 0 for one not given.

    Without ``first`` and ``last`` their sizes are ``d_model``. The layers' states are overwritten. ``work``
    has room for ``3 * d_model`` numbers and those of ``mamba2``.
    """
    hidden, normed, mixed = work, work + _BYTES * d_model, work + 2 * _BYTES * d_model
    more = work + 3 * _BYTES * d_model
    for t in range(n_tokens):
        _begin(x + _BYTES * t * n_in, first_weight, first_bias, added, hidden, n_in, d_model)
        for i in range(n_layers):
            at = layers[i]
            _norm(hidden, at[0], 0, normed, 1, d_model, d_model, eps, False)
            mamba2(
                normed, at[11], at[12], at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8], at[9], at[10],
                0, mixed, at[11], at[12], more, d_model, n_heads, head_dim, d_state, n_groups, d_conv,
                d_columns, norm_before_gate, gate_eps, dt_low, dt_high,
            )  # fmt: skip
            _add(hidden, mixed, d_model)
        _end(hidden, norm_weight, normed, last_weight, last_bias, y + _BYTES * t * n_out, eps, d_model, n_out)


@njit(nogil=True, cache=True)
def mamba3_stack(
    layers, x, first_weight, first_bias, added, norm_weight, last_weight, last_bias, y, work,
    n_tokens, n_layers, n_in, n_out, eps, d_model, n_heads, head_dim, d_state, rank, n_groups, n_angles,
    heavy_tail, floor, block_eps, dt_low, dt_high,
):  # fmt: skip
    """As ``mamba2_stack``, of Mamba-3 blocks."""
    hidden, normed, mixed = work, work + _BYTES * d_model, work + 2 * _BYTES * d_model
    more = work + 3 * _BYTES * d_model
    for t in range(n_tokens):
        _begin(x + _BYTES * t * n_in, first_weight, first_bias, added, hidden, n_in, d_model)
        for i in range(n_layers):
            at = layers[i]
            _norm(hidden, at[0], 0, normed, 1, d_model, d_model, eps, False)
            mamba3(
                normed, at[16], at[17], at[18], at[19], at[1], at[2], at[3], at[4], at[5], at[6], at[7],
                at[8], at[9], at[10], at[11], at[12], at[13], at[14], at[15], 0,
                mixed, at[16], at[17], at[18], at[19], more,
                d_model, n_heads, head_dim, d_state, rank, n_groups, n_angles, heavy_tail, floor, block_eps,
                dt_low, dt_high,
            )  # fmt: skip
            _add(hidden, mixed, d_model)
        _end(hidden, norm_weight, normed, last_weight, last_bias, y + _BYTES * t * n_out, eps, d_model, n_out)


@njit(nogil=True, cache=True)
def _begin(x, weight, bias, added, hidden, n_in, d_model):
    if weight:
        _linear(x, weight, bias, hidden, n_in, d_model)
    else:
        to = carray(pointer(hidden, _ZERO), (d_model,))
        to[:] = carray(pointer(x, _ZERO), (d_model,))
    if added:
        _add(hidden, added, d_model)


@njit(nogil=True, cache=True)
def _end(hidden, norm_weight, normed, weight, bias, y, eps, d_model, n_out):
    if weight:
        _norm(hidden, norm_weight, 0, normed, 1, d_model, d_model, eps, False)
        _linear(normed, weight, bias, y, d_model, n_out)
    else:
        _norm(hidden, norm_weight, 0, y, 1, d_model, d_model, eps, False)


@njit(nogil=True, cache=True)
def _add(to_at, some_at, size):
    to, some = carray(pointer(to_at, _ZERO), (size,)), carray(pointer(some_at, _ZERO), (size,))
    for j in range(size):
        to[j] += some[j]
