"""``ssd`` on Triton, and its autograd function. Only inputs are saved for backward.

The kernels and their formulas are in ``gpu_forward`` and ``gpu_backward``, the choice of their sizes in
``gpu_config``, their launches in ``gpu_launch``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambakit.kernels.ssd.gpu_config import (
    Backward,
    Forward,
    Inputs,
    backward_configs,
    forward_configs,
    sizes_of,
)
from mambakit.kernels.ssd.gpu_launch import run_backward, run_forward
from mambakit.kernels.tuning import first_that_fits


def ssd_triton(
    inputs: Inputs, *, chunk_size: int | None, return_final_state: bool
) -> tuple[Tensor, Tensor | None]:
    """``(y, final_state)``; the state may be None unless it was asked for."""
    if torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in inputs):
        return _SSD.apply(chunk_size, return_final_state, *inputs)
    return forward(inputs, chunk_size, return_final_state)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunk_size: int | None, return_final_state: bool, *values: Any) -> Any:
        ctx.save_for_backward(*values[:11])
        ctx.options = values[11:]
        ctx.chunk_size = chunk_size
        ctx.set_materialize_grads(False)
        return forward(Inputs(*values), chunk_size, return_final_state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> Any:
        inputs = Inputs(*ctx.saved_tensors, *ctx.options)
        if dy is None:
            dy = torch.zeros_like(inputs.x)
        grads = backward(inputs, dy, dfinal, ctx.chunk_size)
        return None, None, *grads, None, None, None


def forward(
    inputs: Inputs, chunk_size: int | None, return_final_state: bool, config: Forward | None = None
) -> tuple[Tensor, Tensor | None]:
    """See ``ssd_triton``. ``config`` overrides the choice."""
    inputs = _in_rows(inputs)
    x = inputs.x
    sizes = sizes_of(x, inputs.B, inputs.C)
    if config is not None:
        return run_forward(inputs, sizes, config, return_final_state)
    configs = forward_configs(inputs, sizes, chunk_size)
    key = ("ssd forward", x.device, sizes, x.dtype, inputs.D is None, inputs.z is None, configs)
    return first_that_fits(key, configs, lambda c: run_forward(inputs, sizes, c, return_final_state))


def backward(
    inputs: Inputs,
    dy: Tensor,
    dfinal: Tensor | None,
    chunk_size: int | None,
    config: Backward | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``inputs.x`` to ``inputs.initial_state``; None where nothing was given."""
    inputs = _in_rows(inputs)
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    x = inputs.x
    sizes = sizes_of(x, inputs.B, inputs.C)
    if config is not None:
        return run_backward(inputs, dy, dfinal, sizes, config)
    configs = backward_configs(inputs, sizes, chunk_size)
    key = ("ssd backward", x.device, sizes, x.dtype, inputs.D is None, inputs.z is None, configs)
    return first_that_fits(key, configs, lambda c: run_backward(inputs, dy, dfinal, sizes, c))


def _in_rows(inputs: Inputs) -> Inputs:
    """Copies only what lies in a way the kernels do not read."""
    x, dt, scale, A, B, C, D, z, dt_bias, initial, seq_idx, softplus, low, high = inputs
    if x.stride(-1) != 1:
        x = x.contiguous()
    if B.stride(-1) != 1:
        B = B.contiguous()
    if C.stride(-1) != 1:
        C = C.contiguous()
    if z is not None and z.stride(-1) != 1:
        z = z.contiguous()
    A, D, dt_bias, initial, seq_idx = (
        v if v is None or v.is_contiguous() else v.contiguous() for v in (A, D, dt_bias, initial, seq_idx)
    )
    return Inputs(x, dt, scale, A, B, C, D, z, dt_bias, initial, seq_idx, softplus, low, high)
