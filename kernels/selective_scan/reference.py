"""The selective scan in the equation's own words (Gu & Dao 2023, arXiv:2312.00752, eq. 2 and section 3.2).

h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t
y_t = C_t h_t + D x_t,   times silu(z_t) where a gate is given
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.semantics import effective_dt, new_sequence, state_dtype


def selective_scan_reference(
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
    """One token at a time; returns ``(y, final_state)``. Shapes as in ``selective_scan``."""
    batch, length, d_inner = x.shape
    n_groups, d_state = B.shape[2:]
    dtype = state_dtype(x)
    xs = x.to(dtype)
    dts = effective_dt(dt, dt_bias, dt_softplus, dt_limit, dtype)
    As = A.to(dtype)
    Bs = B.to(dtype).repeat_interleave(d_inner // n_groups, dim=2)  # [b, l, d, n]
    Cs = C.to(dtype).repeat_interleave(d_inner // n_groups, dim=2)
    if initial_state is None:
        h = xs.new_zeros(batch, d_inner, d_state)
    else:
        h = initial_state.to(dtype)
    ys = []
    for t in range(length):
        opens = new_sequence(seq_idx, t)
        if opens is not None:
            h = h.masked_fill(opens[:, None, None], 0.0)
        dt_t = dts[:, t, :, None]  # [b, d, 1]
        h = torch.exp(dt_t * As) * h + dt_t * Bs[:, t] * xs[:, t, :, None]
        ys.append((h * Cs[:, t]).sum(-1))
    y = torch.stack(ys, dim=1) if ys else torch.zeros_like(xs)
    if D is not None:
        y = y + D.to(dtype) * xs
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h
