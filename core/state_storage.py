"""States in two bytes or one a number, for keeping them between requests.

    small = compress(state, "int8")
    small.save("user-17.safetensors")
    state = decompress(State.load("user-17.safetensors"))

A compressed state is a ``State`` too: its rows can be selected, joined, moved and saved. Only what goes on
computing needs it decompressed. ``benchmarks/state_precision.py`` measures what is lost. Matrices of few
directions become still smaller by ``mambakit.core.state_low_rank`` before: ``compress(low_rank(state, 4),
"int8")``; ``decompress`` undoes both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.core.state import State
from mambakit.core.state_low_rank import LEFT, LIKE, product

PRECISIONS = ("bfloat16", "int8")
SCALES = ("channel", "head", "row")

# A compressed tensor is a nested state: values, with int8 their scales, and an empty tensor of the old dtype.


def compress(state: State, precision: str, scale: str = "channel") -> State:
    """The state with every float tensor in fewer bytes; masks, counters and what is as small already stay.

    With ``"int8"`` a group of numbers shares a scale in bfloat16: the error is at most 1/250 of the group's
    largest magnitude. A number in bfloat16 keeps 8 bits: the error is at most 1/256 of the number itself.

    Args:
        state: From ``forward`` or ``step``; no gradients flow through.
        precision: ``"bfloat16"`` or ``"int8"``.
        scale: Who shares an int8 scale: ``"channel"``: the numbers of the last dimension (``d_state`` of a
            channel, ``head_dim`` of a cached key); ``"head"``: all of the first dimension after the
            batch; ``"row"``: all of a row's tensor. The measured loss is least by channel.

    Raises:
        ValueError: On another precision or scale, or numbers that are not finite.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    least = 2 if precision == "bfloat16" else 1
    items: dict[str, Any] = {}
    for name, item in state.items():
        if isinstance(item, State):
            items[name] = compress(item, precision, scale)
        elif name == LIKE or not item.is_floating_point() or item.element_size() <= least:
            items[name] = item
        else:
            values = item.detach()
            kept = (
                {"bfloat16": values.to(torch.bfloat16)}
                if precision == "bfloat16"
                else _int8(name, values, scale)
            )
            items[name] = State({**kept, LIKE: values.new_empty(len(values), 0)})
    return State(items)


def decompress(state: State) -> State:
    """The inverse of ``compress`` and ``low_rank``, in the dtypes the state had; anything else stays."""
    items: dict[str, Any] = {}
    for name, item in state.items():
        if not isinstance(item, State):
            items[name] = item
        elif LEFT in item:
            items[name] = product(decompress(item))
        elif LIKE in item:
            items[name] = _restored(item)
        else:
            items[name] = decompress(item)
    return State(items)


def _int8(name: str, values: Tensor, scale: str) -> dict[str, Tensor]:
    first = {"channel": max(values.dim() - 1, 1), "head": min(2, values.dim()), "row": 1}[scale]
    shared = tuple(range(first, values.dim()))
    wide = values.double() if values.dtype == torch.float64 else values.float()
    if not bool(wide.isfinite().all()):
        raise ValueError(f"state: {name!r} holds numbers that are not finite, which int8 cannot keep")
    sizes = wide.abs()
    largest = sizes.amax(shared, keepdim=True) if sizes.numel() else sizes.sum(shared, keepdim=True)
    # rounded up, so that the largest still fits
    scales = (largest / 127 * (1 + 2**-8)).to(torch.bfloat16)
    # a group of zeros has no scale; the least normal number keeps the quotient finite
    steps = (wide / scales.to(wide.dtype).clamp(min=torch.finfo(torch.bfloat16).tiny)).round()
    return {"int8": steps.clamp(-127, 127).to(torch.int8), "scale": scales}


def _restored(item: State) -> Tensor:
    dtype = item[LIKE].dtype
    if "bfloat16" in item:
        return item["bfloat16"].to(dtype)
    return (item["int8"].to(torch.promote_types(dtype, torch.float32)) * item["scale"]).to(dtype)
