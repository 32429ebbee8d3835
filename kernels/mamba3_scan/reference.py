"""Mamba-3's recurrence, one token at a time (Lahoti et al. 2026, arXiv:2603.15569, section 3).

    theta_t = theta_{t-1} + dt_t turn_t                 the state's phase: a complex A, kept as an angle
    k_tr, q_tr = rotate(B_tr + B_bias_r, theta_t), rotate(C_tr + C_bias_r, theta_t)
    v_tr = up_r x_t                                     r = 1 .. rank; of rank 1 it is called SISO, else MIMO
    kv_t = sum_r v_tr k_tr^T
    S_t = alpha_t S_{t-1} + (1 - trap_t) dt_t alpha_t kv_{t-1} + trap_t dt_t kv_t
    y_tr = S_t q_tr + D v_tr,   times silu(z_tr) where a gate is given;   alpha_t = exp(log_decay_t)

The generalised trapezoidal rule over the interval between two tokens: trap 1 is Mamba-2's (Euler's) rule,
trap 1/2 the classical trapezoid. Before a sequence's first token there is nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.mamba3_scan.state import TURN, Mamba3State
from mambakit.kernels.semantics import new_sequence, state_dtype
from mambakit.kernels.ssd.reference import turn as rotate


def mamba3_scan_reference(
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    trap: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    turn: Tensor | None = None,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    up: Tensor | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Mamba3State | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Mamba3State]:
    """Shapes as in ``mamba3_scan``; can be differentiated twice."""
    dtype = state_dtype(x)
    n_heads, rank = x.shape[2], B.shape[2]
    n_angles = 0 if turn is None else turn.shape[-1]
    zero = Mamba3State.zeros(x, rank, B.shape[-1], n_angles, dtype)
    state = zero if initial_state is None else initial_state.to(dtype)
    xs, dt, log_decay, trap = (v.to(dtype) for v in (x, dt, log_decay, trap))
    of_rank = (None if v is None else v.to(dtype).transpose(0, 1) for v in (B_bias, C_bias, up))
    k_bias, q_bias, up = of_rank  # [r, h, n], [r, h, p]
    ups = xs.new_ones(1, 1, 1) if up is None else up
    ys = []
    for t in range(x.shape[1]):
        opens = new_sequence(seq_idx, t)
        if opens is not None:
            state = zero.where(opens, state)
        S, theta, k_before, x_before = state
        if turn is not None:
            theta = torch.remainder(theta + dt[:, t, :, None] * turn[:, t, None].to(dtype), TURN)
        k = rotate(B[:, t].to(dtype), k_bias, theta[:, None], n_heads)  # [b, r, h, n]
        q = rotate(C[:, t].to(dtype), q_bias, theta[:, None], n_heads)
        v = xs[:, t, None] * ups  # [b, r, h, p]
        before = torch.einsum("brhp,brhn->bhpn", x_before[:, None] * ups, k_before)
        now = torch.einsum("brhp,brhn->bhpn", v, k)
        alpha, gamma = log_decay[:, t].exp(), trap[:, t] * dt[:, t]
        beta = (1 - trap[:, t]) * dt[:, t] * alpha
        alpha, beta, gamma = (c[..., None, None] for c in (alpha, beta, gamma))
        S = alpha * S + beta * before + gamma * now
        y = torch.einsum("bhpn,brhn->brhp", S, q)
        if D is not None:
            y = y + D.to(dtype)[:, None] * v
        ys.append(y)
        following = Mamba3State(S, theta, k, xs[:, t])
        state = following if lengths is None else following.where(t < lengths, state)
    y = torch.stack(ys, dim=1) if ys else xs.new_zeros(xs.shape[0], 0, rank, *xs.shape[2:])
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), state
