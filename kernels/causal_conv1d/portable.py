"""The causal convolution in plain torch, one tap at a time: any device that torch has."""

from __future__ import annotations

import torch
from torch import Tensor

from mambakit.kernels.arrays import HAS_NUMBA
from mambakit.kernels.causal_conv1d.reference import causal_conv1d_reference
from mambakit.kernels.semantics import state_dtype


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """``(y, final_state)``; shapes as in ``causal_conv1d``."""
    if x.device.type == "cpu" and HAS_NUMBA:
        from mambakit.kernels.causal_conv1d.cpu import conv_forward_cpu

        return conv_forward_cpu(x, weight, bias, initial_state, seq_idx, silu)
    y, state = causal_conv1d_reference(
        x, weight, bias, activation="silu" if silu else None, initial_state=initial_state, seq_idx=seq_idx
    )
    # the reference's state is a view, of an input even where the row is empty
    return y, state.clone(memory_format=torch.contiguous_format)


def conv_backward(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    """Gradients of ``x, weight, bias, initial_state``, by way of the recomputed pre-activation."""
    if x.device.type == "cpu" and HAS_NUMBA:
        from mambakit.kernels.causal_conv1d.cpu import conv_backward_cpu

        return conv_backward_cpu(dy, dfinal, x, weight, bias, initial_state, seq_idx, silu)
    batch, length, channels = x.shape
    width = weight.shape[1]
    dtype = state_dtype(x)
    weights = weight.to(dtype)
    if initial_state is None:
        past = x.new_zeros(batch, width - 1, channels, dtype=dtype)
    else:
        past = initial_state.to(dtype).transpose(1, 2)
    extended = torch.cat([past, x.to(dtype)], dim=1)
    dextended = torch.zeros_like(extended)
    dlast = dfinal.to(dtype).transpose(1, 2)
    owner = None
    if seq_idx is not None and length > 0:
        owner = torch.cat([seq_idx[:, :1].expand(batch, width - 1), seq_idx], dim=1)
        dlast = dlast.masked_fill((owner[:, length:] != owner[:, -1:])[:, :, None], 0.0)
    dextended[:, length:] += dlast

    def tap(k: int) -> tuple[Tensor, Tensor | None]:
        values = extended[:, k : k + length]
        if owner is None or seq_idx is None:
            return values, None
        other = (owner[:, k : k + length] != seq_idx)[:, :, None]
        return values.masked_fill(other, 0.0), other

    dpre = dy.to(dtype)
    if silu:
        pre = x.new_zeros(x.shape, dtype=dtype)
        for k in range(width):
            pre = pre + tap(k)[0] * weights[:, k]
        if bias is not None:
            pre = pre + bias.to(dtype)
        gate = torch.sigmoid(pre)
        dpre = dpre * gate * (1 + pre * (1 - gate))
    dweight = torch.empty_like(weights)
    for k in range(width):
        values, other = tap(k)
        dweight[:, k] = (dpre * values).sum((0, 1))
        dtap = dpre * weights[:, k]
        dextended[:, k : k + length] += dtap if other is None else dtap.masked_fill(other, 0.0)
    # cloned: an op's results must not share memory
    dx = dextended[:, width - 1 :].clone(memory_format=torch.contiguous_format)
    dinitial = dextended[:, : width - 1].transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return dx, dweight, dpre.sum((0, 1)), dinitial
