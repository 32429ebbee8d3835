"""Launches of the Triton kernels of ``ssd``: the forward pass, and what the backward pass shares with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambakit.kernels.launch import register_limit
from mambakit.kernels.ssd.gpu_config import Backward, BackwardByHeads, Forward, Inputs, Sizes, are_turned
from mambakit.kernels.ssd.gpu_decays import chunk_decays
from mambakit.kernels.ssd.gpu_forward import chunk_outputs, walk_outputs
from mambakit.kernels.ssd.gpu_projections import head_projections
from mambakit.kernels.ssd.gpu_states import join_segments, walk_states
from mambakit.kernels.tape import Tape
from mambakit.kernels.tuning import multiprocessors

# a shorter segment would not repay the pass that finds where it starts
_MIN_SEGMENT_CHUNKS = 8


def layout(*tensors: Tensor | None) -> tuple[int, list[int]]:
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


class Decays(NamedTuple):
    """``cum`` and ``steps`` of ``chunk_decays``."""

    cum: Tensor
    steps: Tensor


def step_strides(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple(s for v in tensors for s in ((0, 0, 0) if v is None else v.stride()))


def n_angles_of(inputs: Inputs) -> int:
    return 0 if inputs.angles is None else inputs.angles.shape[3]


def step_launch(inputs: Inputs, n_chunks: int) -> tuple[int, int]:
    """Programs of the kernels in ``gpu_decays``, and the heads of each."""
    batch, _, n_heads, _ = inputs.x.shape
    heads = min(16, max(1, triton.next_power_of_2(n_heads)))
    return batch * n_chunks * -(-n_heads // heads), heads


class Skip(NamedTuple):
    """D as the kernels read it, and how many columns: 0 for a skip of every token, laid out as steps."""

    D: Tensor | None
    columns: int


def take_decays(tape: Tape, inputs: Inputs, sizes: Sizes, chunk: int) -> tuple[Decays, Skip, Tensor | None]:
    """What ``chunk_decays`` writes, and the skip; None where a token's own scale is ``steps``."""
    batch, length, n_heads, _ = inputs.x.shape
    n_chunks = -(-length // chunk)
    shape = (batch, n_heads, n_chunks, chunk)
    device = inputs.x.device
    steps = tape.empty(shape, dtype=torch.float32, device=device)
    cum = tape.empty(shape, dtype=torch.float64 if sizes.wide else torch.float32, device=device)
    D = inputs.D
    given = skips = None
    if D is not None and D.dim() == 3:
        given, skips = D, tape.empty(shape, dtype=torch.float32, device=device)
    own = inputs.own_scale
    owns = None if own is None else tape.empty(shape, dtype=torch.float32, device=device)
    programs, heads = step_launch(inputs, n_chunks)
    tape.launch(
        chunk_decays, (programs,),
        inputs.dt, inputs.scale, inputs.A, inputs.dt_bias, given, own, cum, steps, skips, owns,
        *step_strides(inputs.dt, inputs.scale, given, own),
        length, n_heads, n_chunks, inputs.low, inputs.high,
        chunk, heads, inputs.dt_softplus, limited(inputs), sizes.wide, num_warps=4,
    )  # fmt: skip
    if skips is not None:
        return Decays(cum, steps), Skip(skips, 0), owns
    return Decays(cum, steps), Skip(D, 1 if D is None or D.dim() == 1 else D.shape[1]), owns


def make_projections(
    tape: Tape, inputs: Inputs, sizes: Sizes, out: tuple[Tensor, Tensor] | None = None, tokens: int = 32
) -> Inputs:
    """The inputs with every head's own B and C, in memory (``out``, where given), in place of its group's."""
    B, C = inputs.B, inputs.C
    batch, length, n_heads, _ = inputs.x.shape
    n_groups, d_state = B.shape[2:]
    if out is None:
        shape = (batch, length, n_heads, d_state)
        out = tape.empty(shape, dtype=B.dtype, device=B.device), tape.empty(shape, C.dtype, B.device)
    n_chunks = -(-length // tokens)
    unit, strides = layout(B, C)
    tape.launch(
        head_projections, (batch * n_chunks * n_heads,),
        B, C, inputs.B_bias, inputs.C_bias, inputs.angles, *out,
        *strides, length, n_heads, n_heads // n_groups, n_chunks,
        d_state, sizes.block_n, tokens, n_angles_of(inputs), unit, num_warps=4,
    )  # fmt: skip
    return inputs._replace(B=out[0], C=out[1], B_bias=None, C_bias=None, angles=None)


class Walk:
    """Launches of ``walk_states`` over one call's chunks, cut into segments or not."""

    def __init__(
        self, tape: Tape, inputs: Inputs, x: Tensor, B: Tensor, z: Tensor | None, decays: Decays,
        sizes: Sizes, config: Forward | Backward | BackwardByHeads, *, reverse: bool,
    ) -> None:  # fmt: skip
        batch, length, n_heads, head_dim = x.shape
        n_groups, d_state = B.shape[2:]
        turn = (inputs.C_bias if reverse else inputs.B_bias, inputs.angles)
        self.tensors = (x, *decays, B, z, *turn, inputs.seq_idx)
        self.tape, self.reverse = tape, reverse
        self.options = {"num_warps": config.warps, **register_limit(x, config.registers)}
        self.n_chunks = -(-length // config.chunk)
        self.programs = batch * n_heads * -(-head_dim // config.block_p)
        self.n_segments, self.segment_chunks = _segments(self.programs, self.n_chunks, x.device)
        self.state = (batch, self.n_segments, n_heads, head_dim, d_state)
        unit, strides = layout(x, B, z)
        self.rest = (
            *strides, length, n_heads, n_heads // n_groups, self.n_chunks, self.segment_chunks,
            self.n_segments, head_dim, d_state, config.block_p, sizes.block_n, config.chunk,
            n_angles_of(inputs), reverse, unit, sizes.dot, sizes.precision, config.stages,
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


def limited(inputs: Inputs) -> bool:
    return inputs.low != 0.0 or inputs.high != float("inf")


def run_forward(
    tape: Tape, inputs: Inputs, sizes: Sizes, config: Forward, return_final_state: bool
) -> tuple[Tensor, Tensor | None]:
    n_chunks = -(-inputs.x.shape[1] // config.chunk)
    walks = n_chunks > 1 and config.walk
    if walks and are_turned(inputs):
        inputs = make_projections(tape, inputs, sizes)
    x, B, C, z = inputs.x, inputs.B, inputs.C, inputs.z
    initial, seq_idx = inputs.initial_state, inputs.seq_idx
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    y = tape.empty(x.shape, dtype=x.dtype, device=x.device)
    final = None
    if return_final_state:
        final = tape.empty((batch, n_heads, head_dim, d_state), dtype=torch.float32, device=x.device)
    group_heads = n_heads // n_groups
    decays, skip, own = take_decays(tape, inputs, sizes, config.chunk)
    unit, strides = layout(x, B, C, z)
    if walks:
        walk = Walk(tape, inputs, x, B, None, decays, sizes, config, reverse=False)
        several = walk.n_segments > 1
        programs = walk.programs * walk.n_segments
        starts = walk.starts(initial, final)
        broken = tape.empty((programs,), dtype=torch.int32, device=x.device)
        for guard in (False, True):
            tape.launch(
                walk_outputs, (programs,),
                x, *decays, own, B, C, skip.D, z, seq_idx, starts, y, None if several else final, broken,
                *strides, length, n_heads, group_heads, n_chunks, walk.segment_chunks, walk.n_segments,
                head_dim, d_state, config.block_p, sizes.block_n, config.chunk, skip.columns,
                sizes.wide, guard, unit, sizes.dot, sizes.precision, 1 if guard else config.stages,
                num_warps=config.warps, **register_limit(x, config.registers),
            )  # fmt: skip
        return y, final
    states = initial
    if n_chunks > 1:
        states = tape.empty((batch, n_chunks, n_heads, d_state, head_dim), dtype=sizes.state, device=x.device)
        Walk(tape, inputs, x, B, None, decays, sizes, config, reverse=False).run(initial, states, final)
    block_p = min(sizes.block_p, 128 if sizes.dot is tl.bfloat16 and sizes.block_n <= 128 else 64)
    if sizes.dot is not tl.bfloat16 and sizes.block_n > 128:
        block_p = min(block_p, 32)
    p_blocks = -(-head_dim // block_p)
    parts = batch * n_chunks * n_groups * p_blocks
    blocks, block_heads = block_heads_of(group_heads, parts, x.device)
    tape.launch(
        chunk_outputs, (parts * blocks,),
        x, *decays, own, B, C, skip.D, z, inputs.B_bias, inputs.C_bias, inputs.angles, seq_idx, states, y,
        final if n_chunks == 1 else None,
        *strides, length, n_heads, group_heads, n_chunks, block_heads,
        head_dim, d_state, block_p, sizes.block_n, config.chunk, n_chunks == 1,
        skip.columns, n_angles_of(inputs), sizes.wide, unit, sizes.dot, sizes.precision, config.chunk_stages,
        num_warps=config.chunk_warps,
    )  # fmt: skip
    return y, final


def block_heads_of(group_heads: int, parts: int, device: torch.device, wanted: int = 4) -> tuple[int, int]:
    """``(blocks, heads)`` that share out a group's heads: ``wanted`` programs a multiprocessor or so."""
    blocks = min(group_heads, max(1, -(-wanted * multiprocessors(device) // parts)))
    heads = -(-group_heads // blocks)
    return -(-group_heads // heads), heads
