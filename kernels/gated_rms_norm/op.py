"""``gated_rms_norm``: argument checks and the choice of backend."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.arrays import usual_addresses
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.checks import check_float, check_same_device, check_shape
from mambakit.kernels.gated_rms_norm.library import gated_rms_norm_fwd
from mambakit.kernels.gated_rms_norm.reference import gated_rms_norm_reference
from mambakit.kernels.launch import asks_for_triton, is_eager
from mambakit.kernels.parallel import parallel_for

# on fewer values than this one thread is sooner done than two have begun
_SMALL = 1 << 15


def gated_rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    z: Tensor | None = None,
    eps: float = 1e-5,
    group_size: int | None = None,
    norm_before_gate: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Root-mean-square norm over groups of channels, with Mamba-2's gate (Dao & Gu 2024, section 7.1).

    ``y = u / sqrt(mean(u^2) + eps) * weight`` with ``u = x * silu(z)``; with ``norm_before_gate`` the norm
    is of ``x`` alone and its result is multiplied by ``silu(z)``. Computed in float32 (float64 for float64).

    Args:
        x: ``(..., channels)``.
        weight: ``(channels,)``.
        z: Gate, shaped as ``x``; none if None.
        eps: Added to the mean square, > 0.
        group_size: Channels normalised together; must divide ``channels``. None: all of them.
        norm_before_gate: Apply the gate after the norm.
        backend: ``"reference"``, ``"portable"``, ``"triton"``, or None for the best on this device. Only
            ``"reference"`` can be differentiated twice.

    Returns:
        ``y``, shaped as ``x`` and of its dtype.

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype, or ``group_size`` is no whole number.
        ValueError: On a wrong shape, device, ``eps``, ``group_size`` or name of a backend.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    if asks_for_triton(x, backend):
        # of a make that was checked before
        y = _triton()((x, weight, z), (eps, group_size, norm_before_gate), checked=False)
        if y is not None:
            return y
    found = _usual_addresses(x, weight, z)
    if found is None:
        _check(x, weight, z)
    channels = x.shape[-1]
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    asked_group = group_size
    if group_size is None:
        group_size = channels
    elif isinstance(group_size, float):
        raise TypeError(f"group_size: expected a whole number or None, got {group_size}")
    elif group_size < 1 or channels % group_size:
        raise ValueError(f"group_size: must divide channels={channels} and be at least 1, got {group_size}")
    chosen = choose_backend("gated_rms_norm", backend, x.device, x.dtype)
    if chosen == "reference":
        return gated_rms_norm_reference(
            x, weight, z=z, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate
        )
    if chosen == "triton":
        if is_eager(x, weight, z):  # a custom op takes longer to call than a few rows to norm
            return _triton()((x, weight, z), (float(eps), asked_group, bool(norm_before_gate)), checked=True)
    elif found is not None:
        # the way through a custom op is longer than a step of a stream
        y = torch.empty_like(x)
        _run((*found, y.data_ptr()), x.numel(), channels, group_size, float(eps), bool(norm_before_gate))
        return y
    return gated_rms_norm_fwd(x, weight, z, float(eps), group_size, norm_before_gate, chosen)


@functools.cache
def _triton() -> Any:
    from mambakit.kernels.gated_rms_norm.gpu import gated_rms_norm_triton

    return gated_rms_norm_triton


def _run(
    at: tuple[int, ...], size: int, channels: int, group_size: int, eps: float, norm_before_gate: bool
) -> None:
    """The norm of float32 values at the addresses of x, weight, z (0 for none) and y."""
    forward, rows = _compiled(), size // channels
    n_parts = 1 if size < _SMALL else max(1, min(torch.get_num_threads(), rows))
    if n_parts == 1:
        forward(*at, rows, channels, group_size, eps, norm_before_gate)
        return
    x, weight, z, y = at

    def run(part: int) -> None:
        first, last = rows * part // n_parts, rows * (part + 1) // n_parts
        skip = 4 * channels * first
        there = (x + skip, weight, z + skip if z else 0, y + skip)
        forward(*there, last - first, channels, group_size, eps, norm_before_gate)

    parallel_for(n_parts, run)


@functools.cache
def _compiled() -> Any:
    from mambakit.kernels.gated_rms_norm.cpu import forward_at

    return forward_at


def _usual_addresses(x: Tensor, weight: Tensor, z: Tensor | None) -> list[int] | None:
    if torch.compiler.is_compiling():
        return None  # before a graph comes to depend on the size
    if not isinstance(x, Tensor) or x.dim() < 1 or x.numel() == 0:
        return None
    shape = x.shape
    return usual_addresses(torch.float32, (x, shape), (weight, shape[-1:]), (z, shape))


def _check(x: Tensor, weight: Tensor, z: Tensor | None) -> None:
    check_float("x", x)
    if x.dim() < 1:
        raise ValueError("x: expected shape (..., channels), got ()")
    check_float("weight", weight)
    check_shape("weight", weight, channels=x.shape[-1])
    if z is not None:
        check_float("z", z)
        if z.shape != x.shape:
            raise ValueError(f"z: expected the shape of x, {tuple(x.shape)}, got {tuple(z.shape)}")
    check_same_device("x", x, weight=weight, z=z)
