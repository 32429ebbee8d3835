"""A model's state as bytes, for a store: safetensors, no pickle."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.core.state import State, StateItem


def encode_state(state: State) -> bytes:
    """The tensors of a state by their dotted names, from whatever device."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors()}
    )


def decode_state(
    encoded: bytes, like: State, device: torch.device | str = "cpu", what: str = "the stored state"
) -> State:
    """The state that ``encode_state`` was given.

    Args:
        encoded: From ``encode_state``.
        like: A state of the same structure: the model's ``init_state(1)``, or ``compress`` of it. The tensors
            must have its dtypes and shapes, except where it has a dimension of 0: an attention's cache, or a
            list of what was seen, is empty at first and grows.
        device: Where to.
        what: What messages call it, such as "the state of user '42'".

    Raises:
        DataError: If these bytes are no state, or not one of the model that ``like`` is of.
    """
    try:
        tensors = safetensors.torch.load(encoded)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{what} can't be read ({error}); put the history in again") from error
    expected = dict(like.tensors())
    for name in expected:
        if name not in tensors:
            raise DataError(f"{what} is of another model: it lacks {name!r}")
    for name, tensor in tensors.items():
        if name not in expected:
            raise DataError(f"{what} is of another model: it holds {name!r}, which the model's hasn't")
        _check(what, name, tensor, expected[name])
    return _filled(like, {name: tensor.to(device) for name, tensor in tensors.items()})


def _check(what: str, name: str, tensor: Tensor, like: Tensor) -> None:
    fits = tensor.dim() == like.dim() and all(
        size in (0, stored) for stored, size in zip(tensor.shape, like.shape, strict=True)
    )
    if not fits or tensor.dtype != like.dtype:
        raise DataError(
            f"{what} is of another model: {name!r} is {tensor.dtype} {tuple(tensor.shape)}, "
            f"the model's {like.dtype} {tuple(like.shape)}"
        )


def _filled(like: State, tensors: dict[str, Tensor], prefix: str = "") -> State:
    """The tensors in the structure of ``like``, with the nested states that hold none."""
    items: dict[str, StateItem] = {}
    for name, item in like.items():
        whole = prefix + name
        items[name] = _filled(item, tensors, whole + ".") if isinstance(item, State) else tensors[whole]
    return State.of(**items)  # checked against ``like``
