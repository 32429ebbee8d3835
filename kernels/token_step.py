"""A whole Mamba block on one token of a stream: a single compiled call on the CPU.

What ``Block.step`` computes op by op costs several times its arithmetic in calls. These functions take the
parameters of a block and give up, with None, wherever anything is out of the usual: the caller then goes op
by op, which handles it all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from mambakit.kernels.arrays import usual_addresses
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.checks import check_dt_limit
from mambakit.kernels.parallel import parallel_for

# beyond so many weights torch's threads are worth their overhead
_MOST_WEIGHTS = 1 << 20
# below so many numbers of state one thread is sooner done than two have begun
SMALL = 1 << 15
# what two threads write is in cache lines of their own
_APART = 64


def mamba1_token(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_weight: Tensor,
    x_bias: Tensor | None,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    elapsed: Tensor | None = None,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor] | None:
    """One token of one row through a Mamba-1 block.

    Args:
        x: ``(1, d_model)``.
        conv_state: ``(1, d_inner, d_conv - 1)``.
        state: ``(1, d_inner, d_state)``.
        in_weight, in_bias: ``(2 * d_inner, d_model)`` and ``(2 * d_inner,)``: u, then the gate z.
        conv_weight, conv_bias: As in ``causal_conv1d_step``.
        x_weight, x_bias: ``(dt_rank + 2 * d_state, d_inner)`` and ``(dt_rank + 2 * d_state,)``: the low-rank
            dt, then B and C.
        dt_weight, dt_bias: ``(d_inner, dt_rank)`` and ``(d_inner,)``.
        A_log, D, dt_limit: ``A = -exp(A_log)``; as in ``selective_scan_step``.
        out_weight, out_bias: ``(d_model, d_inner)`` and ``(d_model,)``.
        elapsed: ``(1,)``, multiplies dt after softplus and ``dt_limit``.

    Returns:
        ``y`` ``(1, d_model)`` and the new states; None unless all is float32, contiguous, on the CPU, of
        these shapes and small, with no gradient asked for and nothing traced.
    """
    if out_of_the_usual("selective_scan", x, in_weight):
        return None
    d_model = x.shape[1]
    d_inner, d_state = A_log.shape
    dt_rank, d_conv = dt_weight.shape[1], conv_weight.shape[1]
    each = (d_inner,)
    found = usual_addresses(
        torch.float32,
        (x, (1, d_model)),
        (conv_state, (1, d_inner, d_conv - 1)),
        (state, (1, d_inner, d_state)),
        (in_weight, (2 * d_inner, d_model)),
        (in_bias, (2 * d_inner,)),
        (conv_weight, (d_inner, d_conv)),
        (conv_bias, each),
        (x_weight, (dt_rank + 2 * d_state, d_inner)),
        (x_bias, (dt_rank + 2 * d_state,)),
        (dt_weight, (d_inner, dt_rank)),
        (dt_bias, each),
        (A_log, (d_inner, d_state)),
        (D, each),
        (out_weight, (d_model, d_inner)),
        (out_bias, (d_model,)),
        (elapsed, (1,)),
    )
    if found is None:
        return None
    y, next_conv, next_state = torch.empty_like(x), torch.empty_like(conv_state), torch.empty_like(state)
    work = torch.empty(d_inner * (5 + d_state) + dt_rank + 2 * d_state)
    _compiled().mamba1(
        *found, y.data_ptr(), next_conv.data_ptr(), next_state.data_ptr(), work.data_ptr(),
        d_model, d_inner, d_state, dt_rank, d_conv, *dt_bounds(dt_limit),
    )  # fmt: skip
    return y, next_conv, next_state


def mamba2_token(
    x: Tensor,
    conv_state: Tensor,
    state: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    *,
    elapsed: Tensor | None = None,
    n_groups: int,
    norm_before_gate: bool,
    norm_eps: float,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor] | None:
    """One token of one row through a Mamba-2 block.

    Args:
        x: ``(1, d_model)``.
        conv_state: ``(1, d_inner + 2 * n_groups * d_state, d_conv - 1)``.
        state: ``(1, n_heads, head_dim, d_state)``.
        in_weight, in_bias: Rows for the gate z, for what is convolved (x, B and C), and for dt.
        conv_weight, conv_bias: As in ``causal_conv1d_step``.
        dt_bias, A_log, D, dt_limit: ``A = -exp(A_log)``; as in ``ssd_step``.
        norm_weight, norm_before_gate, norm_eps: As in ``gated_rms_norm``, in ``n_groups`` groups of channels;
            without a weight z only gates.
        out_weight, out_bias: ``(d_model, d_inner)`` and ``(d_model,)``.
        elapsed: ``(1,)``, multiplies dt after softplus and ``dt_limit``.
        n_groups: Groups of B and C.

    Returns:
        As ``mamba1_token``.
    """
    if out_of_the_usual("ssd", x, in_weight):
        return None
    d_model = x.shape[1]
    _, n_heads, head_dim, d_state = state.shape
    d_inner, d_conv = n_heads * head_dim, conv_weight.shape[1]
    channels = d_inner + 2 * n_groups * d_state
    d_columns = D.shape[1] if D.dim() == 2 else 1
    heads = (n_heads,)
    found = usual_addresses(
        torch.float32,
        (x, (1, d_model)),
        (conv_state, (1, channels, d_conv - 1)),
        (state, (1, n_heads, head_dim, d_state)),
        (in_weight, (d_inner + channels + n_heads, d_model)),
        (in_bias, (d_inner + channels + n_heads,)),
        (conv_weight, (channels, d_conv)),
        (conv_bias, (channels,)),
        (dt_bias, heads),
        (A_log, heads),
        (D, (n_heads, head_dim) if D.dim() == 2 else heads),
        (norm_weight, (d_inner,)),
        (out_weight, (d_model, d_inner)),
        (out_bias, (d_model,)),
        (elapsed, (1,)),
    )
    if found is None:
        return None
    y, next_conv, next_state = torch.empty_like(x), torch.empty_like(conv_state), torch.empty_like(state)
    work = torch.empty(3 * d_inner + 2 * channels + 3 * n_heads)
    _compiled().mamba2(
        *found, y.data_ptr(), next_conv.data_ptr(), next_state.data_ptr(), work.data_ptr(),
        d_model, n_heads, head_dim, d_state, n_groups, d_conv, d_columns,
        norm_before_gate, norm_eps, *dt_bounds(dt_limit),
    )  # fmt: skip
    return y, next_conv, next_state


def mamba2_mix(
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor | None,
    *,
    elapsed: Tensor | None = None,
    n_groups: int,
    norm_before_gate: bool,
    norm_eps: float,
    dt_limit: tuple[float, float],
    inplace: bool = False,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What a Mamba-2 block does to one token of many rows, or to a few, between its projections, on torch's
    threads.

    Op by op, each would go through the rows anew, and the parts of ``projected`` be copied first.

    Args:
        projected: ``(batch, width)`` or ``(batch, length, width)``, what in_proj gives: the gate z, what is
            convolved (x, B, C), and dt. Tokens of a row are read one after the other.
        conv_state, state: As in ``mamba2_token``, of ``batch`` rows; overwritten with ``inplace``.
        elapsed: ``(batch,)`` or ``(batch, length)``.
        conv_weight, conv_bias, dt_bias, A_log, D, norm_weight: As in ``mamba2_token``.
        n_groups, norm_before_gate, norm_eps, dt_limit: As in ``mamba2_token``.

    Returns:
        What out_proj takes, ``(batch, [length,] d_inner)``, and the new states; None where anything is out of
        the usual, as in ``mamba2_token``.
    """
    if torch.compiler.is_compiling() or choose_backend("ssd", None, projected.device) != "portable":
        return None
    batch, n_heads, head_dim, d_state = state.shape
    tokens = projected.shape[:-1]
    d_inner, d_conv = n_heads * head_dim, conv_weight.shape[1]
    channels = d_inner + 2 * n_groups * d_state
    d_columns = D.shape[1] if D.dim() == 2 else 1
    heads = (n_heads,)
    if elapsed is not None:
        elapsed = elapsed.contiguous()  # as a rule a column of a batch
    found = usual_addresses(
        torch.float32,
        (projected, (batch, *tokens[1:], d_inner + channels + n_heads)),
        (conv_state, (batch, channels, d_conv - 1)),
        (state, (batch, n_heads, head_dim, d_state)),
        (conv_weight, (channels, d_conv)),
        (conv_bias, (channels,)),
        (dt_bias, heads),
        (A_log, heads),
        (D, (n_heads, head_dim) if D.dim() == 2 else heads),
        (norm_weight, (d_inner,)),
        (elapsed, tokens),
    )
    if found is None:
        return None
    next_conv = conv_state if inplace else torch.empty_like(conv_state)
    next_state = state if inplace else torch.empty_like(state)
    y, n_tokens = projected.new_empty(*tokens, d_inner), math.prod(tokens[1:])
    mix, bounds = _compiled().mamba2_mix, dt_bounds(dt_limit)

    def run(work: int, first: int, last: int) -> None:
        mix(
            *found, y.data_ptr(), next_conv.data_ptr(), next_state.data_ptr(), work, first, last, n_tokens,
            n_heads, head_dim, d_state, n_groups, d_conv, d_columns, norm_before_gate, norm_eps, *bounds,
        )  # fmt: skip

    small = n_tokens * state.numel() < SMALL
    over_rows(batch, run, room=channels + d_inner + 2 * n_heads, small=small)
    return y, next_conv, next_state


def over_rows(batch: int, run: Callable[[int, int, int], None], *, room: int, small: bool) -> None:
    """Call ``run(work, first, last)`` for the rows in parts, on torch's threads.

    Args:
        batch: Rows.
        run: Takes the address of memory of its own, and the part's first row and the one behind its last.
        room: Float32 numbers of that memory.
        small: As in ``parallel_for``.
    """
    n_parts = max(1, min(torch.get_num_threads(), batch))
    work = torch.empty(n_parts, room + _APART)

    def run_part(part: int) -> None:
        run(work[part].data_ptr(), batch * part // n_parts, batch * (part + 1) // n_parts)

    parallel_for(n_parts, run_part, small=small)


def out_of_the_usual(op: str, x: Tensor, in_weight: Tensor) -> bool:
    """What ``usual_addresses`` does not see."""
    return (
        x.shape[0] != 1
        or in_weight.numel() > _MOST_WEIGHTS
        or torch.is_autocast_enabled("cpu")
        or choose_backend(op, None, x.device) != "portable"
    )


def dt_bounds(dt_limit: tuple[float, float]) -> tuple[float, float]:
    low, high = check_dt_limit(dt_limit)
    return (-high, high) if low == 0.0 and high == float("inf") else (low, high)


@functools.cache
def _compiled() -> ModuleType:
    from mambakit.kernels import cpu_step

    return cpu_step
