"""``mambakit::ssd_fwd`` and ``mambakit::ssd_bwd``: the portable SSD as custom ops, and the same for Triton.

As ops with fake implementations and a registered backward they are opaque to torch.compile and
torch.export, which see shapes only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.arrays import HAS_NUMBA
from mambakit.kernels.semantics import state_dtype
from mambakit.kernels.ssd.portable import default_chunk, ssd_backward, ssd_forward


def _runs_in_numba(x: Tensor, B: Tensor) -> bool:
    return (
        HAS_NUMBA and x.device.type == "cpu" and x.dtype != torch.float64 and x.numel() > 0 and B.numel() > 0
    )


def forward(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """``(y, final_state)``; see ``ssd_forward``."""
    chunk_size = chunk_size or default_chunk(x.shape[1])
    if _runs_in_numba(x, B):
        from mambakit.kernels.ssd.cpu_forward import ssd_forward_cpu

        return ssd_forward_cpu(x, log_decay, scale, B, C, D, z, initial_state, seq_idx, chunk_size)
    return ssd_forward(x, log_decay, scale, B, C, D, z, initial_state, seq_idx, chunk_size)


ssd_fwd = torch.library.custom_op("mambakit::ssd_fwd", forward, mutates_args=())


@ssd_fwd.register_fake
def _(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    batch, _, n_heads, head_dim = x.shape
    return (
        x.new_empty(x.shape),
        x.new_empty((batch, n_heads, head_dim, B.shape[3]), dtype=state_dtype(x)),
    )


@torch.library.custom_op("mambakit::ssd_bwd", mutates_args=())
def ssd_bwd(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``ssd_backward``; an empty tensor stands for the gradient of what was not given."""
    chunk_size = chunk_size or default_chunk(x.shape[1])
    if _runs_in_numba(x, B):
        from mambakit.kernels.ssd.cpu_backward import ssd_backward_cpu as backward
    else:
        backward = ssd_backward
    dx, dlog_decay, dscale, dB, dC, dD, dz, dinitial = backward(
        dy, dfinal, x, log_decay, scale, B, C, D, z, initial_state, seq_idx, chunk_size
    )
    return (
        dx,
        dlog_decay,
        dscale,
        dB,
        dC,
        x.new_empty(0) if D is None or dD is None else dD.to(D.dtype),
        x.new_empty(0) if dz is None else dz,
        x.new_empty(0) if initial_state is None else dinitial.to(initial_state.dtype),
    )


@ssd_bwd.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = (x, log_decay, scale, B, C, D, z, initial_state)
    dx, dl, ds, dB, dC, dD, dz, dh = (x.new_empty(0) if v is None else v.new_empty(v.shape) for v in given)
    return dx, dl, ds, dB, dC, dD, dz, dh


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = ssd_bwd(dy, dfinal, *tensors, ctx.chunk_size)
    given = tensors[:8]
    return *(None if v is None else g for v, g in zip(given, grads, strict=True)), None, None


ssd_fwd.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("mambakit::ssd_triton_fwd", mutates_args=())
def ssd_triton_fwd(
    x: Tensor,
    dt: Tensor,
    scale: Tensor | None,
    A: Tensor | None,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor | None,
    own_scale: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    low: float,
    high: float,
    chunk_size: int | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    """``(y, final_state)``, the state empty if not asked for; see ``gpu.Inputs``."""
    from mambakit.kernels.ssd import gpu

    inputs = gpu.Inputs(
        x, dt, scale, A, B, C, D, z, dt_bias, initial_state, B_bias, C_bias, angles, own_scale, seq_idx,
        dt_softplus, low, high,
    )  # fmt: skip
    y, state = gpu.forward(inputs, chunk_size, return_final_state)
    return y, x.new_empty(0, dtype=torch.float32) if state is None else state


@ssd_triton_fwd.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    scale: Tensor | None,
    A: Tensor | None,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor | None,
    own_scale: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    low: float,
    high: float,
    chunk_size: int | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor]:
    batch, _, n_heads, head_dim = x.shape
    shape = (batch, n_heads, head_dim, B.shape[3]) if return_final_state else (0,)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("mambakit::ssd_triton_bwd", mutates_args=())
def ssd_triton_bwd(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    dt: Tensor,
    scale: Tensor | None,
    A: Tensor | None,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor | None,
    own_scale: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    low: float,
    high: float,
    chunk_size: int | None,
) -> list[Tensor]:
    """Gradients of ``x`` to ``own_scale``; an empty tensor stands for the one of what was not given."""
    from mambakit.kernels.ssd import gpu

    inputs = gpu.Inputs(
        x, dt, scale, A, B, C, D, z, dt_bias, initial_state, B_bias, C_bias, angles, own_scale, seq_idx,
        dt_softplus, low, high,
    )  # fmt: skip
    grads = gpu.backward(inputs, dy, dfinal, chunk_size)
    # an op's results share no memory, and those of A and dt_bias, and of the biases, are rows of one sum
    return [x.new_empty(0) if g is None else g.clone() if g.dim() <= 2 else g for g in grads]


@ssd_triton_bwd.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    dt: Tensor,
    scale: Tensor | None,
    A: Tensor | None,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor | None,
    own_scale: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    low: float,
    high: float,
    chunk_size: int | None,
) -> list[Tensor]:
    given = (x, dt, scale, A, B, C, D, z, dt_bias, initial_state, B_bias, C_bias, angles, own_scale)
    return [x.new_empty(0) if v is None else v.new_empty(v.shape) for v in given]


def _setup_triton(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:15])
    *ctx.options, ctx.return_final_state = inputs[15:]


def _backward_triton(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = ssd_triton_bwd(dy, dfinal if ctx.return_final_state else None, *tensors, *ctx.options)
    given = tensors[:14]
    return *(None if v is None else g for v, g in zip(given, grads, strict=True)), *(None,) * 6


ssd_triton_fwd.register_autograd(_backward_triton, setup_context=_setup_triton)
