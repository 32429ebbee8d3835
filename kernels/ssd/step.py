"""``ssd_step``: one token of the recurrence, for decoding and control loops."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.arrays import addresses, step_memory, usual_addresses
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.checks import check_dt_limit, check_float, check_groups, check_same_device, check_shape
from mambakit.kernels.launch import asks_for_triton
from mambakit.kernels.semantics import effective_dt
from mambakit.kernels.ssd.op import check_options


def ssd_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    A_is_log: bool = False,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of ``ssd``: ``h = exp(dt A) state + dt x B^T``, ``y = h C + D x``, times ``silu(z)``.

    Args:
        state: ``(batch, n_heads, head_dim, d_state)``; computed in its dtype, float32 as a rule.
        x: ``(batch, n_heads, head_dim)``.
        dt: ``(batch, n_heads)``.
        A: ``(n_heads,)``, < 0.
        B: ``(batch, n_groups, d_state)``.
        C: Shaped as ``B``.
        D, z, dt_bias, dt_softplus, dt_limit: As in ``ssd``; ``z`` shaped as ``x``.
        A_is_log: ``A`` is ``log(-A)``, which models keep as a parameter: the exponential is the kernel's.
        inplace: Overwrite ``state`` with the new state and return it; not for a state that needs gradients.
        backend: As in ``ssd``.

    Returns:
        ``(y, state)``: ``y`` shaped as ``x`` and of its dtype, and the new state.

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype.
        ValueError: On a wrong shape, device, ``dt_limit`` or name of a backend.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    if asks_for_triton(state, backend):
        done = _triton()(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, A_is_log, inplace,
            checked=False,
        )  # fmt: skip
        if done is not None:
            return done
    found = _usual_addresses(state, x, dt, A, B, C, D, z, dt_bias)
    if found is None:
        _check_step(state, x, dt, A, B, C, D, z, dt_bias)
    low, high = check_dt_limit(dt_limit)
    chosen = choose_backend("ssd_step", backend, x.device, state.dtype)
    if chosen == "triton" and not torch.compiler.is_compiling():
        done = _triton()(
            state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, (low, high), A_is_log, inplace,
            checked=True,
        )  # fmt: skip
        if done is not None:
            return done
    if A_is_log:
        A = -torch.exp(A)
        found = None if found is None else _usual_addresses(state, x, dt, A, B, C, D, z, dt_bias)
    if chosen != "reference":
        memory: list[Any] | None = [state, x]
        if found is None:
            memory = step_memory(state, x, dt, A, B, C, D, z, dt_bias, inplace=inplace)
        if memory is not None:
            new_state, y = memory[0] if inplace else torch.empty_like(memory[0]), torch.empty_like(memory[1])
            if low == 0.0 and high == float("inf"):
                low = -high  # the default clamps nothing
            d_columns = 1 if D is None or D.dim() == 1 else D.shape[1]
            _compiled_step(state.dtype)(
                *(found or addresses(memory)), y.data_ptr(), new_state.data_ptr(),
                *state.shape, B.shape[1], d_columns, bool(dt_softplus), low, high,
            )  # fmt: skip
            return y if y.dtype is x.dtype else y.to(x.dtype), state if inplace else new_state
    n_heads, n_groups = x.shape[1], B.shape[1]
    dtype = state.dtype
    dt = effective_dt(dt, dt_bias, dt_softplus, dt_limit, dtype)
    xs = x.to(dtype)
    decay = (dt * A.to(dtype)).exp()[..., None, None]
    B, C = (v.to(dtype).repeat_interleave(n_heads // n_groups, dim=1) for v in (B, C))
    update = (dt[..., None] * xs)[..., None] * B[..., None, :]
    h = state.mul_(decay).add_(update) if inplace else state * decay + update
    y = (h @ C[..., None]).squeeze(-1)
    if D is not None:
        y = y + (D[:, None] if D.dim() == 1 else D).to(dtype) * xs
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h


@functools.cache
def _triton() -> Any:
    from mambakit.kernels.ssd.gpu_step import ssd_step_triton

    return ssd_step_triton


@functools.cache
def _compiled_step(dtype: torch.dtype) -> Any:
    from mambakit.kernels.ssd.cpu_step import compiled_step

    return compiled_step(dtype == torch.float64)


def _usual_addresses(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> list[int] | None:
    try:
        batch, n_heads, head_dim, d_state = state.shape
        n_groups = B.shape[1]
        dtype = state.dtype
        per_channel = D is not None and D.dim() == 2
    except (AttributeError, IndexError, ValueError):
        return None
    if n_groups < 1 or n_heads % n_groups:
        return None
    each, heads, group = (batch, n_heads, head_dim), (n_heads,), (batch, n_groups, d_state)
    return usual_addresses(
        dtype,
        (state, (batch, n_heads, head_dim, d_state)),
        (x, each),
        (dt, (batch, n_heads)),
        (A, heads),
        (B, group),
        (C, group),
        (D, (n_heads, head_dim) if per_channel else heads),
        (z, each),
        (dt_bias, heads),
    )


def _check_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    check_float("state", state)
    check_shape("state", state, batch=None, n_heads=None, head_dim=None, d_state=None)
    batch, n_heads, head_dim, d_state = state.shape
    check_float("x", x)
    check_shape("x", x, batch=batch, n_heads=n_heads, head_dim=head_dim)
    check_float("dt", dt)
    check_shape("dt", dt, batch=batch, n_heads=n_heads)
    check_float("A", A)
    check_shape("A", A, n_heads=n_heads)
    check_float("B", B)
    check_shape("B", B, batch=batch, n_groups=None, d_state=d_state)
    check_groups(B.shape[1], n_heads, "n_heads")
    check_float("C", C)
    check_shape("C", C, batch=batch, n_groups=B.shape[1], d_state=d_state)
    check_options(x, D, z, dt_bias)
    check_same_device("x", x, state=state, dt=dt, A=A, B=B, C=C)
