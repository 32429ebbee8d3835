"""A whole Mamba-3 block on one token of a stream; as ``kernels.token_step``, which has the other blocks."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from mambakit.kernels import token_step
from mambakit.kernels.arrays import usual_addresses
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.mamba3_scan.state import Mamba3State
from mambakit.kernels.token_step import dt_bounds, out_of_the_usual, over_rows


def mamba3_token(
    x: Tensor,
    state: Mamba3State,
    in_weight: Tensor,
    in_bias: Tensor | None,
    dt_bias: Tensor,
    A_bias: Tensor | None,
    B_weight: Tensor,
    C_weight: Tensor,
    B_bias: Tensor,
    C_bias: Tensor,
    mimo_x: Tensor | None,
    mimo_z: Tensor | None,
    mimo_o: Tensor | None,
    D: Tensor,
    norm_weight: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    elapsed: Tensor | None = None,
    n_groups: int,
    heavy_tail: bool,
    A_floor: float,
    norm_eps: float,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, Mamba3State] | None:
    """One token of one row through a Mamba-3 block.

    Args:
        x: ``(1, d_model)``.
        state: Of one row.
        in_weight, in_bias: Rows for the gate z, x, B, C, dt, A, trap and the angles.
        dt_bias, A_bias: ``(n_heads,)``, added to dt and to what A comes of.
        B_weight, C_weight: Of the norms of B and C, ``(d_state,)``.
        B_bias, C_bias: ``(n_heads, rank, d_state)``.
        mimo_x, mimo_z, mimo_o: What makes of x and z those of each rank, and of their outputs one,
            ``(n_heads, rank, head_dim)``; None for one rank.
        D: ``(n_heads,)``.
        norm_weight: Of each head's norm before the gate, ``(d_inner,)``; None for no norm.
        out_weight, out_bias: ``(d_model, d_inner)`` and ``(d_model,)``.
        elapsed: ``(1,)``, multiplies dt after softplus and ``dt_limit``.
        n_groups: Groups of B and C.
        heavy_tail: A of a comes by ``-(1 + a)`` or ``-1 / (1 - a)`` for a < 0, not by softplus.
        A_floor: Least ``-A``.
        norm_eps: Of all norms.
        dt_limit: Clamp on dt after softplus.

    Returns:
        ``y`` ``(1, d_model)`` and the new state; None as ``mamba2_token``.
    """
    if out_of_the_usual("ssd", x, in_weight):
        return None
    d_model = x.shape[1]
    _, n_heads, head_dim, d_state = state.ssm.shape
    rank, n_angles = state.key.shape[1], state.angles.shape[2]
    d_inner = n_heads * head_dim
    width = 2 * d_inner + 2 * rank * n_groups * d_state + 3 * n_heads + n_angles
    between = _between(
        state, dt_bias, A_bias, B_weight, C_weight, B_bias, C_bias, mimo_x, mimo_z, mimo_o, D, norm_weight
    )
    found = usual_addresses(
        torch.float32,
        (x, (1, d_model)),
        *between[:4],
        (in_weight, (width, d_model)),
        (in_bias, (width,)),
        *between[4:],
        (out_weight, (d_model, d_inner)),
        (out_bias, (d_model,)),
        (elapsed, (1,)),
    )
    if found is None:
        return None
    y, after = torch.empty_like(x), Mamba3State(*(torch.empty_like(tensor) for tensor in state))
    compiled = _compiled()
    sizes = (n_heads, head_dim, d_state, rank, n_groups, n_angles)
    work = torch.empty(width + d_inner + compiled.work_room(*sizes))
    compiled.mamba3(
        *found, y.data_ptr(), *(tensor.data_ptr() for tensor in after), work.data_ptr(),
        d_model, *sizes, heavy_tail, A_floor, norm_eps, *dt_bounds(dt_limit),
    )  # fmt: skip
    return y, after


def mamba3_mix(
    projected: Tensor,
    state: Mamba3State,
    dt_bias: Tensor,
    A_bias: Tensor | None,
    B_weight: Tensor,
    C_weight: Tensor,
    B_bias: Tensor,
    C_bias: Tensor,
    mimo_x: Tensor | None,
    mimo_z: Tensor | None,
    mimo_o: Tensor | None,
    D: Tensor,
    norm_weight: Tensor | None,
    *,
    elapsed: Tensor | None = None,
    n_groups: int,
    heavy_tail: bool,
    A_floor: float,
    norm_eps: float,
    dt_limit: tuple[float, float],
    inplace: bool = False,
) -> tuple[Tensor, Mamba3State] | None:
    """What a Mamba-3 block does to one token of many rows between its projections, on torch's threads.

    Args:
        projected: ``(batch, width)``, what in_proj gives.
        state: Of ``batch`` rows; overwritten with ``inplace``.
        elapsed: ``(batch,)``.
        dt_bias, A_bias, B_weight, C_weight, B_bias, C_bias, mimo_x, mimo_z, mimo_o, D: See ``mamba3_token``.
        norm_weight, n_groups, heavy_tail, A_floor, norm_eps, dt_limit: See ``mamba3_token``.

    Returns:
        What out_proj takes, ``(batch, d_inner)``, and the new state; None as ``mamba2_token``.
    """
    if torch.compiler.is_compiling() or choose_backend("ssd", None, projected.device) != "portable":
        return None
    batch, n_heads, head_dim, d_state = state.ssm.shape
    rank, n_angles = state.key.shape[1], state.angles.shape[2]
    d_inner = n_heads * head_dim
    if elapsed is not None:
        elapsed = elapsed.contiguous()  # as a rule a column of a batch
    found = usual_addresses(
        torch.float32,
        (projected, (batch, 2 * d_inner + 2 * rank * n_groups * d_state + 3 * n_heads + n_angles)),
        *_between(
            state, dt_bias, A_bias, B_weight, C_weight, B_bias, C_bias, mimo_x, mimo_z, mimo_o, D, norm_weight
        ),
        (elapsed, (batch,)),
    )
    if found is None:
        return None
    after = state if inplace else Mamba3State(*(torch.empty_like(tensor) for tensor in state))
    y = projected.new_empty(batch, d_inner)
    made = (y.data_ptr(), *(tensor.data_ptr() for tensor in after))
    compiled, bounds = _compiled(), dt_bounds(dt_limit)
    sizes = (n_heads, head_dim, d_state, rank, n_groups, n_angles)

    def run(work: int, first: int, last: int) -> None:
        compiled.mamba3_mix(*found, *made, work, first, last, *sizes, heavy_tail, A_floor, norm_eps, *bounds)

    small = state.ssm.numel() < token_step.SMALL
    over_rows(batch, run, room=compiled.work_room(*sizes), small=small)
    return y, after


def _between(
    state: Mamba3State,
    dt_bias: Tensor,
    A_bias: Tensor | None,
    B_weight: Tensor,
    C_weight: Tensor,
    B_bias: Tensor,
    C_bias: Tensor,
    mimo_x: Tensor | None,
    mimo_z: Tensor | None,
    mimo_o: Tensor | None,
    D: Tensor,
    norm_weight: Tensor | None,
) -> list[tuple[Tensor | None, tuple[int, ...]]]:
    """The state's tensors and the parameters between the projections, with the shapes they must have."""
    batch, n_heads, head_dim, d_state = state.ssm.shape
    rank, n_angles = state.key.shape[1], state.angles.shape[2]
    heads, each = (n_heads,), (n_heads, rank, head_dim)
    return [
        (state.ssm, (batch, n_heads, head_dim, d_state)),
        (state.angles, (batch, n_heads, n_angles)),
        (state.key, (batch, rank, n_heads, d_state)),
        (state.value, (batch, n_heads, head_dim)),
        (dt_bias, heads),
        (A_bias, heads),
        (B_weight, (d_state,)),
        (C_weight, (d_state,)),
        (B_bias, (n_heads, rank, d_state)),
        (C_bias, (n_heads, rank, d_state)),
        (mimo_x, each),
        (mimo_z, each),
        (mimo_o, each),
        (D, heads),
        (norm_weight, (n_heads * head_dim,)),
    ]


@functools.cache
def _compiled() -> ModuleType:
    from mambakit.kernels.mamba3_scan import cpu_step

    return cpu_step
