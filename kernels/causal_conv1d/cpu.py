"""The causal convolution on CPU: prepares arrays for the compiled loops and spreads them over threads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mambakit.kernels.arrays import as_array
from mambakit.kernels.causal_conv1d.cpu_kernels import RUN, backward_kernel, forward_kernel
from mambakit.kernels.parallel import in_portions
from mambakit.kernels.semantics import state_dtype


def conv_forward_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """As ``portable.conv_forward``."""
    batch, length, channels = x.shape
    dtype = state_dtype(x)
    y = torch.empty((batch, length, channels), dtype=dtype)
    past = _past(x, weight, initial_state, dtype)
    arrays = (*_inputs(x, weight, bias, past, seq_idx, dtype), y.numpy())
    kernel = forward_kernel(dtype == torch.float64)
    in_portions(
        batch * -(-channels // RUN),
        lambda lo, hi: kernel(*arrays, silu, seq_idx is not None, lo, hi),
        small=x.numel() < 50_000,
    )
    return y.to(x.dtype), _final(x, past, seq_idx, dtype)


def conv_backward_cpu(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    """As ``portable.conv_backward``."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    dtype = state_dtype(x)
    dx = torch.empty((batch, length, channels), dtype=dtype)
    dweight = torch.empty((batch, width, channels), dtype=dtype)
    dbias = torch.empty((batch, channels), dtype=dtype)
    dpast = torch.empty((batch, width - 1, channels), dtype=dtype)
    past = _past(x, weight, initial_state, dtype)
    arrays = (
        as_array(dy, dtype),
        as_array(dfinal.transpose(1, 2), dtype),
        *_inputs(x, weight, bias, past, seq_idx, dtype),
        *(grad.numpy() for grad in (dx, dweight, dbias, dpast)),
    )
    kernel = backward_kernel(dtype == torch.float64)
    in_portions(
        batch * -(-channels // RUN),
        lambda lo, hi: kernel(*arrays, silu, seq_idx is not None, lo, hi),
        small=x.numel() < 50_000,
    )
    dinitial = dpast.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return dx, dweight.sum(0).t().contiguous(), dbias.sum(0), dinitial


def _past(x: Tensor, weight: Tensor, initial_state: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What lies before the row, ``(batch, width - 1, channels)``."""
    if initial_state is None:
        return torch.zeros((x.shape[0], weight.shape[1] - 1, x.shape[2]), dtype=dtype)
    return initial_state.to(dtype).transpose(1, 2)


def _final(x: Tensor, past: Tensor, seq_idx: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The last ``width - 1`` tokens, ``(batch, channels, width - 1)``; zero where of another sequence."""
    length, n_past = x.shape[1], past.shape[1]
    n_new = min(length, n_past)
    final = torch.cat([past[:, n_new:], x[:, length - n_new :].to(dtype)], dim=1)
    if seq_idx is not None and length > 0:
        owner = torch.cat([seq_idx[:, :1].expand(-1, n_past - n_new), seq_idx[:, length - n_new :]], dim=1)
        final = final.masked_fill((owner != seq_idx[:, -1:])[:, :, None], 0.0)
    return final.transpose(1, 2).contiguous()


def _inputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, seq_idx: Tensor | None, dtype: torch.dtype
) -> tuple[np.ndarray, ...]:
    return (
        as_array(x, dtype),
        as_array(weight.t(), dtype),
        as_array(torch.zeros(x.shape[2], dtype=dtype) if bias is None else bias, dtype),
        as_array(past, dtype),
        np.empty((0, 0), np.int32) if seq_idx is None else seq_idx.numpy(),
    )
