"""The terms of Mamba-1 and Mamba-2, made of what their own ``forward`` hands to the scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.attribution.matrices import (
    convolution_matrix,
    selective_scan_matrix,
    ssd_matrix,
    tokens_at,
    visible,
)
from mambakit.core.attribution.terms import Request, Terms, rows_at
from mambakit.core.blocks import Mamba1, Mamba2
from mambakit.core.blocks.linear import weight_of
from mambakit.kernels import causal_conv1d, selective_scan, ssd
from mambakit.kernels.semantics import effective_dt, state_dtype


def mamba_terms(block: Mamba1 | Mamba2, request: Request) -> Terms:
    x, state, seq_idx, lengths, queries = (
        request.x,
        request.state,
        request.seq_idx,
        request.lengths,
        request.queries,
    )
    conv_state, ssm_state = (None, None) if state is None else (state["conv"], state["ssm"])
    if isinstance(block, Mamba1):
        inputs, z = block.project_in(x)
        arguments, _ = block.scan_arguments(inputs, conv_state, seq_idx, lengths, request.elapsed)
        n_heads, width = block.d_inner, 1
    else:
        z, inputs, dt = block.project_in(x)
        arguments, _ = block.scan_arguments(inputs, dt, conv_state, seq_idx, lengths, request.elapsed)
        n_heads, width = block.n_heads, block.head_dim
    dtype = state_dtype(x)
    heads = torch.tensor(request.heads, device=x.device)
    options = {name: arguments[name] for name in ("dt_bias", "dt_softplus", "dt_limit")}
    dt = effective_dt(arguments["dt"], **options, dtype=dtype)[..., heads]
    A, B, C = (arguments[name].to(dtype) for name in ("A", "B", "C"))
    if isinstance(block, Mamba1):
        matrix, state_matrix = selective_scan_matrix(dt, A[heads], B[:, :, 0], C[:, :, 0], queries)
    else:
        groups = heads // (n_heads // block.n_groups)
        matrix, state_matrix = ssd_matrix(dt, A[heads], B[:, :, groups], C[:, :, groups], queries)
    matrix = matrix.masked_fill(~visible(queries, x.shape[1], seq_idx), 0.0)
    if seq_idx is not None:  # a state is the first sequence's
        first = tokens_at(seq_idx, queries) == seq_idx[:, :1]
        state_matrix = state_matrix * first[:, None, :, None]

    # Everything a channel has for itself: values, skip, state, and what may be folded in.
    channels = (heads[:, None] * width + torch.arange(width, device=x.device)).flatten()
    values = arguments["x"].to(dtype).flatten(2)[..., channels].transpose(1, 2)  # [b, c, l]
    D = arguments["D"].to(dtype)
    diagonal = (queries[:, :, None] == torch.arange(x.shape[1], device=x.device))[:, None]
    past = None if ssm_state is None else ssm_state.to(dtype).view(len(x), n_heads * width, -1)[:, channels]
    beside = None
    names = [f"{'channel' if isinstance(block, Mamba1) else 'head'} {head}" for head in request.heads]
    if width > 1 and request.per_channel:
        matrix = matrix.repeat_interleave(width, 1)
        state_matrix = state_matrix.repeat_interleave(width, 1)
        D = (D if D.dim() == 2 else D[:, None].expand(-1, width)).flatten()[channels]
        names = [f"{name} channel {k}" for name in names for k in range(width)]
        heads, width = channels, 1
    else:
        D = D[heads]
    if D.dim() == 1:
        matrix = matrix + diagonal * D[:, None, None]
    values = values.unflatten(1, (len(heads), width)).transpose(2, 3)  # [b, units, l, p]
    if D.dim() == 2:
        beside = D[:, None] * rows_at(values, queries)
    state_values = None
    if past is not None:
        state_values = past.unflatten(1, (len(heads), width)).transpose(2, 3)  # [b, units, n, p]

    if request.fold_convolution:
        weight = block.conv_weight[channels].to(dtype)
        bias = None if block.conv_bias is None else block.conv_bias[channels]
        taken = inputs[..., channels]
        before = None if conv_state is None else conv_state[:, channels]
        # silu(a) = sigmoid(a) a: linear in a once the sigmoid is known
        slope = torch.sigmoid(_convolved(taken, block.conv_weight[channels], bias, before, seq_idx).to(dtype))
        scaled = matrix * slope.transpose(1, 2)[:, :, None]
        band, band_of_past = convolution_matrix(weight, x.shape[1], seq_idx)
        if bias is not None:
            beside = (scaled.sum(-1) * bias.to(dtype)[:, None])[..., None]
        matrix = scaled @ band
        values = taken.to(dtype).transpose(1, 2)[..., None]
        if before is not None:
            assert state_values is not None
            state_matrix = torch.cat([scaled @ band_of_past, state_matrix], dim=-1)
            state_values = torch.cat([before.to(dtype)[..., None], state_values], dim=2)

    z = tokens_at(z, queries)
    out_weight = None
    if request.fold_gate:
        y = scanned(block, arguments, ssm_state, seq_idx)
        factor = gate_of(block, tokens_at(y.flatten(2), queries).to(dtype), z.to(dtype))
        factor = factor[..., channels].transpose(1, 2)[..., None]  # [b, c, q, 1]
        matrix, state_matrix = matrix * factor, state_matrix * factor
        beside = None if beside is None else beside * factor
        out_weight = weight_of(block.out_proj)[:, channels]

    def finish(y: Tensor) -> Tensor:
        if request.fold_gate:
            return block.out_proj(y.flatten(2).to(x.dtype))
        if isinstance(block, Mamba1):
            return block.out_proj((y.flatten(2) * F.silu(z)).to(x.dtype))
        if block.norm_weight is None:
            y = y * F.silu(z).view_as(y)
        return block.project_out(y.to(x.dtype), z)

    if past is None:
        return Terms(matrix, values, None, None, beside, finish, out_weight, names)
    return Terms(matrix, values, state_matrix, state_values, beside, finish, out_weight, names)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, seq_idx: Tensor | None
) -> Tensor:
    """The convolution before its SiLU."""
    y = causal_conv1d(x, weight, bias, activation=None, initial_state=state, seq_idx=seq_idx)
    assert isinstance(y, Tensor)
    return y


def scanned(
    block: Mamba1 | Mamba2, arguments: dict[str, Any], state: Tensor | None, seq_idx: Tensor | None
) -> Tensor:
    """The scan's output, without the gate."""
    scan: Callable[..., Any] = selective_scan if isinstance(block, Mamba1) else ssd
    return scan(**arguments, initial_state=state, seq_idx=seq_idx)


def gate_of(block: Mamba1 | Mamba2, y: Tensor, z: Tensor) -> Tensor:
    """What the scan's ``y`` is multiplied by on its way to out_proj, all ``(batch, n_queries,
    d_inner)``."""
    factor = F.silu(z)
    if isinstance(block, Mamba1) or block.norm_weight is None:
        return factor
    normed = y if block.norm_before_gate else y * factor
    squares = normed.square().unflatten(-1, (block.n_groups, -1)).mean(-1, keepdim=True)
    scale = torch.rsqrt(squares + block.norm_eps).expand(*squares.shape[:-1], y.shape[-1] // block.n_groups)
    return factor * scale.flatten(2) * block.norm_weight.to(y.dtype)
