"""What ``mamba3_scan`` computes around ``ssd_core``, on Triton: a token's weights, and the channels' angles.

In torch's own operations both take longer than the recurrence: the angles of all heads pass through memory
in float64 five times forward and ten times backward. For tensors that autograd alone watches.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambakit.kernels.launch import contiguous
from mambakit.kernels.mamba3_scan.gpu_turns import (
    angle_totals,
    carry_tiles,
    turn_angles,
    turn_gradients,
    turn_totals,
)
from mambakit.kernels.mamba3_scan.gpu_weights import trapezoid_weights, weight_gradients
from mambakit.kernels.recording import Options, Recordings
from mambakit.kernels.tape import Tape, Tensors

_TILE = 64
_BLOCK = 1024


def weights(dt: Tensor, trap: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(scale, own)``: what scales a token in later outputs, and in its own.

    Args:
        dt, trap: ``(batch, length, n_heads)`` float32; neither dimension is 0.
        seq_idx: ``(batch, length)`` int32, or None.
    """
    scale, own = _Weights.apply(dt.contiguous(), trap.contiguous(), contiguous(seq_idx))
    return scale, own


def angles(dt: Tensor, turn: Tensor, begin: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """How far channels have turned, ``(batch, length, n_heads, n_angles)`` float32 in [0, 2 pi).

    Args:
        dt: ``(batch, length, n_heads)`` float32.
        turn: ``(batch, length, n_angles)``; none of all these dimensions is 0.
        begin: ``(batch, n_heads, n_angles)``, before the first token; zero if None.
        seq_idx: As for ``weights``.
    """
    found: Tensor = _Angles.apply(dt.contiguous(), turn.contiguous(), contiguous(begin), contiguous(seq_idx))
    return found


def _launch_weights(tape: Tape, tensors: Tensors, _options: Options) -> Tensors:
    dt, trap, seq_idx = tensors
    scale, own = (tape.empty(dt.shape, torch.float32, dt.device) for _ in range(2))
    tape.launch(
        trapezoid_weights, (triton.cdiv(dt.numel(), _BLOCK),),
        dt, trap, seq_idx, scale, own, *dt.shape[1:], dt.numel(), _BLOCK,
    )  # fmt: skip
    return scale, own


def _launch_weight_gradients(tape: Tape, tensors: Tensors, _options: Options) -> Tensors:
    dscale, down, dt, trap, seq_idx = tensors
    ddt, dtrap = (tape.empty(dt.shape, torch.float32, dt.device) for _ in range(2))
    tape.launch(
        weight_gradients, (triton.cdiv(dt.numel(), _BLOCK),),
        dscale, down, dt, trap, seq_idx, ddt, dtrap, *dt.shape[1:], dt.numel(), _BLOCK,
    )  # fmt: skip
    return ddt, dtrap


def _launch_angles(tape: Tape, tensors: Tensors, _options: Options) -> Tensors:
    dt, turn, begin, seq_idx = tensors
    batch, length, n_heads = dt.shape
    n_tiles = triton.cdiv(length, _TILE)
    n_angles = turn.shape[2]
    sizes = (length, n_heads, n_tiles, n_angles, triton.next_power_of_2(n_angles), _TILE)
    totals = tape.empty((batch, n_tiles, n_heads, n_angles), torch.float64, dt.device)
    found = tape.empty((batch, length, n_heads, n_angles), torch.float32, dt.device)
    programs = batch * n_tiles * n_heads
    tape.launch(turn_totals, (programs,), dt, turn, seq_idx, totals, *sizes)
    tape.launch(carry_tiles, (batch * n_heads,), totals, begin, seq_idx, None, *sizes, False, num_warps=1)
    tape.launch(turn_angles, (programs,), dt, turn, seq_idx, totals, found, *sizes)
    return (found,)


def _launch_angle_gradients(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    dangles, dt, turn, seq_idx = tensors
    (wants_begin,) = options
    batch, length, n_heads = dt.shape
    n_tiles = triton.cdiv(length, _TILE)
    n_angles = turn.shape[2]
    sizes = (length, n_heads, n_tiles, n_angles, triton.next_power_of_2(n_angles), _TILE)
    totals = tape.empty((batch, n_tiles, n_heads, n_angles), torch.float64, dt.device)
    ddt = tape.empty(dt.shape, dt.dtype, dt.device)
    dturn = tape.empty(turn.shape, turn.dtype, dt.device)
    dbegin = tape.empty((batch, n_heads, n_angles), torch.float32, dt.device) if wants_begin else None
    tape.launch(angle_totals, (batch * n_tiles * n_heads,), dangles, seq_idx, totals, *sizes)
    tape.launch(carry_tiles, (batch * n_heads,), totals, None, seq_idx, dbegin, *sizes, True, num_warps=1)
    tape.launch(
        turn_gradients, (batch * n_tiles,), dangles, dt, turn, seq_idx, totals, ddt, dturn, *sizes, 2
    )  # fmt: skip
    return ddt, dturn, dbegin


_weights = Recordings(_launch_weights)
_weight_gradients = Recordings(_launch_weight_gradients)
_angles = Recordings(_launch_angles)
_angle_gradients = Recordings(_launch_angle_gradients)


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dt: Tensor, trap: Tensor, seq_idx: Tensor | None) -> Any:
        ctx.save_for_backward(dt, trap, seq_idx)
        return _weights.run((dt, trap, seq_idx), ())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dscale: Tensor, down: Tensor) -> Any:
        ddt, dtrap = _weight_gradients.run((dscale.contiguous(), down.contiguous(), *ctx.saved_tensors), ())
        return ddt, dtrap, None


class _Angles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dt: Tensor, turn: Tensor, begin: Tensor | None, seq_idx: Tensor | None) -> Any:
        ctx.save_for_backward(dt, turn, seq_idx)
        ctx.begin = None if begin is None else begin.dtype
        return _angles.run((dt, turn, begin, seq_idx), ())[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dangles: Tensor) -> Any:
        given = (dangles.contiguous(), *ctx.saved_tensors)
        ddt, dturn, dbegin = _angle_gradients.run(given, (ctx.begin is not None,))
        return ddt, dturn, None if dbegin is None else dbegin.to(ctx.begin), None
