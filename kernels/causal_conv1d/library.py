"""``mambakit::causal_conv1d_fwd`` and ``_bwd``: the convolution as custom ops, opaque to compilers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.causal_conv1d.portable import conv_backward, conv_forward
from mambakit.kernels.semantics import state_dtype


@torch.library.custom_op("mambakit::causal_conv1d_fwd", mutates_args=())
def causal_conv1d_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    backend: str = "portable",
) -> tuple[Tensor, Tensor]:
    """``(y, final_state)``; see ``conv_forward``."""
    if backend == "triton":
        from mambakit.kernels.causal_conv1d.gpu import conv_forward_triton

        return conv_forward_triton(x, weight, bias, initial_state, seq_idx, silu=silu)
    return conv_forward(x, weight, bias, initial_state, seq_idx, silu)


@causal_conv1d_fwd.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    backend: str = "portable",
) -> tuple[Tensor, Tensor]:
    batch, _, channels = x.shape
    return (
        x.new_empty(x.shape),
        x.new_empty((batch, channels, weight.shape[1] - 1), dtype=state_dtype(x)),
    )


@torch.library.custom_op("mambakit::causal_conv1d_bwd", mutates_args=())
def causal_conv1d_bwd(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    backend: str = "portable",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``conv_backward``; an empty tensor stands for the gradient of what was not given."""
    given = (x, weight, bias, initial_state)
    grads: tuple[Any, ...]
    if backend == "triton":
        from mambakit.kernels.causal_conv1d.gpu import conv_backward_triton

        grads = conv_backward_triton(dy, dfinal, *given, seq_idx, silu=silu)
        # an op's results share no memory, and that of the bias is a row of a sum
        grads = tuple(g.clone() if g is not None and g.dim() == 1 else g for g in grads)
    else:
        grads = conv_backward(dy, dfinal, *given, seq_idx, silu)
    dx, dweight, dbias, dinitial = (
        x.new_empty(0) if v is None else g.to(v.dtype) for v, g in zip(given, grads, strict=True)
    )
    return dx, dweight, dbias, dinitial


@causal_conv1d_bwd.register_fake
def _(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
    backend: str = "portable",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = (x, weight, bias, initial_state)
    dx, dweight, dbias, dinitial = (x.new_empty(0) if v is None else v.new_empty(v.shape) for v in given)
    return dx, dweight, dbias, dinitial


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = causal_conv1d_bwd(dy, dfinal, *tensors, ctx.silu, ctx.backend)
    given = tensors[:4]
    return *(None if v is None else g for v, g in zip(given, grads, strict=True)), None, None, None


causal_conv1d_fwd.register_autograd(_backward, setup_context=_setup)
