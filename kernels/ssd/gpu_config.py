"""With what sizes the Triton kernels of ``ssd`` run: chosen from shapes and types, never by trial."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Inputs(NamedTuple):
    """The arguments of ``ssd``; of ``ssd_core`` with ``A`` None.

    Then ``dt`` holds the log-decay, and ``D``, if it has three dimensions, the skip of every token and head.
    """

    x: Tensor
    dt: Tensor
    scale: Tensor | None
    A: Tensor | None
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    initial_state: Tensor | None = None
    B_bias: Tensor | None = None
    C_bias: Tensor | None = None
    angles: Tensor | None = None
    own_scale: Tensor | None = None
    seq_idx: Tensor | None = None
    dt_softplus: bool = False
    low: float = 0.0
    high: float = float("inf")


# of them the first are tensors, and all of those but the last, seq_idx, may want gradients
N_TENSORS = Inputs._fields.index("seq_idx") + 1


class Forward(NamedTuple):
    """How the forward pass runs: ``walk`` takes ``walk_outputs``, with a limit of ``registers`` a thread.

    A walk takes the heads' own B and C, where they have any, from memory; the other kernels make them.
    """

    walk: bool
    chunk: int
    block_p: int
    warps: int
    stages: int
    chunk_warps: int = 4
    chunk_stages: int = 2
    registers: int | None = None


class Backward(NamedTuple):
    """How the backward pass runs: walks, then the terms with a state, then those of pairs.

    ``state_programs`` and ``chunk_programs`` are what a multiprocessor is to have of them at least, if there
    are heads enough to share out.
    """

    chunk: int
    block_p: int
    warps: int
    stages: int
    state_warps: int = 4
    state_stages: int = 1
    chunk_warps: int = 4
    chunk_stages: int = 1
    state_programs: int = 2
    chunk_programs: int = 2
    registers: int | None = None
    state_registers: int | None = None
    chunk_registers: int | None = None


class BackwardByHeads(NamedTuple):
    """How the backward pass runs where every head has its own B and C.

    Walks, then all of a head's chunk in one program of ``head_warps``, then the way back to the groups' B and
    C, ``tokens`` at a time. The heads' own lie in memory.
    """

    chunk: int
    block_p: int
    warps: int
    stages: int
    head_warps: int = 8
    tokens: int = 32
    back_warps: int = 4
    back_stages: int = 1
    registers: int | None = None


class Sizes(NamedTuple):
    """What does not change while configurations are tried."""

    block_p: int
    block_n: int
    wide: bool
    dot: Any
    precision: str
    state: torch.dtype


def sizes_of(x: Tensor, B: Tensor, C: Tensor) -> Sizes:
    block_p = max(16, triton.next_power_of_2(x.shape[3]))
    block_n = max(16, triton.next_power_of_2(B.shape[3]))
    if x.dtype == B.dtype == C.dtype == torch.bfloat16:
        return Sizes(block_p, block_n, False, tl.bfloat16, "ieee", torch.bfloat16)
    if not {x.dtype, B.dtype, C.dtype} <= {torch.bfloat16, torch.float16}:
        # three tf32 products make a float32 one; only Nvidia's backend has them
        precision = "ieee" if torch.version.hip else "tf32x3"
        return Sizes(block_p, block_n, True, tl.float32, precision, torch.float32)
    # tf32 has float16's digits, and products of inputs stay inside its range
    return Sizes(block_p, block_n, False, tl.float32, "ieee" if torch.version.hip else "tf32", torch.float32)


def _chunk_of(chunk_size: int | None, best: int) -> int:
    """What the caller asked for, as a size that the kernels have."""
    return best if chunk_size is None else min(max(16, triton.next_power_of_2(chunk_size)), best)


def forward_configs(inputs: Inputs, sizes: Sizes, chunk_size: int | None) -> tuple[Forward, ...]:
    length = inputs.x.shape[1]
    half = sizes.dot is tl.bfloat16
    chunk = _chunk_of(chunk_size, 64)
    tall = min(chunk, max(16, triton.next_power_of_2(length)))
    block_p = min(sizes.block_p, 64 if sizes.block_n <= 128 else 32)
    if not half:
        large = sizes.block_p * sizes.block_n > 8192
        best = Forward(False, min(tall, 16 if large else 32), min(block_p, 32), 4, 1, 8, 1)
    else:
        tiny = tall * sizes.block_p <= 256
        chunk_warps = 1 if tiny else 4 if sizes.block_p <= 64 else 8
        best = Forward(True, tall, block_p, 4, 3 if sizes.block_n <= 64 else 2, chunk_warps, 2)
    small = min(tall, 32)
    return (
        best,
        best._replace(stages=1, chunk_stages=1),
        Forward(False, small, min(block_p, 32), 4, 1, 4, 1),
        Forward(False, 16, 16, 4, 1, 4, 1),
    )


def are_turned(inputs: Inputs) -> bool:
    """Whether every head makes its own B and C of its group's."""
    return any(v is not None for v in (inputs.B_bias, inputs.C_bias, inputs.angles))


def is_by_heads(inputs: Inputs) -> bool:
    """Whether products of B and C, or what scales them, are a head's own."""
    return are_turned(inputs) or inputs.own_scale is not None


def _backward_by_heads_configs(
    inputs: Inputs, sizes: Sizes, chunk_size: int | None
) -> tuple[BackwardByHeads, ...]:
    half = sizes.dot is tl.bfloat16
    tall = max(16, triton.next_power_of_2(inputs.x.shape[1]))
    chunk = min(_chunk_of(chunk_size, 64), tall)
    block_p = min(sizes.block_p, 64 if sizes.block_n <= 128 else 32)
    tokens = min(32, tall)
    if half:
        best = BackwardByHeads(chunk, min(block_p, 32), 4, 3, 8, tokens, back_stages=3)
    else:
        large = sizes.block_p * sizes.block_n > 8192
        best = BackwardByHeads(min(chunk, 16 if large else 32), min(block_p, 32), 4, 1, 8, tokens)
    small = min(best.chunk, 32)
    return (
        best,
        best._replace(stages=1, back_stages=1),
        best._replace(chunk=small, stages=1, back_stages=1),
        BackwardByHeads(16, min(block_p, 16), 4, 1, 8, 16),
    )


def backward_configs(
    inputs: Inputs, sizes: Sizes, chunk_size: int | None
) -> tuple[Backward | BackwardByHeads, ...]:
    if is_by_heads(inputs):
        return _backward_by_heads_configs(inputs, sizes, chunk_size)
    length = inputs.x.shape[1]
    half = sizes.dot is tl.bfloat16
    chunk = _chunk_of(chunk_size, 64)
    tall = min(chunk, max(16, triton.next_power_of_2(length)))
    block_p = min(sizes.block_p, 64 if sizes.block_n <= 128 else 32)
    small = tall * max(sizes.block_p, sizes.block_n) <= 1024
    if half:
        columns = min(block_p, 32)
        if sizes.block_n > 64:
            best = Backward(tall, columns, 4, 3, 8, 3, 2 if small else 4, 1)
        else:
            best = Backward(tall, columns, 4, 4, 2 if small else 4, 2, 2 if small else 4, 1)
    else:
        large = sizes.block_p * sizes.block_n > 8192
        best = Backward(min(tall, 16 if large else 32), min(block_p, 32), 4, 1, 8, 1, 8, 1)
    return (
        best,
        best._replace(stages=1, state_stages=1),
        best._replace(chunk=min(best.chunk, 32), stages=1, state_stages=1),
        Backward(16, min(block_p, 16), 4, 1),
    )
