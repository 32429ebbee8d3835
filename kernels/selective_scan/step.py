"""``selective_scan_step``: one token of the recurrence, for decoding and control loops."""

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


def selective_scan_step(
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
    """One token of ``selective_scan``: ``h = exp(dt A) state + dt B x``, ``y = (C h + D x) silu(z)``.

    Args:
        state: ``(batch, d_inner, d_state)``; computed in its dtype, float32 as a rule.
        x: ``(batch, d_inner)``.
        dt: ``(batch, d_inner)``.
        A: ``(d_inner, d_state)``, < 0.
        B: ``(batch, n_groups, d_state)``.
        C: Shaped as ``B``.
        D, z, dt_bias, dt_softplus, dt_limit: As in ``selective_scan``; ``z`` shaped as ``x``.
        A_is_log: ``A`` is ``log(-A)``, which models keep as a parameter: the exponential is the kernel's.
        inplace: Overwrite ``state`` with the new state and return it; not for a state that needs gradients.
        backend: As in ``selective_scan``.

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
    dtype = state.dtype
    chosen = choose_backend("selective_scan_step", backend, x.device, state.dtype)
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
            _compiled_step(dtype)(
                *(found or addresses(memory)), y.data_ptr(), new_state.data_ptr(),
                *state.shape, B.shape[1], bool(dt_softplus), low, high,
            )  # fmt: skip
            return y if y.dtype is x.dtype else y.to(x.dtype), state if inplace else new_state
    per_group = x.shape[1] // B.shape[1]
    xs = x.to(dtype)
    dts = effective_dt(dt, dt_bias, dt_softplus, (low, high), dtype)[..., None]
    B_each, C_each = (v.to(dtype).repeat_interleave(per_group, dim=1) for v in (B, C))
    decay = (dts * A.to(dtype)).exp()
    update = dts * B_each * xs[..., None]
    h = state.mul_(decay).add_(update) if inplace else decay * state + update
    y = (h * C_each).sum(-1)
    if D is not None:
        y = y + D.to(dtype) * xs
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h


@functools.cache
def _triton() -> Any:
    from mambakit.kernels.selective_scan.gpu_step import selective_scan_step_triton

    return selective_scan_step_triton


@functools.cache
def _compiled_step(dtype: torch.dtype) -> Any:
    from mambakit.kernels.selective_scan.cpu_step import compiled_step

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
        batch, d_inner, d_state = state.shape
        n_groups = B.shape[1]
        dtype = state.dtype
    except (AttributeError, IndexError, ValueError):
        return None
    if n_groups < 1 or d_inner % n_groups:
        return None
    each, group = (batch, d_inner), (batch, n_groups, d_state)
    return usual_addresses(
        dtype,
        (state, (batch, d_inner, d_state)),
        (x, each),
        (dt, each),
        (A, (d_inner, d_state)),
        (B, group),
        (C, group),
        (D, (d_inner,)),
        (z, each),
        (dt_bias, (d_inner,)),
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
    check_shape("state", state, batch=None, d_inner=None, d_state=None)
    batch, d_inner, d_state = state.shape
    check_float("x", x)
    check_shape("x", x, batch=batch, d_inner=d_inner)
    check_float("dt", dt)
    check_shape("dt", dt, batch=batch, d_inner=d_inner)
    check_float("A", A)
    check_shape("A", A, d_inner=d_inner, d_state=d_state)
    check_float("B", B)
    check_shape("B", B, batch=batch, n_groups=None, d_state=d_state)
    check_groups(B.shape[1], d_inner, "d_inner")
    check_float("C", C)
    check_shape("C", C, batch=batch, n_groups=B.shape[1], d_state=d_state)
    if D is not None:
        check_float("D", D)
        check_shape("D", D, d_inner=d_inner)
    if z is not None:
        check_float("z", z)
        check_shape("z", z, batch=batch, d_inner=d_inner)
    if dt_bias is not None:
        check_float("dt_bias", dt_bias)
        check_shape("dt_bias", dt_bias, d_inner=d_inner)
    check_same_device("x", x, state=state, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
