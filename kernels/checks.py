"""Argument checks shared by every op: each names the argument, what was expected and what came."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensor(name: str, value: object) -> Tensor:
    """Return ``value`` as a tensor.

    Raises:
        TypeError: If it is not a tensor.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def check_float(name: str, value: Tensor) -> None:
    """Raise a TypeError unless ``value`` has a floating dtype the ops compute in."""
    check_tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise TypeError(
            f"{name}: expected a floating dtype ({wanted}), got {str(value.dtype).removeprefix('torch.')}"
        )


def check_shape(name: str, value: Tensor, **dims: int | None) -> None:
    """Raise a ValueError unless ``value`` has exactly these dimensions, in this order.

    ``None`` accepts any size. Example: ``check_shape("dt", dt, batch=2, length=None, n_heads=4)``.
    """
    check_tensor(name, value)
    sizes = tuple(dims.values())
    if value.shape == sizes:  # the quick way, for one-token steps
        return
    if value.dim() == len(sizes) and all(
        want is None or want == got for want, got in zip(sizes, value.shape, strict=True)
    ):
        return
    wanted = ", ".join(key if size is None else f"{key}={size}" for key, size in dims.items())
    raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(value.shape)}")


def check_same_device(reference_name: str, reference: Tensor, **others: Tensor | None) -> None:
    """Raise a ValueError unless every given tensor lives where ``reference`` lives."""
    for name, value in others.items():
        if value is not None and value.device != reference.device:
            raise ValueError(
                f"{name}: expected device {reference.device} (where {reference_name} is), got {value.device}"
            )


def check_seq_idx(seq_idx: Tensor, *, batch: int, length: int) -> None:
    """Raise unless ``seq_idx`` is ``(batch, length)`` int32.

    Its order inside a row (non-decreasing) is part of the contract but not read here: reading it
    would force a device synchronisation on every call.
    """
    check_shape("seq_idx", seq_idx, batch=batch, length=length)
    if seq_idx.dtype != torch.int32:
        raise TypeError(
            f"seq_idx: expected dtype int32, got {str(seq_idx.dtype).removeprefix('torch.')}; "
            "convert with seq_idx.int()"
        )


def check_groups(n_groups: int, n_channels: int, channels_name: str) -> None:
    """Raise unless the groups of B and C divide the channels (or heads) that share them."""
    if n_groups < 1 or n_channels % n_groups:
        raise ValueError(
            f"B: n_groups must divide {channels_name}={n_channels} and be at least 1, got n_groups={n_groups}"
        )


def check_dt_limit(dt_limit: tuple[float, float]) -> tuple[float, float]:
    """Return ``(low, high)`` as floats, or raise a ValueError if it is no interval."""
    low, high = dt_limit
    low, high = float(low), float(high)
    if not low <= high:
        raise ValueError(f"dt_limit: expected (low, high) with low <= high, got {tuple(dt_limit)}")
    return low, high
