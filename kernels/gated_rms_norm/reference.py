"""Root-mean-square norm over groups of channels, with Mamba-2's gate (Dao & Gu 2024, section 7.1).

y = u / sqrt(mean(u^2) + eps) * weight
u = x * silu(z)            norm after the gate (the default, as Mamba-2)
y = y(x) * silu(z)         with ``norm_before_gate``
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.semantics import state_dtype


def gated_rms_norm_reference(
    x: Tensor,
    weight: Tensor,
    *,
    z: Tensor | None = None,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
) -> Tensor:
    """Shapes as in ``gated_rms_norm``."""
    dtype = state_dtype(x)
    u = x.to(dtype)
    gate = None if z is None else F.silu(z.to(dtype))
    if gate is not None and not norm_before_gate:
        u = u * gate
    groups = u.unflatten(-1, (-1, group_size or x.shape[-1]))
    groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    y = groups.flatten(-2) * weight.to(dtype)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)
