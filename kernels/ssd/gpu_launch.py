"""Launches of the Triton kernels of ``ssd``: segments of long sequences, slices that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambakit.kernels.launch import register_limit
from mambakit.kernels.ssd.gpu_backward import chunk_gradients, group_gradients, state_gradients
from mambakit.kernels.ssd.gpu_config import Backward, Forward, Inputs, Sizes
from mambakit.kernels.ssd.gpu_decays import chunk_decays, step_gradients
from mambakit.kernels.ssd.gpu_forward import chunk_outputs, join_segments, walk_outputs, walk_states
from mambakit.kernels.tape import Tape
from mambakit.kernels.tuning import multiprocessors

# States of chunks, their gradients' too, that a backward pass holds at a time; twice as much where a single
# row has more, since a slice of its heads repeats much of the others' work.
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


class _Decays(NamedTuple):
    """``cum`` and ``steps`` of ``chunk_decays``."""

    cum: Tensor
    steps: Tensor


def _step_strides(dt: Tensor, scale: Tensor | None) -> tuple[int, ...]:
    return (*dt.stride(), *((0, 0, 0) if scale is None else scale.stride()))


def _step_launch(inputs: Inputs, n_chunks: int) -> tuple[int, int]:
    """Programs of the kernels in ``gpu_decays``, and the heads of each."""
    batch, _, n_heads, _ = inputs.x.shape
    heads = min(16, max(1, triton.next_power_of_2(n_heads)))
    return batch * n_chunks * -(-n_heads // heads), heads


def _take_decays(tape: Tape, inputs: Inputs, sizes: Sizes, chunk: int) -> _Decays:
    batch, length, n_heads, _ = inputs.x.shape
    n_chunks = -(-length // chunk)
    shape = (batch, n_heads, n_chunks, chunk)
    device = inputs.x.device
    steps = tape.empty(shape, dtype=torch.float32, device=device)
    cum = tape.empty(shape, dtype=torch.float64 if sizes.wide else torch.float32, device=device)
    programs, heads = _step_launch(inputs, n_chunks)
    tape.launch(
        chunk_decays, (programs,),
        inputs.dt, inputs.scale, inputs.A, inputs.dt_bias, cum, steps,
        *_step_strides(inputs.dt, inputs.scale), length, n_heads, n_chunks, inputs.low, inputs.high,
        chunk, heads, inputs.dt_softplus, _limited(inputs), sizes.wide, num_warps=4,
    )  # fmt: skip
    return _Decays(cum, steps)


class _Walk:
    """Launches of ``walk_states`` over one call's chunks, cut into segments or not."""

    def __init__(
        self, tape: Tape, inputs: Inputs, x: Tensor, B: Tensor, z: Tensor | None, decays: _Decays,
        sizes: Sizes, config: Forward | Backward, *, reverse: bool,
    ) -> None:  # fmt: skip
        batch, length, n_heads, head_dim = x.shape
        n_groups, d_state = B.shape[2:]
        self.tensors = (x, *decays, B, z, inputs.seq_idx)
        self.tape, self.reverse = tape, reverse
        self.options = {"num_warps": config.warps, **register_limit(x, config.registers)}
        self.n_chunks = -(-length // config.chunk)
        self.programs = batch * n_heads * -(-head_dim // config.block_p)
        self.n_segments, self.segment_chunks = _segments(self.programs, self.n_chunks, x.device)
        self.state = (batch, self.n_segments, n_heads, head_dim, d_state)
        unit, strides = _layout(x, B, z)
        self.rest = (
            *strides, length, n_heads, n_heads // n_groups, self.n_chunks, self.segment_chunks,
            self.n_segments, head_dim, d_state, config.block_p, sizes.block_n, config.chunk, reverse,
            unit, sizes.dot, sizes.precision, config.stages,
        )  # fmt: skip

    def launch(
        self, initial: Tensor | None, states: Tensor | None, ends: Tensor | None, throughs: Tensor | None
    ) -> None:
        self.tape.launch(
            walk_states, (self.programs * self.n_segments,),
            *self.tensors, initial, states, ends, throughs, *self.rest, **self.options,
        )  # fmt: skip

    def starts(self, initial: Tensor | None, final: Tensor | None) -> Tensor | None:
        """The state that each segment starts from; ``final`` is written if there are several."""
        if self.n_segments == 1:
            return initial
        batch, n_segments, n_heads, head_dim, d_state = self.state
        device = self.tensors[0].device
        ends = self.tape.empty(self.state, dtype=torch.float32, device=device)
        throughs = self.tape.empty(self.state[:3], dtype=torch.float32, device=device)
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
    x, B, C, D, z = inputs.x, inputs.B, inputs.C, inputs.D, inputs.z
    initial, seq_idx = inputs.initial_state, inputs.seq_idx
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    y = tape.empty(x.shape, dtype=x.dtype, device=x.device)
    final = None
    if return_final_state:
        final = tape.empty((batch, n_heads, head_dim, d_state), dtype=torch.float32, device=x.device)
    n_chunks = -(-length // config.chunk)
    group_heads = n_heads // n_groups
    decays = _take_decays(tape, inputs, sizes, config.chunk)
    unit, strides = _layout(x, B, C, z)
    d_columns = 1 if D is None or D.dim() == 1 else head_dim
    if n_chunks > 1 and config.walk:
        walk = _Walk(tape, inputs, x, B, None, decays, sizes, config, reverse=False)
        several = walk.n_segments > 1
        programs = walk.programs * walk.n_segments
        starts = walk.starts(initial, final)
        broken = tape.empty((programs,), dtype=torch.int32, device=x.device)
        for guard in (False, True):
            tape.launch(
                walk_outputs, (programs,),
                x, *decays, B, C, D, z, seq_idx, starts, y, None if several else final, broken,
                *strides, length, n_heads, group_heads, n_chunks, walk.segment_chunks, walk.n_segments,
                head_dim, d_state, config.block_p, sizes.block_n, config.chunk, d_columns,
                sizes.wide, guard, unit, sizes.dot, sizes.precision, 1 if guard else config.stages,
                num_warps=config.warps, **register_limit(x, config.registers),
            )  # fmt: skip
        return y, final
    states = initial
    if n_chunks > 1:
        states = tape.empty((batch, n_chunks, n_heads, d_state, head_dim), dtype=sizes.state, device=x.device)
        _Walk(tape, inputs, x, B, None, decays, sizes, config, reverse=False).run(initial, states, final)
    block_p = min(sizes.block_p, 128 if sizes.dot is tl.bfloat16 and sizes.block_n <= 128 else 64)
    if sizes.dot is not tl.bfloat16 and sizes.block_n > 128:
        block_p = min(block_p, 32)
    p_blocks = -(-head_dim // block_p)
    parts = batch * n_chunks * n_groups * p_blocks
    blocks, block_heads = _block_heads(group_heads, parts, x.device)
    tape.launch(
        chunk_outputs, (parts * blocks,),
        x, *decays, B, C, D, z, seq_idx, states, y, final if n_chunks == 1 else None,
        *strides, length, n_heads, group_heads, n_chunks, block_heads,
        head_dim, d_state, block_p, sizes.block_n, config.chunk, n_chunks == 1, d_columns,
        sizes.wide, unit, sizes.dot, sizes.precision, config.chunk_stages, num_warps=config.chunk_warps,
    )  # fmt: skip
    return y, final


def _block_heads(group_heads: int, parts: int, device: torch.device, wanted: int = 4) -> tuple[int, int]:
    """``(blocks, heads)`` that share out a group's heads: ``wanted`` programs a multiprocessor or so."""
    blocks = min(group_heads, max(1, -(-wanted * multiprocessors(device) // parts)))
    heads = -(-group_heads // blocks)
    return -(-group_heads // heads), heads


def _slices(batch: int, n_heads: int, n_groups: int, head_bytes: int) -> Iterator[tuple[slice, slice, slice]]:
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
    x, dt, _, A, B, C, D, z, bias, initial, seq_idx, softplus, low, high = inputs
    dx, ddt, dscale, dB, dC, dz, sums, dD, dinitial = gradients
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    group_heads = n_heads // n_groups
    n_chunks = -(-length // config.chunk)
    decays = _take_decays(tape, inputs, sizes, config.chunk)
    states, dstates = initial, dfinal
    if n_chunks > 1:
        shape = (2, batch, n_chunks, n_heads, d_state, head_dim)
        states, dstates = tape.empty(shape, dtype=sizes.state, device=x.device).unbind()
        _Walk(tape, inputs, x, B, None, decays, sizes, config, reverse=False).run(initial, states, None)
    if n_chunks > 1 or dinitial is not None:
        end = dinitial
        if end is not None and not end.is_contiguous():
            end = tape.empty(end.shape, dtype=end.dtype, device=end.device)
        walk = _Walk(tape, inputs, dy, C, z, decays, sizes, config, reverse=True)
        walk.run(dfinal, dstates if n_chunks > 1 else None, end)
        if end is not dinitial:
            tape.stop()
            dinitial.copy_(end)
    with_state = states is not None or dstates is not None
    programs = batch * n_chunks * n_groups
    blocks, block_heads = _block_heads(group_heads, programs, x.device, config.chunk_programs)
    state_blocks, state_heads = 0, group_heads
    if with_state:
        state_blocks, state_heads = _block_heads(group_heads, programs, x.device, config.state_programs)
    float32: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    pairs = tape.empty((blocks, batch, n_chunks, n_groups, config.chunk, config.chunk), **float32)
    parts_B = parts_C = pairs  # not read
    if with_state:
        parts_B, parts_C = tape.empty((2, state_blocks, batch, length, n_groups, d_state), **float32).unbind()
    unit, strides = _layout(dy, x, B, C, z)
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
        dy, x, *decays, B, C, D, z, seq_idx, dx, dcum, dsteps, dskip, pairs, dz, dD,
        *strides, length, n_heads, group_heads, n_chunks, block_heads, row[0],
        *shared, 1 if dD is None else head_dim, with_state, *dot, config.chunk_stages,
        num_warps=config.chunk_warps, **register_limit(x, config.chunk_registers),
    )  # fmt: skip
    step_programs, heads = _step_launch(inputs, n_chunks)
    tape.launch(
        step_gradients, (step_programs,),
        dt, A, bias, decays.steps, dcum, through, dsteps, None if D is None or dD is not None else dskip,
        ddt, dscale, sums, *dt.stride(), *_step_strides(ddt, dscale), length, n_heads, n_chunks, row[0],
        low, high, config.chunk, heads, softplus, _limited(inputs), sizes.wide, num_warps=4,
    )  # fmt: skip
    block_n = min(sizes.block_n, 64)
    tape.launch(
        group_gradients, (2 * programs * -(-d_state // block_n),),
        B, C, pairs, parts_B, parts_C, dB, dC, *strides[6:12],
        length, n_groups, n_chunks, blocks, state_blocks, row[1],
        d_state, block_n, config.chunk, add, unit, sizes.dot, sizes.precision, num_warps=4,
    )  # fmt: skip
