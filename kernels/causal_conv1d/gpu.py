"""The causal convolution on Triton: chooses the launch, and tells autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mambakit.kernels.causal_conv1d.gpu_kernels import conv_backward_kernel, conv_forward_kernel
from mambakit.kernels.launch import common_unit, contiguous, needs_grad, register_limit, unit_rows
from mambakit.kernels.recording import Found, Options, Recordings
from mambakit.kernels.tape import Tape, Tensors


class Config(NamedTuple):
    """How a kernel is launched; ``most_programs`` bounds the runs that a row is cut into."""

    channels: int
    group: int
    num_warps: int
    most_programs: int
    registers: int | None = None


# One warp a program: nothing is exchanged between threads, and the many small programs of a multiprocessor
# hide each other's latency. Forward, a thread has 8 channels, 16 bytes of them in bfloat16. Backward, it has
# 4: a channel takes 15 registers for width 4. ptxas would use up to 168 to compute a group's tokens side by
# side; a limit of 128 spills nothing and lets a third more programs run at once.
FORWARD = Config(channels=256, group=8, num_warps=1, most_programs=8192)
BACKWARD = Config(channels=128, group=4, num_warps=1, most_programs=8192, registers=128)
_SHORTEST_RUN = 16


def causal_conv1d_triton(
    tensors: Tensors, options: Options, *, checked: bool
) -> tuple[Tensor, Tensor | None] | None:
    """``(y, final_state)``, differentiable; the state is None unless asked for.

    Args:
        tensors: ``x, weight, bias, initial_state, seq_idx``.
        options: ``activation, return_final_state``.
        checked: Unless so, the result is None for arguments of a make not seen before.
    """
    if checked:
        if needs_grad(*tensors):
            return _CausalConv1d.apply(None, options, *tensors)
        return _forward.run(tensors, options)
    found = _forward.find(tensors, options)
    if found is None:
        return None
    if found.needs_grad:
        return _CausalConv1d.apply(found, found.recording.options, *tensors)
    return found.recording.play(tensors, found.addresses)


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, found: Found | None, options: Options, *tensors: Any
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(*tensors)
        ctx.silu = options[0] == "silu"
        ctx.set_materialize_grads(False)
        if found is not None:
            return found.recording.play(tensors, found.addresses)
        return _forward.run(tensors, options)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros_like(tensors[0])
        return None, None, *conv_backward_triton(dy, dfinal, *tensors, silu=ctx.silu), None


def conv_forward_triton(*tensors: Any, silu: bool) -> tuple[Tensor, Tensor]:
    """As ``portable.conv_forward``."""
    y, final = _forward.run(tensors, ("silu" if silu else None, True))
    return y, final


def conv_backward_triton(
    dy: Tensor, dfinal: Tensor | None, *tensors: Any, silu: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x, weight, bias, initial_state`` in their dtypes; None for what was not given."""
    _, weight, bias, _, _ = tensors
    width = weight.shape[1]
    given = (*tensors, unit_rows(dy), contiguous(dfinal))
    dx, dinitial, partial = _backward.run(given, (silu,))
    # summed in a fixed order, where atomics would not be
    sums = partial.sum(0)
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format).copy_(sums[:width].t())
    dbias = None if bias is None else sums[width].to(bias.dtype)
    return dx, dweight, dbias, dinitial


def _launch_forward(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    x, weight, bias, initial_state, seq_idx = tensors
    activation, return_final_state = options
    config = FORWARD
    batch, length, channels = x.shape
    width = weight.shape[1]
    x = unit_rows(x)
    y = tape.empty((batch, length, channels), dtype=x.dtype, device=x.device)
    final = None
    if return_final_state:
        final = tape.empty((batch, channels, width - 1), dtype=torch.float32, device=x.device)
    x_batch_stride, x_stride, _ = x.stride()
    unit = common_unit(x_batch_stride, x_stride, channels)
    grid, run = _runs(batch, length, channels, config)
    tape.launch(
        conv_forward_kernel, (grid,),
        x, weight.contiguous(), contiguous(bias), contiguous(initial_state), contiguous(seq_idx),
        y, final,
        x_batch_stride // unit, x_stride // unit, channels // unit, length, run,
        UNIT=unit, WIDTH=width, SILU=activation == "silu", CHANNELS=config.channels, GROUP=config.group,
        num_warps=config.num_warps,
    )  # fmt: skip
    return y, final


def _launch_backward(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    """Gradients of ``x`` and the state, and those of weight and bias in parts to be summed."""
    x, weight, bias, initial_state, seq_idx, dy, dfinal = tensors
    (silu,) = options
    config = BACKWARD
    batch, length, channels = x.shape
    width = weight.shape[1]
    x = unit_rows(x)
    dx = tape.empty((batch, length, channels), dtype=x.dtype, device=x.device)
    dinitial = None
    if initial_state is not None:
        initial_state = initial_state.contiguous()
        dinitial = tape.empty(initial_state.shape, dtype=initial_state.dtype, device=x.device)
    (x_batch_stride, x_stride, _), (dy_batch_stride, dy_stride, _) = x.stride(), dy.stride()
    unit = common_unit(x_batch_stride, x_stride, dy_batch_stride, dy_stride, channels)
    grid, run = _runs(batch, length, channels, config)
    n_runs = max(1, triton.cdiv(length, run))
    partial = tape.empty((batch * n_runs, width + 1, channels), dtype=torch.float32, device=x.device)
    # the masks of packed rows and the states need more registers, and so does a longer filter
    plain = initial_state is None and seq_idx is None and dfinal is None and width <= 4
    tape.launch(
        conv_backward_kernel, (grid,),
        x, dy, weight.contiguous(), contiguous(bias), initial_state, contiguous(seq_idx),
        dfinal, dx, dinitial, partial,
        x_batch_stride // unit, x_stride // unit, dy_batch_stride // unit, dy_stride // unit,
        channels // unit, length, run,
        UNIT=unit, WIDTH=width, SILU=silu, CHANNELS=config.channels, GROUP=config.group,
        num_warps=config.num_warps, **register_limit(x, config.registers if plain else None),
    )  # fmt: skip
    return dx, dinitial, partial


_forward = Recordings(_launch_forward)
_backward = Recordings(_launch_backward)


def _runs(batch: int, length: int, channels: int, config: Config) -> tuple[int, int]:
    """Number of programs, and tokens of each: as short as the bound on programs allows."""
    rows = batch * triton.cdiv(channels, config.channels)
    run = _SHORTEST_RUN
    while run < length and rows * triton.cdiv(length, run) > config.most_programs:
        run *= 2
    return rows * max(1, triton.cdiv(length, run)), run
