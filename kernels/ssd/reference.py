"""State-space duality, as its recurrence (Dao & Gu 2024, arXiv:2405.21060, eq. 1 with scalar A per head).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T
    y_t = h_t C_t + D x_t,   times silu(z_t) where a gate is given

The inner form takes the log-decay (``dt * A``) apart from the input scale (``dt``): Mamba-3's
trapezoidal rule is the same recurrence with another scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.semantics import effective_dt, new_sequence, state_dtype


def ssd_core_reference(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(log_decay_t) h_{t-1} + scale_t x_t B_t^T``, ``y_t = h_t C_t``; all in the state's dtype.

    ``log_decay`` and ``scale`` are ``(batch, length, n_heads)``; the rest as in ``ssd``.
    """
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    B = B.repeat_interleave(n_heads // n_groups, dim=2)  # [b, l, h, n]
    C = C.repeat_interleave(n_heads // n_groups, dim=2)
    h = x.new_zeros(batch, n_heads, head_dim, d_state) if initial_state is None else initial_state
    ys = []
    for t in range(length):
        opens = new_sequence(seq_idx, t)
        if opens is not None:
            h = h.masked_fill(opens[:, None, None, None], 0.0)
        update = (scale[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]  # [b, h, p, n]
        h = torch.exp(log_decay[:, t])[..., None, None] * h + update
        ys.append((h * C[:, t, :, None, :]).sum(-1))
    y = torch.stack(ys, dim=1) if ys else torch.zeros_like(x)
    return y, h


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token at a time; returns ``(y, final_state)``. Shapes as in ``ssd``."""
    dtype = state_dtype(x)
    xs = x.to(dtype)
    dts = effective_dt(dt, dt_bias, dt_softplus, dt_limit, dtype)
    h0 = None if initial_state is None else initial_state.to(dtype)
    y, h = ssd_core_reference(xs, dts * A.to(dtype), dts, B.to(dtype), C.to(dtype), h0, seq_idx)
    if D is not None:
        skip = D.to(dtype)
        y = y + (skip[:, None] if skip.dim() == 1 else skip) * xs
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h
