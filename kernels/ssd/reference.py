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


def recurrence(
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


def turn(v: Tensor, bias: Tensor | None, angles: Tensor | None, n_heads: int) -> Tensor:
    """Every head's own B or C: its group's plus a bias, channels ``2i`` and ``2i + 1`` turned by angle i."""
    v = v.repeat_interleave(n_heads // v.shape[2], dim=2)  # [b, l, h, n]
    if bias is not None:
        v = v + bias
    if angles is None:
        return v
    channels = list(v.unbind(-1))
    for i in range(angles.shape[-1]):
        even, odd = channels[2 * i : 2 * i + 2]
        cos, sin = angles[..., i].cos(), angles[..., i].sin()
        channels[2 * i : 2 * i + 2] = even * cos - odd * sin, even * sin + odd * cos
    return torch.stack(channels, dim=-1)


def ssd_core_reference(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    skip: Tensor | None = None,
    z: Tensor | None = None,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    angles: Tensor | None = None,
    own_scale: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token at a time; returns ``(y, final_state)``. Shapes as in ``ssd_core``."""
    dtype = state_dtype(x)
    n_heads = x.shape[2]
    optional = (skip, z, B_bias, C_bias, angles, initial_state)
    skip, z, B_bias, C_bias, angles, h0 = (None if v is None else v.to(dtype) for v in optional)
    xs = x.to(dtype)
    Bs, Cs = turn(B.to(dtype), B_bias, angles, n_heads), turn(C.to(dtype), C_bias, angles, n_heads)
    y, h = recurrence(xs, log_decay.to(dtype), scale.to(dtype), Bs, Cs, h0, seq_idx)
    if skip is not None:
        y = y + skip[..., None] * xs
    if own_scale is not None:
        y = y + ((own_scale - scale).to(dtype) * (Bs * Cs).sum(-1))[..., None] * xs
    if z is not None:
        y = y * F.silu(z)
    return y.to(x.dtype), h


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
    y, h = recurrence(xs, dts * A.to(dtype), dts, B.to(dtype), C.to(dtype), h0, seq_idx)
    if D is not None:
        skip = D.to(dtype)
        y = y + (skip[:, None] if skip.dim() == 1 else skip) * xs
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h
