"""``mambakit::gated_rms_norm_fwd`` and ``_bwd``: the norm as custom ops, opaque to compilers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.arrays import HAS_NUMBA
from mambakit.kernels.gated_rms_norm.portable import gated_rms_norm_backward, gated_rms_norm_forward


def _runs_in_numba(x: Tensor) -> bool:
    return HAS_NUMBA and x.device.type == "cpu" and x.dtype != torch.float64 and x.numel() > 0


@torch.library.custom_op("mambakit::gated_rms_norm_fwd", mutates_args=())
def gated_rms_norm_fwd(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    backend: str = "portable",
) -> Tensor:
    """See ``gated_rms_norm``."""
    forward: Any
    if backend == "triton":
        from mambakit.kernels.gated_rms_norm.gpu import norm_forward_triton as forward
    elif _runs_in_numba(x):
        from mambakit.kernels.gated_rms_norm.cpu import gated_rms_norm_forward_cpu as forward
    else:
        forward = gated_rms_norm_forward
    return forward(x, weight, z, eps, group_size, norm_before_gate).contiguous()


@gated_rms_norm_fwd.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    backend: str = "portable",
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("mambakit::gated_rms_norm_bwd", mutates_args=())
def gated_rms_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    backend: str = "portable",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and z; an empty tensor stands for that of a gate that was not given."""
    backward: Any
    if backend == "triton":
        from mambakit.kernels.gated_rms_norm.gpu import norm_backward_triton as backward
    elif _runs_in_numba(x):
        from mambakit.kernels.gated_rms_norm.cpu import gated_rms_norm_backward_cpu as backward
    else:
        backward = gated_rms_norm_backward
    dx, dweight, dz = backward(dy, x, weight, z, eps, group_size, norm_before_gate)
    return dx.contiguous(), dweight, x.new_empty(0) if dz is None else dz.contiguous()


@gated_rms_norm_bwd.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    backend: str = "portable",
) -> tuple[Tensor, Tensor, Tensor]:
    dz = x.new_empty(0) if z is None else z.new_empty(z.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dz


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, z, *ctx.options = inputs
    ctx.save_for_backward(x, weight, z)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors  # once: under activation checkpointing they are computed anew
    dx, dweight, dz = gated_rms_norm_bwd(dy, *tensors, *ctx.options)
    return dx, dweight, None if tensors[2] is None else dz, None, None, None, None


gated_rms_norm_fwd.register_autograd(_backward, setup_context=_setup)
