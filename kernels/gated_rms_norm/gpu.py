"""The gated norm on Triton: chooses the launch, and tells autograd."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mambakit.kernels.gated_rms_norm.gpu_kernels import norm_backward_kernel, norm_forward_kernel
from mambakit.kernels.launch import common_unit, needs_grad, unit_rows
from mambakit.kernels.recording import Found, Options, Recordings
from mambakit.kernels.tape import Tape, Tensors


class Config(NamedTuple):
    """Tiles of a program, and programs a multiprocessor: the rows are shared out among all of them."""

    rows: int
    block: int
    pieces: int
    num_warps: int
    programs: int


@functools.cache
def choose_config(group_size: int, backward: bool) -> Config:
    """Tiles that cover a group with little waste, and 4 values of each tile a thread.

    Four, for then a thread has the same values of a float32 weight and of a bfloat16 row, each in one access,
    and nothing moves through shared memory. Programs: as many as a multiprocessor has registers for.
    """
    # the smallest of 1, 3, 5 times a power of two that holds the group
    covers = (
        (pieces, max(16, triton.next_power_of_2(triton.cdiv(group_size, pieces)))) for pieces in (1, 3, 5)
    )
    pieces, block = min(covers, key=lambda cover: (cover[0] * cover[1], cover[0]))
    rows = max(1, triton.next_power_of_2(256 // (block * pieces) + 1) // 2)
    widest = 16 if block * pieces <= 4096 else 32
    num_warps = min(widest, max(1, rows * block // 128))
    return Config(rows, block, pieces, num_warps, programs=max(1, (16 if backward else 48) // num_warps))


def gated_rms_norm_triton(tensors: Tensors, options: Options, *, checked: bool) -> Tensor | None:
    """As ``gated_rms_norm``, differentiable.

    Args:
        tensors: ``x, weight, z``.
        options: ``eps, group_size, norm_before_gate``.
        checked: Unless so, the result is None for arguments of a make not seen before.
    """
    if checked:
        if needs_grad(*tensors):
            return _GatedRMSNorm.apply(None, options, *tensors)
        return norm_forward_triton(*tensors, *options)
    found = _forward.find(tensors, options)
    if found is None:
        return None
    if found.needs_grad:
        return _GatedRMSNorm.apply(found, found.recording.options, *tensors)
    return found.recording.play(tensors, found.addresses)[0]


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: Found | None, options: Options, *tensors: Any) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.options = options
        if found is not None:
            return found.recording.play(tensors, found.addresses)[0]
        return norm_forward_triton(*tensors, *options)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *norm_backward_triton(dy, *ctx.saved_tensors, *ctx.options)


def norm_forward_triton(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: Any, group_size: Any, norm_before_gate: Any
) -> Tensor:
    """As ``portable.gated_rms_norm_forward``."""
    (y,) = _forward.run((x, weight, z), (eps, group_size, norm_before_gate))
    return y


def norm_backward_triton(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: Any,
    group_size: Any,
    norm_before_gate: Any,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and z."""
    if x.numel() == 0:
        return torch.empty_like(x), torch.zeros_like(weight), None if z is None else torch.empty_like(z)
    dx, dz, partial = _backward.run((x, weight, z, unit_rows(dy)), (eps, group_size, norm_before_gate))
    # summed in a fixed order, where atomics would not be
    return dx, partial.sum(0).to(weight.dtype), dz


def _launch_forward(tape: Tape, tensors: Tensors, options: Options) -> tuple[Tensor]:
    x, weight, z = tensors
    eps, group_size, norm_before_gate = options
    y = tape.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return (y,)
    channels = x.shape[-1]
    group_size = group_size or channels
    config = choose_config(group_size, False)
    x, z = tape.view(_rows(x), x), None if z is None else tape.view(_rows(z), z)
    x_stride, z_stride = x.stride(0), 0 if z is None else z.stride(0)
    unit = common_unit(x_stride, z_stride, group_size)
    n_groups = channels // group_size
    tape.launch(
        norm_forward_kernel, (_programs(x, config) * n_groups,),
        x, weight.contiguous(), z, y,
        x_stride // unit, z_stride // unit, x.shape[0], n_groups, group_size // unit, eps,
        UNIT=unit, NORM_BEFORE_GATE=norm_before_gate,
        ROWS=config.rows, BLOCK=config.block, PIECES=config.pieces, num_warps=config.num_warps,
    )  # fmt: skip
    return (y,)


def _launch_backward(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    """Gradients of x and z, and that of the weight in parts to be summed."""
    x, weight, z, dy = tensors
    eps, group_size, norm_before_gate = options
    dx = tape.empty(x.shape, dtype=x.dtype, device=x.device)
    dz = None if z is None else tape.empty(z.shape, dtype=z.dtype, device=z.device)
    channels = x.shape[-1]
    group_size = group_size or channels
    config = choose_config(group_size, True)
    dy, x = tape.view(_rows(dy), dy), tape.view(_rows(x), x)
    z = None if z is None else tape.view(_rows(z), z)
    dy_stride, x_stride, z_stride = dy.stride(0), x.stride(0), 0 if z is None else z.stride(0)
    unit = common_unit(dy_stride, x_stride, z_stride, group_size)
    n_groups = channels // group_size
    programs = _programs(x, config)
    partial = tape.empty((programs, channels), dtype=torch.float32, device=x.device)
    tape.launch(
        norm_backward_kernel, (programs * n_groups,),
        dy, x, weight.contiguous(), z, dx, dz, partial,
        dy_stride // unit, x_stride // unit, z_stride // unit, x.shape[0], n_groups, group_size // unit,
        eps, UNIT=unit, NORM_BEFORE_GATE=norm_before_gate,
        ROWS=config.rows, BLOCK=config.block, PIECES=config.pieces, num_warps=config.num_warps,
    )  # fmt: skip
    return dx, dz, partial


_forward = Recordings(_launch_forward)
_backward = Recordings(_launch_backward)


def _rows(v: Tensor) -> Tensor:
    """``(rows, channels)``; a view wherever the rows are evenly spaced and each of them contiguous."""
    return unit_rows(v.reshape(-1, v.shape[-1]))


def _programs(x: Tensor, config: Config) -> int:
    """How many programs share the rows of a group of channels."""
    most = config.programs * (_multiprocessors(x.get_device()) if x.is_cuda else 1)
    return min(triton.cdiv(x.shape[0], config.rows), most)


@functools.cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
