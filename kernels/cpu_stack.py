"""One token through a linear map, a stack of Mamba-2 blocks and another linear map, in one compiled call.

Layer by layer from Python, a stack this small spends more time between its layers than in them.
"""

from __future__ import annotations

from numba import carray, float32, njit

from mambakit.kernels.addresses import pointer
from mambakit.kernels.cpu_step import _linear, mamba2
from mambakit.kernels.gated_rms_norm.cpu import forward_at as _norm

_ZERO = float32(0)
_BYTES = 4

N_ADDRESSES = 13
"""Of a layer: its norm's weight; in_proj's weight and bias; the convolution's; dt_bias, A_log, D; the gated
norm's weight; out_proj's weight and bias; the convolution's state and the state."""


@njit(nogil=True, cache=True)
def stack(
    layers, x, first_weight, first_bias, added, norm_weight, last_weight, last_bias, y, work,
    n_layers, n_in, n_out, d_model, n_heads, head_dim, d_state, n_groups, d_conv, d_columns,
    norm_before_gate, gate_eps, eps, dt_low, dt_high,
):  # fmt: skip
    """``y = last(norm(blocks(first(x) + added)))`` with tensors by address, 0 for one not given.

    The layers' states are overwritten. ``work`` has room for ``3 * d_model`` numbers and those of ``mamba2``.
    """
    hidden_at, normed, mixed_at = work, work + _BYTES * d_model, work + 2 * _BYTES * d_model
    more = work + 3 * _BYTES * d_model
    hidden = carray(pointer(hidden_at, _ZERO), (d_model,))
    mixed = carray(pointer(mixed_at, _ZERO), (d_model,))
    _linear(x, first_weight, first_bias, hidden_at, n_in, d_model)
    if added:
        told = carray(pointer(added, _ZERO), (d_model,))
        for j in range(d_model):
            hidden[j] += told[j]
    for i in range(n_layers):
        _norm(hidden_at, layers[i, 0], 0, normed, 1, d_model, d_model, eps, False)
        mamba2(
            normed, layers[i, 11], layers[i, 12], layers[i, 1], layers[i, 2], layers[i, 3], layers[i, 4],
            layers[i, 5], layers[i, 6], layers[i, 7], layers[i, 8], layers[i, 9], layers[i, 10], 0,
            mixed_at, layers[i, 11], layers[i, 12], more,
            d_model, n_heads, head_dim, d_state, n_groups, d_conv, d_columns,
            norm_before_gate, gate_eps, dt_low, dt_high,
        )  # fmt: skip
        for j in range(d_model):
            hidden[j] += mixed[j]
    _norm(hidden_at, norm_weight, 0, normed, 1, d_model, d_model, eps, False)
    _linear(normed, last_weight, last_bias, y, d_model, n_out)
