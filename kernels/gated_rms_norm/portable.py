"""Gated RMS norm, forward and backward, in plain torch on any device; the backward recomputes its inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.gated_rms_norm.reference import gated_rms_norm_reference
from mambakit.kernels.semantics import state_dtype


def gated_rms_norm_forward(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_before_gate: bool
) -> Tensor:
    """As ``gated_rms_norm``; ``group_size`` is 0 only where there are no channels."""
    if x.numel() == 0:
        return torch.empty_like(x)
    return gated_rms_norm_reference(
        x, weight, z=z, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate
    )


def gated_rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and z."""
    if x.numel() == 0:
        return torch.empty_like(x), torch.zeros_like(weight), None if z is None else torch.empty_like(z)
    dtype = state_dtype(x)
    u, given, w = x.to(dtype), dy.to(dtype), weight.to(dtype)
    gate = None if z is None else F.silu(z.to(dtype))
    if gate is not None:
        u, given = (u, given * gate) if norm_before_gate else (u * gate, given)
    groups = u.unflatten(-1, (-1, group_size))
    inverse = torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    normed = groups * inverse
    dnormed = (given * w).unflatten(-1, (-1, group_size))
    du = (inverse * (dnormed - normed * (dnormed * normed).mean(-1, keepdim=True))).flatten(-2)
    normed = normed.flatten(-2)
    dweight = (given * normed).flatten(0, -2).sum(0) if x.dim() > 1 else given * normed
    if z is None or gate is None:
        return du.to(x.dtype), dweight.to(weight.dtype), None
    sigmoid = z.to(dtype).sigmoid()
    slope = sigmoid * (1 + z.to(dtype) * (1 - sigmoid))
    if norm_before_gate:
        dz, dx = dy.to(dtype) * normed * w * slope, du
    else:
        dz, dx = du * x.to(dtype) * slope, du * gate
    return dx.to(x.dtype), dweight.to(weight.dtype), dz.to(z.dtype)
