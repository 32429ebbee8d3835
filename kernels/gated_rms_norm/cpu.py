"""Gated RMS norm on the CPU in float32: one pass over a row while it is in cache, for each direction."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from numba import carray
from torch import Tensor

from mambakit.kernels.addresses import pointer
from mambakit.kernels.parallel import in_portions
from mambakit.kernels.vector import LANES, load_lanes, reduce_add, splat_like, store_lanes
from mambakit.kernels.vector_math import sigmoid

_JIT = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}
_NONE = np.zeros((0, 0), np.float32)
# rows are cut into as many parts whatever the number of threads, and so are the sums of the weight's gradient
_PARTS = 16


def gated_rms_norm_forward_cpu(
    x: Tensor, weight: Tensor, z: Tensor | None, eps: float, group_size: int, norm_before_gate: bool
) -> Tensor:
    """As ``gated_rms_norm``, for at least one value."""
    rows = _rows(x)
    y = torch.empty(x.shape)
    _in_parts(
        _forward_parts,
        *rows.shape,
        rows,
        _flat(weight),
        _rows(z),
        eps,
        group_size,
        norm_before_gate,
        _rows(y),
    )
    return y.to(x.dtype)


def gated_rms_norm_backward_cpu(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and z, for at least one value."""
    rows = _rows(x)
    dx = torch.empty(x.shape)
    dz = None if z is None else torch.empty(x.shape)
    dweight = torch.zeros(_PARTS, x.shape[-1])
    _in_parts(
        _backward_parts, *rows.shape, _rows(dy), rows, _flat(weight), _rows(z), eps, group_size,
        norm_before_gate, _rows(dx), dweight.numpy(), _rows(dz),
    )  # fmt: skip
    return (
        dx.to(x.dtype),
        dweight.sum(0).to(weight.dtype),
        None if z is None or dz is None else dz.to(z.dtype),
    )


def _in_parts(kernel: Callable[..., object], n_rows: int, channels: int, *args: object) -> None:
    in_portions(_PARTS, lambda lo, hi: kernel(lo, hi, *args), small=n_rows * channels < 1 << 15)


def _rows(v: Tensor | None) -> np.ndarray:
    if v is None:
        return _NONE
    return v.detach().float().contiguous().view(-1, v.shape[-1]).numpy()


def _flat(v: Tensor) -> np.ndarray:
    return v.detach().float().contiguous().numpy()


@numba.njit(**_JIT)
def _forward_parts(lo, hi, x, weight, z, eps, group_size, norm_before_gate, y):
    n_rows = x.shape[0]
    first, last = n_rows * lo // _PARTS, n_rows * hi // _PARTS
    _forward(first, last, x, weight, z, eps, group_size, norm_before_gate, y)


@numba.njit(**_JIT)
def _forward(lo, hi, x, weight, z, eps, group_size, norm_before_gate, y):
    for r in range(lo, hi):
        for start in range(0, x.shape[1], group_size):
            stop = start + group_size
            squares = splat_like(x, 0.0)
            for k in range(start, stop, LANES):
                count = min(LANES, stop - k)
                u = load_lanes(x, (r, k), count)
                if z.size and not norm_before_gate:
                    gate = load_lanes(z, (r, k), count)
                    u = u * gate * sigmoid(gate)
                squares = squares + u * u
                store_lanes(y, (r, k), u, count)
            inverse = np.float32(1.0 / np.sqrt(np.float64(reduce_add(squares)) / group_size + eps))
            for k in range(start, stop, LANES):
                count = min(LANES, stop - k)
                value = load_lanes(y, (r, k), count) * inverse * load_lanes(weight, (k,), count)
                if z.size and norm_before_gate:
                    gate = load_lanes(z, (r, k), count)
                    value = value * gate * sigmoid(gate)
                store_lanes(y, (r, k), value, count)


@numba.njit(**_JIT)
def forward_at(x_at, weight_at, z_at, y_at, n_rows, channels, group_size, eps, norm_before_gate):
    """``gated_rms_norm`` of tensors at addresses, 0 for no ``z``: where a call counts more than its work."""
    zero = np.float32(0)
    shape = (n_rows, channels)
    x, y = carray(pointer(x_at, zero), shape), carray(pointer(y_at, zero), shape)
    z = carray(pointer(z_at, zero), shape if z_at else (0, 0))
    weight = carray(pointer(weight_at, zero), (channels,))
    _forward(0, n_rows, x, weight, z, eps, group_size, norm_before_gate, y)


@numba.njit(**_JIT)
def _backward_parts(lo, hi, dy, x, weight, z, eps, group_size, norm_before_gate, dx, dweight, dz):
    n_rows = x.shape[0]
    for part in range(lo, hi):
        first, last = n_rows * part // _PARTS, n_rows * (part + 1) // _PARTS
        _backward(part, first, last, dy, x, weight, z, eps, group_size, norm_before_gate, dx, dweight, dz)


@numba.njit(**_JIT)
def _backward(part, lo, hi, dy, x, weight, z, eps, group_size, norm_before_gate, dx, dweight, dz):
    inputs, grads = np.empty(group_size, np.float32), np.empty(group_size, np.float32)
    for r in range(lo, hi):
        for start in range(0, x.shape[1], group_size):
            # what is normed, and the gradient of the normed times the weight
            squares, products = splat_like(x, 0.0), splat_like(x, 0.0)
            for k in range(0, group_size, LANES):
                count, at = min(LANES, group_size - k), start + k
                u, given = load_lanes(x, (r, at), count), load_lanes(dy, (r, at), count)
                if z.size:
                    gate = load_lanes(z, (r, at), count)
                    silu = gate * sigmoid(gate)
                    if norm_before_gate:
                        given = given * silu
                    else:
                        u = u * silu
                squares = squares + u * u
                products = products + u * given * load_lanes(weight, (at,), count)
                store_lanes(inputs, (k,), u, count)
                store_lanes(grads, (k,), given, count)
            inverse = np.float32(1.0 / np.sqrt(np.float64(reduce_add(squares)) / group_size + eps))
            mean = reduce_add(products) * inverse * inverse / np.float32(group_size)
            for k in range(0, group_size, LANES):
                count, at = min(LANES, group_size - k), start + k
                u, given = load_lanes(inputs, (k,), count), load_lanes(grads, (k,), count)
                scale = load_lanes(weight, (at,), count)
                normed = u * inverse
                du = (given * scale - u * mean) * inverse
                store_lanes(
                    dweight, (part, at), load_lanes(dweight, (part, at), count) + given * normed, count
                )
                if z.size:
                    gate = load_lanes(z, (r, at), count)
                    s = sigmoid(gate)
                    slope = s * (gate * (1.0 - s) + 1.0)
                    if norm_before_gate:
                        dgate = load_lanes(dy, (r, at), count) * normed * scale
                    else:
                        dgate = du * load_lanes(x, (r, at), count)
                        du = du * gate * s
                    store_lanes(dz, (r, at), dgate * slope, count)
                store_lanes(dx, (r, at), du, count)
