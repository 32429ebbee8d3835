"""``selective_scan_step``: one token of the recurrence, for decoding and control loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.arrays import is_plain_cpu_call
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.checks import check_dt_limit, check_float, check_groups, check_same_device, check_shape
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
        inplace: Overwrite ``state`` with the new state and return it; not for a state that needs gradients.
        backend: As in ``selective_scan``.

    Returns:
        ``(y, state)``: ``y`` shaped as ``x`` and of its dtype, and the new state.

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype.
        ValueError: On a wrong shape, device, ``dt_limit`` or name of a backend.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    _check_step(state, x, dt, A, B, C, D, z, dt_bias)
    dt_limit = check_dt_limit(dt_limit)
    dtype = state.dtype
    if (
        choose_backend("selective_scan", backend, x.device) != "reference"
        and dtype in (torch.float32, torch.float64)
        and (state.stride(2) == 1 or not inplace)
        and is_plain_cpu_call(state, x, dt, A, B, C, D, z, dt_bias)
    ):
        from mambakit.kernels.selective_scan.cpu_step import step_cpu

        return step_cpu(state, x, dt, A, B, C, D, z, dt_bias, bool(dt_softplus), dt_limit, inplace)
    per_group = x.shape[1] // B.shape[1]
    xs = x.to(dtype)
    dts = effective_dt(dt, dt_bias, dt_softplus, dt_limit, dtype)[..., None]
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
