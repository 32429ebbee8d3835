"""What ``Tokens`` and ``TokenBatch`` check about their tensors, and the error for a bad sample."""

from __future__ import annotations

import torch
from torch import Tensor

from mambakit.core.errors import DataError


class SampleError(DataError):
    """A sample that can't be encoded; the message names the sample (where known) and the reason.

    Attributes:
        reason: What is wrong with the sample.
        index: The sample's place in its data set, or None where it came alone.
    """

    def __init__(self, reason: str, *, sample: object = None, index: int | None = None) -> None:
        self.reason = reason
        self.index = index
        where = "" if index is None else f"sample {index}"
        if sample is not None:
            shown = repr(sample)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            where = f"{where} ({shown})" if where else f"sample {shown}"
        super().__init__(f"{where}: {reason}" if where else reason)


def dtype_name(value: Tensor) -> str:
    """The dtype without its ``torch.`` prefix."""
    return str(value.dtype).removeprefix("torch.")


def check_values(values: object, *, leading: tuple[str, ...]) -> None:
    """Raise unless ``values`` are int64 ids or float32 channels of a fitting shape.

    Args:
        values: What came.
        leading: Names of the dimensions before the fields or channels.
    """
    dims = ", ".join(leading)
    alone = f"({dims})" if len(leading) > 1 else f"({dims},)"
    wanted = f"{alone} or ({dims}, n_fields) int64 ids, or ({dims}, d_input) float32 channels"
    if not isinstance(values, Tensor):
        raise TypeError(f"values: expected a torch.Tensor of {wanted}, got {type(values).__name__}")
    if values.dtype not in (torch.int64, torch.float32):
        raise TypeError(f"values: expected {wanted}, got {dtype_name(values)}")
    n_extra = values.dim() - len(leading)
    if n_extra not in ((0, 1) if values.dtype == torch.int64 else (1,)):
        raise ValueError(
            f"values: expected {wanted}, got {dtype_name(values)} of shape {tuple(values.shape)}"
        )


def check_companion(
    name: str,
    value: object,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device | None = None,
) -> None:
    """Raise unless ``value`` is None or a tensor of this dtype and shape, beside ``values``."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor or None, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {str(dtype).removeprefix('torch.')}, got {dtype_name(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape} to go with values, got {tuple(value.shape)}")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected device {device} (where values is), got {value.device}")


def first_place(bad: Tensor) -> tuple[int, ...]:
    """Index of the first True; ``bad`` must hold one."""
    return tuple(int(i) for i in torch.nonzero(bad)[0])


def value_fault(values: Tensor, mask: Tensor | None = None) -> str:
    """One sentence on the first NaN, infinity or negative id (where ``mask`` is True), or ""."""
    bad = ~torch.isfinite(values) if values.is_floating_point() else values < 0
    if mask is not None:
        bad &= mask.view(*mask.shape, *(1,) * (values.dim() - mask.dim()))
    if not bool(bad.any()):
        return ""
    place = first_place(bad)
    number = values[place].item()
    n_leading = 1 if mask is None else 2
    where, column = _where(place[:n_leading]), place[n_leading:]
    if values.is_floating_point():
        name = "NaN" if number != number else f"{number}"
        return (
            f"values: {name} at {where}, channel {column[0]}; "
            "fill it and mark it in a channel of its own, or drop the sample"
        )
    field = f", field {column[0]}" if column else ""
    return f"values: id {number} at {where}{field}; ids are >= 0"


def time_fault(time: Tensor, gaps: Tensor, mask: Tensor | None = None) -> str:
    """One sentence on the first stamp that isn't finite or lies before the one it follows, or ""."""
    bad = ~torch.isfinite(time)
    if mask is not None:
        bad &= mask
    if bool(bad.any()):
        return f"time: {time[first_place(bad)].item()} at {_where(first_place(bad))}"
    back = gaps < 0
    if not bool(back.any()):
        return ""
    place = first_place(back)
    now = time[place].item()
    return f"time: {now} at {_where(place)} follows {now - gaps[place].item()}; sort the sample by time first"


def modality_fault(modality: Tensor, mask: Tensor | None = None) -> str:
    """One sentence on the first negative modality, or ""."""
    bad = modality < 0
    if mask is not None:
        bad &= mask
    if not bool(bad.any()):
        return ""
    return f"modality: {modality[first_place(bad)].item()} at {_where(first_place(bad))}; modalities are >= 0"


def _where(place: tuple[int, ...]) -> str:
    return f"position {place[0]}" if len(place) == 1 else f"row {place[0]}, position {place[1]}"
