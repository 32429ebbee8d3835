"""Launches of the Triton kernels of ``ssd``: segments of long sequences, slices that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from mambakit.kernels.ssd.gpu_backward import chunk_gradients, group_gradients
from mambakit.kernels.ssd.gpu_config import Backward, Forward, Inputs, Sizes
from mambakit.kernels.ssd.gpu_forward import chunk_outputs, join_segments, walk_outputs, walk_states
from mambakit.kernels.tape import Tape
from mambakit.kernels.tuning import multiprocessors

# states of chunks, their gradients' too, that a backward pass holds at a time
_STATE_BYTES = 340 << 20
# a shorter segment would not repay the pass that finds where it starts
_MIN_SEGMENT_CHUNKS = 8


def _layout(*tensors: Tensor | None) -> tuple[int, list[int]]:
    """The unit that strides are passed in, and the first three strides of every tensor, in it."""
    strides = [
        0 if v is None else s for v in tensors for s in (v.stride()[:3] if v is not None else (0, 0, 0))
    ]
    for stride in strides:
        if stride % 8:
            return 1, strides
    return 8, [stride >> 3 for stride in strides]


def _segments(programs: int, n_chunks: int, device: torch.device) -> tuple[int, int]:
    """``(n_segments, segment_chunks)`` such that the programs fill the GPU."""
    wanted = 2 * multiprocessors(device)
    n = 1 if programs >= wanted else min(2 * wanted // programs, n_chunks // _MIN_SEGMENT_CHUNKS)
    if n <= 1:
        return 1, n_chunks
    chunks = -(-n_chunks // n)
    return -(-n_chunks // chunks), chunks


class _Walk:
    """Launches of ``walk_states`` over one call's chunks, cut into segments or not."""

    def __init__(
        self, tape: Tape, inputs: Inputs, x: Tensor, B: Tensor, z: Tensor | None, sizes: Sizes,
        config: Forward | Backward, *, reverse: bool,
    ) -> None:  # fmt: skip
        batch, length, n_heads, head_dim = x.shape
        n_groups, d_state = B.shape[2:]
        self.inputs, self.x, self.B, self.z, self.sizes, self.config = inputs, x, B, z, sizes, config
        self.tape, self.reverse = tape, reverse
        self.n_chunks = -(-length // config.chunk)
        self.p_blocks = -(-head_dim // config.block_p)
        heads = getattr(config, "heads", 1)
        self.programs = batch * n_heads * self.p_blocks
        self.n_segments, self.segment_chunks = _segments(self.programs // heads, self.n_chunks, x.device)
        self.state = (batch, self.n_segments, n_heads, head_dim, d_state)
        unit, strides = _layout(x, B, z)
        dt, scale = inputs.dt, inputs.scale
        self.strides = (
            *strides[:3], *dt.stride(), *((0, 0, 0) if scale is None else scale.stride()), *strides[3:],
            length, n_heads, n_heads // n_groups, self.n_chunks, self.segment_chunks, self.n_segments,
            inputs.low, inputs.high, head_dim, d_state, config.block_p, sizes.block_n, config.chunk, reverse,
            inputs.dt_softplus, _limited(inputs), sizes.wide, unit, sizes.dot, sizes.precision, config.stages,
        )  # fmt: skip

    def launch(
        self, initial: Tensor | None, states: Tensor | None, ends: Tensor | None, throughs: Tensor | None
    ) -> None:
        i = self.inputs
        self.tape.launch(
            walk_states, (self.programs * self.n_segments,),
            self.x, i.dt, i.scale, i.A, i.dt_bias, self.B, self.z, i.seq_idx, initial, states, ends, throughs,
            *self.strides, num_warps=self.config.warps,
        )  # fmt: skip

    def starts(self, initial: Tensor | None, final: Tensor | None) -> Tensor | None:
        """The state that each segment starts from; ``final`` is written if there are several."""
        if self.n_segments == 1:
            return initial
        batch, n_segments, n_heads, head_dim, d_state = self.state
        ends = self.tape.empty(self.state, dtype=torch.float32, device=self.x.device)
        throughs = self.tape.empty(self.state[:3], dtype=torch.float32, device=self.x.device)
        self.launch(None, None, ends, throughs)
        size = head_dim * d_state
        block = 1024
        self.tape.launch(
            join_segments, (batch * -(-n_heads * size // block),),
            ends, throughs, initial, final, n_segments, n_heads * size, size, self.reverse, block,
            num_warps=4,
        )  # fmt: skip
        return ends

    def run(self, initial: Tensor | None, states: Tensor | None, final: Tensor | None) -> None:
        """Write the state each chunk is met with, and the state after all."""
        starts = self.starts(initial, final)
        if states is not None or self.n_segments == 1:
            self.launch(starts, states, final if self.n_segments == 1 else None, None)


def _limited(inputs: Inputs) -> bool:
    return inputs.low != 0.0 or inputs.high != float("inf")


def run_forward(
    tape: Tape, inputs: Inputs, sizes: Sizes, config: Forward, return_final_state: bool
) -> tuple[Tensor, Tensor | None]:
    x, dt, scale, A, B, C, D, z, bias, initial, seq_idx, softplus, low, high = inputs
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    y = tape.empty(x.shape, dtype=x.dtype, device=x.device)
    final = None
    if return_final_state:
        final = tape.empty((batch, n_heads, head_dim, d_state), dtype=torch.float32, device=x.device)
    n_chunks = -(-length // config.chunk)
    group_heads = n_heads // n_groups
    unit, wide = _layout(x, B, C, z)
    strides = (*wide[:3], *dt.stride(), *((0, 0, 0) if scale is None else scale.stride()), *wide[3:])
    d_columns = 1 if D is None or D.dim() == 1 else head_dim
    if n_chunks > 1 and config.walk:
        walk = _Walk(tape, inputs, x, B, None, sizes, config, reverse=False)
        several = walk.n_segments > 1
        tape.launch(
            walk_outputs, (walk.programs * walk.n_segments // config.heads,),
            x, dt, scale, A, bias, B, C, D, z, seq_idx, walk.starts(initial, final), y,
            None if several else final,
            *strides, length, n_heads, group_heads, n_chunks, walk.segment_chunks, walk.n_segments, low, high,
            head_dim, d_state, config.block_p, sizes.block_n, config.chunk, config.heads, d_columns, softplus,
            _limited(inputs), sizes.wide, config.guard, unit, sizes.dot, sizes.precision, config.stages,
            num_warps=config.warps,
        )  # fmt: skip
        return y, final
    states = initial
    if n_chunks > 1:
        states = tape.empty((batch, n_chunks, n_heads, d_state, head_dim), dtype=sizes.state, device=x.device)
        _Walk(tape, inputs, x, B, None, sizes, config, reverse=False).run(initial, states, final)
    block_p = min(sizes.block_p, 128 if sizes.dot is tl.bfloat16 and sizes.block_n <= 128 else 64)
    if sizes.dot is not tl.bfloat16 and sizes.block_n > 128:
        block_p = min(block_p, 32)
    p_blocks = -(-head_dim // block_p)
    parts = batch * n_chunks * n_groups * p_blocks
    block_heads = _block_heads(group_heads, parts, x.device)
    tape.launch(
        chunk_outputs, (parts * -(-group_heads // block_heads),),
        x, dt, scale, A, bias, B, C, D, z, seq_idx, states, y, final if n_chunks == 1 else None,
        *strides, length, n_heads, group_heads, n_chunks, block_heads, low, high,
        head_dim, d_state, block_p, sizes.block_n, config.chunk, n_chunks == 1, d_columns, softplus,
        _limited(inputs), sizes.wide, config.guard, unit, sizes.dot, sizes.precision, config.chunk_stages,
        num_warps=config.chunk_warps,
    )  # fmt: skip
    return y, final


def _block_heads(group_heads: int, parts: int, device: torch.device) -> int:
    """Heads a program takes on, so that there are about four programs for every multiprocessor."""
    blocks = min(group_heads, max(1, -(-4 * multiprocessors(device) // parts)))
    return -(-group_heads // blocks)


def _slices(batch: int, n_heads: int, n_groups: int, head_bytes: int) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, heads and groups to work on at a time, so that the states of chunks fit ``_STATE_BYTES``."""
    group_heads = n_heads // n_groups
    units = max(1, _STATE_BYTES // max(head_bytes, 1))  # (row, head) pairs
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
    """For ``finish_backward``: sums over rows and chunks are left to do."""
    x, dt, scale, A, B, C, D, z, _, initial, _, _, _, _ = inputs
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
        slices = list(_slices(batch, n_heads, n_groups, 2 * n_chunks * head_dim * d_state * itemsize))
    whole = len(slices) == 1
    # slices of one group add up in float32
    exact = slices[0][1].stop < group_heads
    dB, dC = (tape.empty(v.shape, dtype=torch.float32 if exact else v.dtype, device=device) for v in (B, C))
    for row, head, group in slices:
        gradients = (
            dx[row, :, head], ddt[row, :, head], None if dscale is None else dscale[row, :, head],
            dB[row, :, group], dC[row, :, group], None if dz is None else dz[row, :, head],
            None if sums is None else sums[row, :, :, head], None if dD is None else dD[row, :, head],
            None if dinitial is None else dinitial[row, head],
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
    return dx, ddt, dscale, sums, dB, dC, dD, dz, dinitial


def finish_backward(inputs: tuple[Any, ...], parts: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of ``Inputs.x`` to ``Inputs.initial_state`` from what ``run_backward`` wrote."""
    _, _, _, A, B, C, D, _, bias, initial, *_ = inputs
    dx, ddt, dscale, sums, dB, dC, dD, dz, dinitial = parts
    dA = dbias = None
    if sums is not None:
        sum_A, sum_bias, sum_D = sums.sum((0, 1)).unbind()
        dA = None if A is None else _cast(sum_A, A.dtype)
        dbias = None if bias is None else _cast(sum_bias, bias.dtype)
        if D is not None:
            dD = _cast(sum_D if dD is None else dD.sum((0, 1)), D.dtype)
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
    )


def _cast(v: Tensor, dtype: torch.dtype) -> Tensor:
    return v if v.dtype is dtype else v.to(dtype)


def _part(inputs: Inputs, row: slice, head: slice, group: slice) -> Inputs:
    """Some rows and heads, as views (a state's copied, since it must be contiguous)."""
    x, dt, scale, A, B, C, D, z, bias, initial, seq_idx, softplus, low, high = inputs
    return Inputs(
        x[row, :, head],
        dt[row, :, head],
        None if scale is None else scale[row, :, head],
        None if A is None else A[head],
        B[row, :, group],
        C[row, :, group],
        None if D is None else D[head],
        None if z is None else z[row, :, head],
        None if bias is None else bias[head],
        None if initial is None else initial[row, head].contiguous(),
        None if seq_idx is None else seq_idx[row],
        softplus,
        low,
        high,
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
    x, dt, scale, A, B, C, D, z, bias, initial, seq_idx, softplus, low, high = inputs
    dx, ddt, dscale, dB, dC, dz, sums, dD, dinitial = gradients
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    group_heads = n_heads // n_groups
    n_chunks = -(-length // config.chunk)
    states, dstates = initial, dfinal
    if n_chunks > 1:
        shape = (2, batch, n_chunks, n_heads, d_state, head_dim)
        states, dstates = tape.empty(shape, dtype=sizes.state, device=x.device).unbind()
        _Walk(tape, inputs, x, B, None, sizes, config, reverse=False).run(initial, states, None)
    if n_chunks > 1 or dinitial is not None:
        end = dinitial
        if end is not None and not end.is_contiguous():
            end = tape.empty(end.shape, dtype=end.dtype, device=end.device)
        walk = _Walk(tape, inputs, dy, C, z, sizes, config, reverse=True)
        walk.run(dfinal, dstates if n_chunks > 1 else None, end)
        if end is not dinitial:
            tape.stop()
            dinitial.copy_(end)
    parts = batch * n_chunks * n_groups
    block_heads = _block_heads(group_heads, parts, x.device)
    blocks = -(-group_heads // block_heads)
    # the terms with a state and the sum over blocks are left to group_gradients, if there are any
    alone = blocks == 1 and states is None and dstates is None and not add
    parts_B, parts_C = dB, dC
    if not alone:
        shape = (2, blocks, batch, length, n_groups, d_state)
        parts_B, parts_C = tape.empty(shape, dtype=torch.float32, device=x.device).unbind()
    unit, strides = _layout(dy, x, B, C, z)
    step_strides = (*dt.stride(), *((0, 0, 0) if scale is None else scale.stride()))
    kind = (softplus, low != 0.0 or high != float("inf"), sizes.wide)
    tape.launch(
        chunk_gradients, (parts * blocks,),
        dy, x, dt, scale, A, bias, B, C, D, z, seq_idx, states, dstates,
        dx, ddt, dscale, parts_B, parts_C, dz, sums, dD,
        *strides[:6], *step_strides, *strides[6:],
        length, n_heads, group_heads, n_chunks, block_heads, row[0],
        row[1] if alone else n_groups, batch, low, high,
        head_dim, d_state, sizes.block_p, sizes.block_n, config.chunk, n_chunks == 1,
        1 if dD is None else head_dim,
        *kind, unit, sizes.dot, sizes.precision, config.chunk_stages,
        num_warps=config.chunk_warps,
    )  # fmt: skip
    if alone:
        return
    block_n = min(sizes.block_n, config.group_block_n)
    tape.launch(
        group_gradients, (parts * 2 * -(-d_state // block_n),),
        dy, x, dt, scale, A, bias, z, seq_idx, states, dstates, parts_B, parts_C, dB, dC,
        *strides[:6], *step_strides, *strides[12:],
        length, n_heads, group_heads, n_chunks, blocks, row[1], low, high,
        head_dim, d_state, sizes.block_p, block_n, config.chunk, n_chunks == 1,
        *kind, add, unit, sizes.dot, sizes.precision, config.group_stages,
        num_warps=config.group_warps,
    )  # fmt: skip
