"""Launches of the backward Triton kernels of ``ssd``: slices that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.launch import register_limit
from mambakit.kernels.ssd.gpu_backward import chunk_gradients, group_gradients, state_gradients
from mambakit.kernels.ssd.gpu_config import Backward, Inputs, Sizes
from mambakit.kernels.ssd.gpu_decays import step_gradients
from mambakit.kernels.ssd.gpu_launch import (
    Walk,
    block_heads_of,
    layout,
    limited,
    step_launch,
    step_strides,
    take_decays,
)
from mambakit.kernels.tape import Tape

# States of chunks, their gradients' too, that a backward pass holds at a time; twice as much where a single
# row has more, since a slice of its heads repeats much of the others' work.
_STATE_BYTES = 340 << 20


def slices_of(
    batch: int, n_heads: int, n_groups: int, head_bytes: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, heads and groups to work on at a time, so that the states of chunks fit ``_STATE_BYTES``."""
    group_heads = n_heads // n_groups
    most = _STATE_BYTES if n_heads * head_bytes <= _STATE_BYTES else 2 * _STATE_BYTES
    units = max(1, most // max(head_bytes, 1))  # (row, head) pairs
    rows = min(batch, max(1, units // n_heads))
    for r in range(0, batch, rows):
        row = slice(r, min(r + rows, batch))
        if units >= group_heads:
            groups = min(n_groups, units // group_heads)
            for g in range(0, n_groups, groups):
                g1 = min(g + groups, n_groups)
                yield row, slice(g * group_heads, g1 * group_heads), slice(g, g1)
        else:
            heads = -(-group_heads // -(-group_heads // units))
            for g in range(n_groups):
                for h in range(g * group_heads, (g + 1) * group_heads, heads):
                    yield row, slice(h, min(h + heads, (g + 1) * group_heads)), slice(g, g + 1)


def run_backward(
    tape: Tape, inputs: Inputs, dy: Tensor, dfinal: Tensor | None, sizes: Sizes, config: Backward
) -> tuple[Tensor | None, ...]:
    """For ``finish_backward``, where the heads of a group share its B and C."""
    x, dt, scale, A, B, C, D, z, _, initial, *_ = inputs
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    group_heads = n_heads // n_groups
    device = x.device
    n_chunks = -(-length // config.chunk)
    dx = tape.empty(x.shape, dtype=x.dtype, device=device)
    dz = None if z is None else tape.empty(z.shape, dtype=z.dtype, device=device)
    ddt = tape.empty(dt.shape, dtype=dt.dtype, device=device)
    dscale = None if scale is None else tape.empty(scale.shape, dtype=scale.dtype, device=device)
    sums = (
        None if A is None else tape.empty((batch, n_chunks, 3, n_heads), dtype=torch.float32, device=device)
    )
    dD = None
    if D is not None and D.dim() == 2:
        dD = tape.empty((batch, n_chunks, n_heads, head_dim), dtype=torch.float32, device=device)
    dinitial = None if initial is None else tape.empty(initial.shape, dtype=torch.float32, device=device)

    itemsize = 2 if sizes.state == torch.bfloat16 else 4
    slices = [(slice(0, batch), slice(0, n_heads), slice(0, n_groups))]
    if n_chunks > 1:
        slices = list(slices_of(batch, n_heads, n_groups, 2 * n_chunks * head_dim * d_state * itemsize))
    whole = len(slices) == 1
    # slices of one group add up in float32
    exact = slices[0][1].stop < group_heads
    dskips = None
    if D is not None and D.dim() == 3:
        dskips = tape.empty(D.shape, dtype=D.dtype, device=device)
    dB, dC = (tape.empty(v.shape, dtype=torch.float32 if exact else v.dtype, device=device) for v in (B, C))
    for row, head, group in slices:
        gradients = (
            dx[row, :, head], ddt[row, :, head], None if dscale is None else dscale[row, :, head],
            dB[row, :, group], dC[row, :, group], None if dz is None else dz[row, :, head],
            None if sums is None else sums[row, :, :, head], None if dD is None else dD[row, :, head],
            None if dinitial is None else dinitial[row, head],
            None if dskips is None else dskips[row, :, head],
        )  # fmt: skip
        _backward_part(
            tape,
            inputs if whole else _part(inputs, row, head, group),
            dy if whole else dy[row, :, head],
            dfinal if dfinal is None or whole else dfinal[row, head].contiguous(),
            sizes,
            config,
            gradients,
            add=head.start > group.start * group_heads,
            row=(n_heads, n_groups),
        )
    return dx, ddt, dscale, sums, dB, dC, dD if dskips is None else dskips, dz, dinitial, None, None, None


def finish_backward(inputs: tuple[Any, ...], parts: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of ``Inputs.x`` to ``Inputs.own_scale`` from what ``run_backward`` wrote."""
    _, _, _, A, B, C, D, _, bias, initial, B_bias, C_bias, *_ = inputs
    dx, ddt, dscale, sums, dB, dC, dD, dz, dinitial, dangles, dbiases, down = parts
    dA = dbias = None
    if sums is not None:
        sum_A, sum_bias, sum_D = sums.sum((0, 1)).unbind()
        dA = None if A is None else _cast(sum_A, A.dtype)
        dbias = None if bias is None else _cast(sum_bias, bias.dtype)
        if D is not None:
            dD = _cast(sum_D if dD is None else dD.sum((0, 1)), D.dtype)
    dB_bias = dC_bias = None
    if dbiases is not None:
        sum_B, sum_C = dbiases.sum((0, 1)).unbind()
        dB_bias = None if B_bias is None else _cast(sum_B, B_bias.dtype)
        dC_bias = None if C_bias is None else _cast(sum_C, C_bias.dtype)
    return (
        dx,
        ddt,
        dscale,
        dA,
        _cast(dB, B.dtype),
        _cast(dC, C.dtype),
        dD,
        dz,
        dbias,
        None if dinitial is None or initial is None else _cast(dinitial, initial.dtype),
        dB_bias,
        dC_bias,
        dangles,
        down,
    )


def _cast(v: Tensor, dtype: torch.dtype) -> Tensor:
    return v if v.dtype is dtype else v.to(dtype)


def _part(inputs: Inputs, row: slice, head: slice, group: slice) -> Inputs:
    """Some rows and heads, as views (a state's copied, since it must be contiguous)."""
    x, dt, scale, A, B, C, D, z, bias, initial, *_, seq_idx, softplus, low, high = inputs
    return Inputs(
        x[row, :, head],
        dt[row, :, head],
        None if scale is None else scale[row, :, head],
        None if A is None else A[head],
        B[row, :, group],
        C[row, :, group],
        None if D is None else D[row, :, head] if D.dim() == 3 else D[head],
        None if z is None else z[row, :, head],
        None if bias is None else bias[head],
        None if initial is None else initial[row, head].contiguous(),
        seq_idx=None if seq_idx is None else seq_idx[row],
        dt_softplus=softplus,
        low=low,
        high=high,
    )


def _backward_part(
    tape: Tape,
    inputs: Inputs,
    dy: Tensor,
    dfinal: Tensor | None,
    sizes: Sizes,
    config: Backward,
    gradients: tuple[Any, ...],
    *,
    add: bool,
    row: tuple[int, int],
) -> None:
    """Write ``gradients``, views of tensors with ``row`` heads and groups."""
    x, dt, _, A, B, C, _, z, bias, initial, *_, seq_idx, softplus, low, high = inputs
    dx, ddt, dscale, dB, dC, dz, sums, dD, dinitial, dskips = gradients
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    group_heads = n_heads // n_groups
    n_chunks = -(-length // config.chunk)
    decays, skip, _ = take_decays(tape, inputs, sizes, config.chunk)
    states, dstates = initial, dfinal
    if n_chunks > 1:
        shape = (2, batch, n_chunks, n_heads, d_state, head_dim)
        states, dstates = tape.empty(shape, dtype=sizes.state, device=x.device).unbind()
        Walk(tape, inputs, x, B, None, decays, sizes, config, reverse=False).run(initial, states, None)
    if n_chunks > 1 or dinitial is not None:
        end = dinitial
        if end is not None and not end.is_contiguous():
            end = tape.empty(end.shape, dtype=end.dtype, device=end.device)
        walk = Walk(tape, inputs, dy, C, z, decays, sizes, config, reverse=True)
        walk.run(dfinal, dstates if n_chunks > 1 else None, end)
        if end is not dinitial:
            tape.stop()
            dinitial.copy_(end)
    with_state = states is not None or dstates is not None
    programs = batch * n_chunks * n_groups
    blocks, block_heads = block_heads_of(group_heads, programs, x.device, config.chunk_programs)
    state_blocks, state_heads = 0, group_heads
    if with_state:
        state_blocks, state_heads = block_heads_of(group_heads, programs, x.device, config.state_programs)
    float32: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    pairs = tape.empty((blocks, batch, n_chunks, n_groups, config.chunk, config.chunk), **float32)
    parts_B = parts_C = pairs  # not read
    if with_state:
        parts_B, parts_C = tape.empty((2, state_blocks, batch, length, n_groups, d_state), **float32).unbind()
    unit, strides = layout(dy, x, B, C, z)
    per_token = tape.empty((3, *decays.steps.shape), **float32)
    dcum, dsteps, dskip = per_token.unbind()
    shared = (head_dim, d_state, sizes.block_p, sizes.block_n, config.chunk)
    dot = (sizes.wide, unit, sizes.dot, sizes.precision)
    through = None
    if with_state:
        through = tape.empty((batch, n_heads, n_chunks), **float32)
        tape.launch(
            state_gradients, (programs * state_blocks,),
            dy, x, *decays, B, C, z, seq_idx, states, dstates,
            dx, dcum, through, dsteps, parts_B, parts_C, dz,
            *strides, length, n_heads, group_heads, n_chunks, state_heads, row[0],
            *shared, n_chunks == 1, *dot, config.state_stages,
            num_warps=config.state_warps, **register_limit(x, config.state_registers),
        )  # fmt: skip
    tape.launch(
        chunk_gradients, (programs * blocks,),
        dy, x, *decays, B, C, skip.D, z, seq_idx, dx, dcum, dsteps, dskip, pairs, dz, dD,
        *strides, length, n_heads, group_heads, n_chunks, block_heads, row[0],
        *shared, skip.columns, with_state, *dot, config.chunk_stages,
        num_warps=config.chunk_warps, **register_limit(x, config.chunk_registers),
    )  # fmt: skip
    step_programs, heads = step_launch(inputs, n_chunks)
    tape.launch(
        step_gradients, (step_programs,),
        dt, A, bias, decays.steps, dcum, through, dsteps,
        None if skip.D is None or skip.columns > 1 else dskip, None,
        ddt, dscale, dskips, None, sums, *step_strides(dt, ddt, dscale, dskips, None),
        length, n_heads, n_chunks, row[0], low, high,
        config.chunk, heads, softplus, limited(inputs), sizes.wide, num_warps=4,
    )  # fmt: skip
    block_n = min(sizes.block_n, 64)
    tape.launch(
        group_gradients, (2 * programs * -(-d_state // block_n),),
        B, C, pairs, parts_B, parts_C, dB, dC, *strides[6:12],
        length, n_groups, n_chunks, blocks, state_blocks, row[1],
        d_state, block_n, config.chunk, add, unit, sizes.dot, sizes.precision, num_warps=4,
    )  # fmt: skip
