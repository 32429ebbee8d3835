"""Depthwise causal convolution over time, one tap at a time.

    y[b, t, c] = bias[c] + sum_k weight[c, k] x[b, t - (width - 1) + k, c]

What lies before the row is ``initial_state`` (zero without one); what lies in another packed
sequence is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.semantics import state_dtype


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns ``(y, final_state)``. Shapes as in ``causal_conv1d``."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    dtype = state_dtype(x)
    if initial_state is None:
        past = x.new_zeros(batch, width - 1, channels, dtype=dtype)
    else:
        past = initial_state.to(dtype).transpose(1, 2)  # [b, w-1, c]
    extended = torch.cat([past, x.to(dtype)], dim=1)
    if seq_idx is not None and length > 0:
        # the row's first sequence continues the initial state
        owner = torch.cat([seq_idx[:, :1].expand(batch, width - 1), seq_idx], dim=1)
    else:
        owner = None
    y = torch.zeros(batch, length, channels, dtype=dtype, device=x.device)
    for k in range(width):
        tap = extended[:, k : k + length]
        if owner is not None and seq_idx is not None:
            other = torch.ne(owner[:, k : k + length], seq_idx)
            tap = tap.masked_fill(other[:, :, None], 0.0)
        y = y + tap * weight[:, k].to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    if activation == "silu":
        y = F.silu(y)
    final = extended[:, length:]
    if owner is not None:
        final = final.masked_fill((owner[:, length:] != owner[:, -1:])[:, :, None], 0.0)
    return y.to(x.dtype), final.transpose(1, 2)
