"""Launches of ``ssd``'s backward Triton kernels where every head has its own B and C."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.ssd.gpu_config import BackwardByHeads, Inputs, Sizes
from mambakit.kernels.ssd.gpu_decays import step_gradients
from mambakit.kernels.ssd.gpu_head_gradients import head_gradients
from mambakit.kernels.ssd.gpu_launch import (
    Decays,
    Walk,
    layout,
    make_projections,
    n_angles_of,
    step_launch,
    step_strides,
    take_decays,
)
from mambakit.kernels.ssd.gpu_launch_backward import slices_of
from mambakit.kernels.ssd.gpu_projections import projection_gradients
from mambakit.kernels.tape import Tape


def run_backward_by_heads(
    tape: Tape, inputs: Inputs, dy: Tensor, dfinal: Tensor | None, sizes: Sizes, config: BackwardByHeads
) -> tuple[Tensor | None, ...]:
    """For ``finish_backward``. Some rows at a time, so that what is the heads' own stays small."""
    x, log_decay, scale, _, B, C, D, z, _, initial, B_bias, C_bias, angles, own_scale, *_ = inputs
    batch, length, n_heads, head_dim = x.shape
    n_groups, d_state = B.shape[2:]
    device = x.device
    n_chunks = -(-length // config.chunk)
    float32: dict[str, Any] = {"dtype": torch.float32, "device": device}

    def like(v: Tensor | None) -> Tensor | None:
        return None if v is None else tape.empty(v.shape, dtype=v.dtype, device=device)

    dx, dz, dB, dC, dangles = like(x), like(z), like(B), like(C), like(angles)
    dlog_decay, dscale, dskips, downs = like(log_decay), like(scale), like(D), like(own_scale)
    dinitial = None if initial is None else tape.empty(initial.shape, **float32)
    n_parts = -(-length // config.tokens)
    dbiases = None
    if B_bias is not None or C_bias is not None:
        dbiases = tape.empty((batch, n_parts, 2, n_heads, d_state), **float32)

    decays, skip, own = take_decays(tape, inputs, sizes, config.chunk)
    dcum, dsteps, dskip, down = tape.empty((4, *decays.steps.shape), **float32).unbind()
    has_dstates = n_chunks > 1 or dfinal is not None
    has_states = n_chunks > 1 or initial is not None
    through = tape.empty((batch, n_heads, n_chunks), **float32) if has_states or has_dstates else None

    rows = [slice(0, batch)]
    if n_chunks > 1:
        itemsize = 2 if sizes.state == torch.bfloat16 else 4
        of_head = 2 * n_chunks * head_dim * d_state * itemsize
        rows = list({row.start: row for row, _, _ in slices_of(batch, n_heads, n_groups, of_head)}.values())
    most = rows[0].stop
    of_heads = (most, length, n_heads, d_state)
    # taken once, for the slices to use one after the other
    dhead_B, dhead_C = (tape.empty(of_heads, dtype=v.dtype, device=device) for v in (B, C))
    copies = [tape.empty(of_heads, dtype=v.dtype, device=device) for v in (B, C)]
    states = dstates = None
    if n_chunks > 1:
        shape = (2, most, n_chunks, n_heads, d_state, head_dim)
        states, dstates = tape.empty(shape, dtype=sizes.state, device=device).unbind()

    for row in rows:

        def part(v: Any, row: slice = row) -> Any:
            if v is None or len(rows) == 1:
                return v
            return tape.view(v[row], v) if any(v is given for given in tape.tensors) else v[row]

        def first(v: Any, row: slice = row) -> Any:
            return None if v is None else v[: row.stop - row.start]

        given = inputs._replace(
            x=part(x), B=part(B), C=part(C), z=part(z), initial_state=part(initial), angles=part(angles),
            seq_idx=part(inputs.seq_idx),
        )  # fmt: skip
        own_B, own_C = map(first, copies)
        by_heads = make_projections(tape, given, sizes, (own_B, own_C), config.tokens)
        part_dy, part_dfinal = part(dy), part(dfinal)
        _backward_rows(
            tape, by_heads, part_dy, part_dfinal, sizes, config, Decays(*map(part, decays)),
            (part(skip.D), part(own)),
            (first(states), first(dstates)),
            (
                part(dx), part(dcum), part(through), part(dsteps), part(down), part(dskip),
                first(dhead_B), first(dhead_C), part(dz), part(dangles),
            ),
            part(dinitial), n_angles_of(inputs),
        )  # fmt: skip
        tape.launch(
            projection_gradients, ((row.stop - row.start) * n_parts * n_groups,),
            given.angles, first(dhead_B), first(dhead_C), part(dB), part(dC), part(dbiases),
            length, n_heads, n_heads // n_groups, n_parts,
            d_state, sizes.block_n, config.tokens, n_angles_of(inputs), config.back_stages,
            num_warps=config.back_warps,
        )  # fmt: skip
    step_programs, heads = step_launch(inputs, n_chunks)
    tape.launch(
        step_gradients, (step_programs,),
        log_decay, None, None, decays.steps, dcum, through, dsteps, dskip, down,
        dlog_decay, dscale, dskips, downs, None,
        *step_strides(log_decay, dlog_decay, dscale, dskips, downs),
        length, n_heads, n_chunks, n_heads, inputs.low, inputs.high,
        config.chunk, heads, False, False, sizes.wide, num_warps=4,
    )  # fmt: skip
    return dx, dlog_decay, dscale, None, dB, dC, dskips, dz, dinitial, dangles, dbiases, downs


def _backward_rows(
    tape: Tape,
    inputs: Inputs,
    dy: Tensor,
    dfinal: Tensor | None,
    sizes: Sizes,
    config: BackwardByHeads,
    decays: Decays,
    of_tokens: tuple[Tensor | None, Tensor | None],
    memory: tuple[Tensor | None, Tensor | None],
    gradients: tuple[Tensor | None, ...],
    dinitial: Tensor | None,
    n_angles: int,
) -> None:
    """Write ``gradients``, in the kernel's order, of some rows; ``memory`` is for the states of chunks."""
    x, B, C, z, initial = inputs.x, inputs.B, inputs.C, inputs.z, inputs.initial_state
    skip, own = of_tokens
    batch, length, n_heads, head_dim = x.shape
    d_state = B.shape[3]
    n_chunks = -(-length // config.chunk)
    states, dstates = memory
    if states is not None:
        Walk(tape, inputs, x, B, None, decays, sizes, config, reverse=False).run(initial, states, None)
    if dstates is not None or dinitial is not None:
        walk = Walk(tape, inputs, dy, C, z, decays, sizes, config, reverse=True)
        walk.run(dfinal, dstates, dinitial)
    single = n_chunks == 1
    unit, strides = layout(dy, x, B, C, z)
    tape.launch(
        head_gradients, (batch * n_chunks * n_heads,),
        dy, x, *decays, own, B, C, skip, z, inputs.seq_idx,
        initial if single else states, dfinal if single else dstates, *gradients,
        *strides, length, n_heads, n_chunks,
        head_dim, d_state, sizes.block_p, sizes.block_n, config.chunk, single, n_angles,
        sizes.wide, unit, sizes.dot, sizes.precision,
        num_warps=config.head_warps,
    )  # fmt: skip
