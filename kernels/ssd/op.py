"""``ssd`` and its inner form ``ssd_core``: argument checks and the choice of backend.

State-space duality (Dao & Gu 2024, arXiv:2405.21060): a linear recurrence whose decay is one scalar per
head and token, computed chunk by chunk as matrix products.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.arrays import is_plain_cpu_call
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.checks import (
    check_dt_limit,
    check_float,
    check_groups,
    check_same_device,
    check_seq_idx,
    check_shape,
)
from mambakit.kernels.launch import asks_for_triton
from mambakit.kernels.semantics import effective_dt, state_dtype
from mambakit.kernels.ssd import library
from mambakit.kernels.ssd.library import ssd_fwd, ssd_triton_fwd
from mambakit.kernels.ssd.projections import head_projections, own_products
from mambakit.kernels.ssd.reference import ssd_core_reference, ssd_reference


def ssd(
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
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """State-space duality: ``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T``, ``y_t = h_t C_t + D x_t``.

    Dao & Gu 2024, arXiv:2405.21060, eq. 1 with one scalar ``A`` per head. Gradients flow to every
    tensor argument, and from the final state too. Computed in float32 (float64 for float64 ``x``).

    Args:
        x: Input, ``(batch, length, n_heads, head_dim)``; any length, 0 too.
        dt: Step sizes, ``(batch, length, n_heads)``; positive, or anything with ``dt_softplus``.
        A: Decay rate per head, ``(n_heads,)``, < 0.
        B: Input projection, ``(batch, length, n_groups, d_state)``; ``n_heads / n_groups`` neighbouring
            heads share a group.
        C: Output projection, shaped as ``B``.
        D: Skip coefficient, ``(n_heads,)`` or ``(n_heads, head_dim)``.
        z: Gate, shaped as ``x``: ``y`` is multiplied by ``silu(z)``.
        dt_bias: Added to ``dt`` before softplus, ``(n_heads,)``.
        dt_softplus: Pass ``dt + dt_bias`` through softplus.
        dt_limit: ``(low, high)`` to clamp the step size to, after softplus.
        initial_state: State before the first token, ``(batch, n_heads, head_dim, d_state)``; zero if None.
        seq_idx: ``(batch, length)`` int32, non-decreasing in a row: which packed sequence a token belongs
            to. The row's first sequence continues ``initial_state``, the others start from zero.
        return_final_state: Also return the state after the last token (of the row's last sequence).
        chunk_size: Tokens a chunk; a matter of speed only. None lets the op choose.
        backend: ``"reference"``, ``"portable"``, ``"triton"``, or None for the best on this device. Only
            ``"reference"`` can be differentiated twice.

    Returns:
        ``y``, shaped as ``x`` and of its dtype; with ``return_final_state`` the pair of ``y`` and the
        state, ``(batch, n_heads, head_dim, d_state)`` float32 (float64 for float64 ``x``).

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype.
        ValueError: On a wrong shape, device, ``dt_limit``, ``chunk_size`` or name of a backend.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    tensors = (x, dt, None, A, B, C, D, z, dt_bias, initial_state, None, None, None, None, seq_idx)
    if asks_for_triton(x, backend):
        # of a make that was checked before
        options = (dt_softplus, dt_limit, chunk_size, return_final_state)
        done = _triton()(tensors, options, checked=False)
        if done is not None:
            return done if return_final_state else done[0]
    _check_inputs(x, B, C, initial_state, seq_idx, chunk_size, dt=dt)
    n_heads, head_dim = x.shape[2:]
    check_float("A", A)
    check_shape("A", A, n_heads=n_heads)
    check_same_device("x", x, A=A)
    check_options(x, D, z, dt_bias)
    dt_limit = check_dt_limit(dt_limit)
    chosen = _choose(backend, x, B)
    if chosen == "triton":
        return _run_triton(tensors, bool(dt_softplus), dt_limit, chunk_size, return_final_state)
    if chosen == "reference":
        y, state = ssd_reference(
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
    else:
        # dt is 1 / head_dim of x: autograd's own ops serve it
        scale = effective_dt(dt, dt_bias, dt_softplus, dt_limit, state_dtype(x))
        log_decay = scale * A.to(scale.dtype)
        if D is not None and D.dim() == 1:
            D = D[:, None].expand(n_heads, head_dim)
        y, state = _run_portable(x, log_decay, scale, B, C, D, z, initial_state, seq_idx, chunk_size)
    return (y, state) if return_final_state else y


def ssd_core(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    skip: Tensor | None = None,
    z: Tensor | None = None,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    angles: Tensor | None = None,
    own_scale: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    return_final_state: bool = False,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence in ``ssd``: ``h_t = exp(log_decay_t) h_{t-1} + scale_t x_t B_t^T``, ``y_t = h_t C_t``.

    The log-decay comes apart from the input's scale, every token and head may have a skip of its own, and
    every head may make its own B and C of its group's, ``rotate(B + B_bias)`` and ``rotate(C + C_bias)``:
    other discretisations run on the same kernels, such as Mamba-3's trapezoidal rule with rotations
    (state-spaces/mamba, ``modules/mamba3.py``).

    Args:
        x: Input, ``(batch, length, n_heads, head_dim)``.
        log_decay: ``(batch, length, n_heads)``, <= 0.
        scale: ``(batch, length, n_heads)``, any sign.
        B, C: ``(batch, length, n_groups, d_state)``.
        skip: ``(batch, length, n_heads)``: ``y`` gets ``skip_t x_t``.
        z: Gate, shaped as ``x``: ``y`` is multiplied by ``silu(z)``.
        B_bias, C_bias: ``(n_heads, d_state)``, added to B and C.
        angles: ``(batch, length, n_heads, n_angles)`` in radians, at most ``d_state / 2`` of them: channels
            ``2i`` and ``2i + 1`` of B and of C are turned by angle ``i``. The state's channels are then the
            turned ones.
        own_scale: ``(batch, length, n_heads)``: what scales a token's input in its own output, ``scale`` if
            None; later outputs and the state have it with ``scale``.
        initial_state, seq_idx, return_final_state, chunk_size, backend: As in ``ssd``.

    Returns:
        As ``ssd``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: As ``ssd``.
    """
    tensors = (
        x, log_decay, scale, None, B, C, skip, z, None, initial_state, B_bias, C_bias, angles, own_scale,
        seq_idx,
    )  # fmt: skip
    if asks_for_triton(x, backend):
        options = (False, (0.0, 1.0), chunk_size, return_final_state)
        done = _triton()(tensors, options, checked=False)
        if done is not None:
            return done if return_final_state else done[0]
    _check_inputs(x, B, C, initial_state, seq_idx, chunk_size, log_decay=log_decay, scale=scale)
    _check_core(x, B, skip, z, B_bias, C_bias, angles, own_scale)
    chosen = _choose(backend, x, B)
    if chosen == "triton":
        return _run_triton(tensors, False, (0.0, 1.0), chunk_size, return_final_state)
    if chosen == "reference":
        y, state = ssd_core_reference(
            x,
            log_decay,
            scale,
            B,
            C,
            skip=skip,
            z=z,
            B_bias=B_bias,
            C_bias=C_bias,
            angles=angles,
            own_scale=own_scale,
            initial_state=initial_state,
            seq_idx=seq_idx,
        )
        return (y, state) if return_final_state else y
    dtype = state_dtype(x)
    if own_scale is not None:
        dots = own_products(B.to(dtype), C.to(dtype), B_bias, C_bias, x.shape[2])
        more = (own_scale - scale).to(dtype) * dots
        skip = more if skip is None else skip.to(dtype) + more
    if B_bias is not None or C_bias is not None or angles is not None:
        B = head_projections(B.to(dtype), B_bias, angles, x.shape[2])
        C = head_projections(C.to(dtype), C_bias, angles, x.shape[2])
    gate = z if skip is None else None
    y, state = _run_portable(
        x, log_decay.to(dtype), scale.to(dtype), B, C, None, gate, initial_state, seq_idx, chunk_size
    )
    if skip is not None:
        total = y.to(dtype) + skip.to(dtype)[..., None] * x.to(dtype)
        y = (total if z is None else total * F.silu(z.to(dtype))).to(x.dtype)
    return (y, state) if return_final_state else y


def _check_core(
    x: Tensor,
    B: Tensor,
    skip: Tensor | None,
    z: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    angles: Tensor | None,
    own_scale: Tensor | None,
) -> None:
    """Raise unless what ``ssd_core`` takes beside the recurrence fits it."""
    batch, length, n_heads, _ = x.shape
    d_state = B.shape[3]
    check_options(x, None, z, None)
    for name, value in (("skip", skip), ("own_scale", own_scale)):
        if value is not None:
            check_float(name, value)
            check_shape(name, value, batch=batch, length=length, n_heads=n_heads)
    for name, bias in (("B_bias", B_bias), ("C_bias", C_bias)):
        if bias is not None:
            check_float(name, bias)
            check_shape(name, bias, n_heads=n_heads, d_state=d_state)
    if angles is not None:
        check_float("angles", angles)
        check_shape("angles", angles, batch=batch, length=length, n_heads=n_heads, n_angles=None)
        if 2 * angles.shape[3] > d_state:
            raise ValueError(
                f"angles: each turns two channels, but there are {angles.shape[3]} for d_state={d_state}"
            )
    check_same_device("x", x, skip=skip, B_bias=B_bias, C_bias=C_bias, angles=angles, own_scale=own_scale)


def _choose(backend: str | None, x: Tensor, B: Tensor) -> str:
    """The backend to run with; Triton has nothing to launch where there is nothing."""
    chosen = choose_backend("ssd", backend, x.device, x.dtype)
    return "portable" if chosen == "triton" and not (x.numel() and B.numel()) else chosen


def _run_portable(*inputs: Any) -> tuple[Tensor, Tensor]:
    # the way through a custom op is longer than a short piece of a stream
    run = library.forward if is_plain_cpu_call(*inputs[:-1]) else ssd_fwd
    y, state = run(*inputs)
    return y, state


def _run_triton(
    tensors: tuple[Any, ...],
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    chunk_size: int | None,
    return_final_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        y, state = ssd_triton_fwd(*tensors, dt_softplus, *dt_limit, chunk_size, return_final_state)
    else:
        # a custom op costs more than the kernels of a short sequence
        y, state = _triton()(tensors, (dt_softplus, dt_limit, chunk_size, return_final_state), checked=True)
    return (y, state) if return_final_state else y


@functools.cache
def _triton() -> Any:
    from mambakit.kernels.ssd.gpu import ssd_triton

    return ssd_triton


def check_options(x: Tensor, D: Tensor | None, z: Tensor | None, dt_bias: Tensor | None) -> None:
    """Raise unless what surrounds the recurrence fits ``x``, ``(..., n_heads, head_dim)``."""
    n_heads, head_dim = x.shape[-2:]
    if D is not None:
        check_float("D", D)
        if D.dim() == 2:
            check_shape("D", D, n_heads=n_heads, head_dim=head_dim)
        else:
            check_shape("D", D, n_heads=n_heads)
    if z is not None:
        check_float("z", z)
        names = (
            ("batch", "length", "n_heads", "head_dim") if x.dim() == 4 else ("batch", "n_heads", "head_dim")
        )
        check_shape("z", z, **dict(zip(names, x.shape, strict=True)))
    if dt_bias is not None:
        check_float("dt_bias", dt_bias)
        check_shape("dt_bias", dt_bias, n_heads=n_heads)
    check_same_device("x", x, D=D, z=z, dt_bias=dt_bias)


def _check_inputs(
    x: Tensor,
    B: Tensor,
    C: Tensor,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
    **per_head: Tensor,
) -> None:
    """Raise unless the recurrence's own arguments fit; ``per_head`` are ``(batch, length, n_heads)``."""
    check_float("x", x)
    check_shape("x", x, batch=None, length=None, n_heads=None, head_dim=None)
    batch, length, n_heads, head_dim = x.shape
    for name, value in per_head.items():
        check_float(name, value)
        check_shape(name, value, batch=batch, length=length, n_heads=n_heads)
    check_float("B", B)
    check_shape("B", B, batch=batch, length=length, n_groups=None, d_state=None)
    n_groups, d_state = B.shape[2:]
    check_groups(n_groups, n_heads, "n_heads")
    check_float("C", C)
    check_shape("C", C, batch=batch, length=length, n_groups=n_groups, d_state=d_state)
    if initial_state is not None:
        check_float("initial_state", initial_state)
        check_shape(
            "initial_state", initial_state, batch=batch, n_heads=n_heads, head_dim=head_dim, d_state=d_state
        )
    if seq_idx is not None:
        check_seq_idx(seq_idx, batch=batch, length=length)
    check_same_device("x", x, B=B, C=C, initial_state=initial_state, seq_idx=seq_idx, **per_head)
    if chunk_size is not None and (not isinstance(chunk_size, int) or isinstance(chunk_size, bool)):
        raise TypeError(f"chunk_size: expected an int or None, got {type(chunk_size).__name__}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
