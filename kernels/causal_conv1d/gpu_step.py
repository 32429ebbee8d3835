"""``causal_conv1d_step`` on Triton: one launch, a program for some channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mambakit.kernels.gpu_math import silu
from mambakit.kernels.launch import contiguous, dense_rows
from mambakit.kernels.recording import Options, Recordings
from mambakit.kernels.tape import Tape, Tensors

_BLOCK = 128


@triton.jit
def conv_step_kernel(
    y_ptr, new_state_ptr, state_ptr, x_ptr, weight_ptr, bias_ptr, x_stride,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``x_stride`` is that of the batch; the rest is contiguous. BLOCK channels a program."""
    n_blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    b = (program // n_blocks).to(tl.int64)
    columns = program % n_blocks * BLOCK + tl.arange(0, BLOCK)
    inside = columns < CHANNELS
    x = tl.load(x_ptr + b * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.load(weight_ptr + columns * WIDTH + WIDTH - 1, mask=inside, other=0.0).to(tl.float32)
    start = (b * CHANNELS + columns) * (WIDTH - 1)
    kind = new_state_ptr.dtype.element_ty
    # ascending, so that new_state may be state: a place is written after it was read
    for j in tl.static_range(WIDTH - 1):
        past = tl.load(state_ptr + start + j, mask=inside, other=0.0)
        weight = tl.load(weight_ptr + columns * WIDTH + j, mask=inside, other=0.0)
        y += past.to(tl.float32) * weight.to(tl.float32)
        if j > 0:
            tl.store(new_state_ptr + start + j - 1, past, mask=inside)
    if WIDTH > 1:
        tl.store(new_state_ptr + start + WIDTH - 2, x.to(kind), mask=inside)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        y = silu(y)
    tl.store(y_ptr + b * CHANNELS + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


def _launch(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    state, x, weight, bias = tensors
    activation, inplace = options
    batch, channels, n_past = state.shape
    y = tape.empty(x.shape, x.dtype, x.device)
    new_state = state if inplace else tape.empty(state.shape, state.dtype, x.device)
    tape.launch(
        conv_step_kernel, (batch * triton.cdiv(channels, _BLOCK),),
        y, new_state, state, x, weight, bias, x.stride(0),
        channels, n_past + 1, activation == "silu", _BLOCK, num_warps=1,
    )  # fmt: skip
    return y, new_state


_recordings = Recordings(_launch)


def causal_conv1d_step_triton(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    inplace: bool,
    checked: bool,
) -> tuple[Tensor, Tensor] | None:
    """As ``causal_conv1d_step``; None as ``Recordings.run_without_grad``."""
    if not checked:
        return _recordings.run_without_grad((state, x, weight, bias), (activation, inplace), checked=False)
    given = state.contiguous()
    tensors = (given, dense_rows(x), weight.contiguous(), contiguous(bias))
    done = _recordings.run_without_grad(tensors, (activation, inplace), checked=True)
    if done is None:
        return None
    y, new_state = done
    return y, state.copy_(new_state) if inplace and given is not state else new_state
