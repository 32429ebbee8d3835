"""``selective_scan``: argument checks and the choice of backend.

The selective scan of Mamba-1 (Gu & Dao 2023, arXiv:2312.00752): a linear recurrence with a decay of
its own for every channel, state and token.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.backend import choose_backend
from mambakit.kernels.checks import (
    check_dt_limit,
    check_float,
    check_groups,
    check_same_device,
    check_seq_idx,
    check_shape,
)
from mambakit.kernels.launch import asks_for_triton, needs_grad
from mambakit.kernels.selective_scan.library import selective_scan_fwd
from mambakit.kernels.selective_scan.reference import selective_scan_reference


def selective_scan(
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
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan: ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t``, ``y_t = C_t h_t + D x_t``.

    Gu & Dao 2023, arXiv:2312.00752, eq. 2 with the discretisation of their section 3.2. Gradients flow
    to every tensor argument, and from the final state too. Computed in float32 (float64 for float64
    ``x``). The inputs need not be contiguous.

    Args:
        x: Input, ``(batch, length, d_inner)``; any length, 0 too.
        dt: Step sizes, ``(batch, length, d_inner)``; positive, or anything with ``dt_softplus``.
        A: Decay rates, ``(d_inner, d_state)``, < 0.
        B: Input projection, ``(batch, length, n_groups, d_state)``; ``d_inner / n_groups`` neighbouring
            channels share a group.
        C: Output projection, shaped as ``B``.
        D: Skip coefficient, ``(d_inner,)``.
        z: Gate, shaped as ``x``: ``y`` is multiplied by ``silu(z)``.
        dt_bias: Added to ``dt`` before softplus, ``(d_inner,)``.
        dt_softplus: Pass ``dt + dt_bias`` through softplus.
        dt_limit: ``(low, high)`` to clamp the step size to, after softplus.
        initial_state: State before the first token, ``(batch, d_inner, d_state)``; zero if None.
        seq_idx: ``(batch, length)`` int32, non-decreasing in a row: which packed sequence a token belongs
            to. The row's first sequence continues ``initial_state``, the others start from zero.
        return_final_state: Also return the state after the last token (of the row's last sequence).
        backend: ``"reference"``, ``"portable"``, ``"triton"``, or None for the best on this device. Only
            ``"reference"`` can be differentiated twice.

    Returns:
        ``y``, shaped as ``x`` and of its dtype; with ``return_final_state`` the pair of ``y`` and the
        state, ``(batch, d_inner, d_state)`` float32 (float64 for float64 ``x``).

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype.
        ValueError: On a wrong shape, device, ``dt_limit`` or name of a backend.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx)
    if asks_for_triton(x, backend):
        # of a make that was checked before
        done = _triton()(tensors, (dt_softplus, dt_limit), checked=False)
        if done is not None:
            return done if return_final_state else done[0]
    _check_inputs(*tensors)
    dt_limit = check_dt_limit(dt_limit)
    chosen = choose_backend("selective_scan", backend, x.device, x.dtype)
    if chosen == "reference":
        y, state = selective_scan_reference(
            x,
            dt,
            A,
            B,
            C,
            D=D,
            z=z,
            dt_bias=dt_bias,
            dt_softplus=dt_softplus,
            dt_limit=dt_limit,
            initial_state=initial_state,
            seq_idx=seq_idx,
        )
    elif chosen == "triton" and not torch.compiler.is_compiling():
        y, state = _triton()(tensors, (bool(dt_softplus), dt_limit), checked=True)
    else:
        y, state, _ = selective_scan_fwd(*tensors, bool(dt_softplus), *dt_limit, needs_grad(*tensors), chosen)
    return (y, state) if return_final_state else y


@functools.cache
def _triton() -> Any:
    from mambakit.kernels.selective_scan.gpu import selective_scan_triton

    return selective_scan_triton


def _check_inputs(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> None:
    check_float("x", x)
    check_shape("x", x, batch=None, length=None, d_inner=None)
    batch, length, d_inner = x.shape
    check_float("dt", dt)
    check_shape("dt", dt, batch=batch, length=length, d_inner=d_inner)
    check_float("A", A)
    check_shape("A", A, d_inner=d_inner, d_state=None)
    d_state = A.shape[1]
    check_float("B", B)
    check_shape("B", B, batch=batch, length=length, n_groups=None, d_state=d_state)
    n_groups = B.shape[2]
    check_groups(n_groups, d_inner, "d_inner")
    check_float("C", C)
    check_shape("C", C, batch=batch, length=length, n_groups=n_groups, d_state=d_state)
    if D is not None:
        check_float("D", D)
        check_shape("D", D, d_inner=d_inner)
    if z is not None:
        check_float("z", z)
        check_shape("z", z, batch=batch, length=length, d_inner=d_inner)
    if dt_bias is not None:
        check_float("dt_bias", dt_bias)
        check_shape("dt_bias", dt_bias, d_inner=d_inner)
    if initial_state is not None:
        check_float("initial_state", initial_state)
        check_shape("initial_state", initial_state, batch=batch, d_inner=d_inner, d_state=d_state)
    if seq_idx is not None:
        check_seq_idx(seq_idx, batch=batch, length=length)
    check_same_device(
        "x", x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state, seq_idx=seq_idx
    )
