"""``mambakit::selective_scan_fwd`` and ``_bwd``: the portable scan and the Triton one as custom ops.

As ops with fake implementations and a registered backward they are opaque to torch.compile and
torch.export, which see shapes only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.selective_scan.portable import CHUNK_SIZE, GPU_SAVE_EVERY, scan_backward, scan_forward
from mambakit.kernels.semantics import state_dtype


@torch.library.custom_op("mambakit::selective_scan_fwd", mutates_args=())
def selective_scan_fwd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_low: float,
    dt_high: float,
    needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, final_state, chunk_states)``; see ``scan_forward``. ``backend`` is "portable" or "triton".

    ``chunk_states`` are flattened to ``(batch, n_chunks * d_state, d_inner)``: a size that can be 1, as
    that of ``n_chunks``, would have torch.compile compile short and long sequences apart.
    """
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx)
    limit = (dt_low, dt_high)
    if backend == "triton":
        from mambakit.kernels.selective_scan.gpu import scan_forward_gpu

        y, final, states = scan_forward_gpu(
            *given, dt_softplus=dt_softplus, dt_limit=limit, needs_grad=needs_grad
        )
        if states is None:
            states = final.new_empty((x.shape[0], 0, A.shape[1], x.shape[2]))
    else:
        y, final, states = scan_forward(*given, dt_softplus, limit, needs_grad)
    return y, final, states.flatten(1, 2)


@selective_scan_fwd.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_low: float,
    dt_high: float,
    needs_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, d_inner = x.shape
    d_state = A.shape[1]
    every = GPU_SAVE_EVERY if backend == "triton" else CHUNK_SIZE
    n_saved = (length + every - 1) // every if needs_grad else 0
    dtype = state_dtype(x)
    return (
        x.new_empty(x.shape),
        x.new_empty((batch, d_inner, d_state), dtype=dtype),
        x.new_empty((batch, n_saved * d_state, d_inner), dtype=dtype),
    )


@torch.library.custom_op("mambakit::selective_scan_bwd", mutates_args=())
def selective_scan_bwd(
    dy: Tensor,
    dfinal: Tensor,
    chunk_states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_low: float,
    dt_high: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See ``scan_backward``; an empty tensor stands for the gradient of what was not given."""
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    chunk_states = chunk_states.unflatten(1, (-1, A.shape[1]))
    if backend == "triton":
        from mambakit.kernels.selective_scan.gpu import scan_backward_gpu

        grads = scan_backward_gpu(
            *(dy, dfinal, chunk_states, *given, seq_idx), dt_softplus=dt_softplus, dt_limit=(dt_low, dt_high)
        )
    else:
        grads = scan_backward(
            dy, dfinal, chunk_states, x, dt, A, B, C, D, z, dt_bias, seq_idx, dt_softplus, (dt_low, dt_high)
        )
    dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial = (
        x.new_empty(0) if v is None or g is None else g.to(v.dtype).contiguous()
        for v, g in zip(given, grads, strict=True)
    )
    return dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial


@selective_scan_bwd.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor,
    chunk_states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_low: float,
    dt_high: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial = (
        x.new_empty(0) if v is None else v.new_empty(v.shape) for v in given
    )
    return dx, ddt, dA, dB, dC, dD, dz, dbias, dinitial


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, dt_softplus, dt_low, dt_high, _, backend = inputs
    chunk_states = output[2]
    ctx.mark_non_differentiable(chunk_states)
    ctx.save_for_backward(chunk_states, *tensors)
    ctx.options = (dt_softplus, dt_low, dt_high, backend)


def _backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    chunk_states, *tensors = ctx.saved_tensors
    grads = selective_scan_bwd(dy, dfinal, chunk_states, *tensors, *ctx.options)
    given = tensors[:9]
    return *(None if v is None else g for v, g in zip(given, grads, strict=True)), *([None] * 6)


selective_scan_fwd.register_autograd(_backward, setup_context=_setup)
