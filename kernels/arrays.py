"""Tensors as memory for compiled loops."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

# numba compiles the CPU loops; without it everything runs in plain torch, slower
HAS_NUMBA = importlib.util.find_spec("numba") is not None

# what a compiled loop may read directly; subclasses may be traces without memory
_PLAIN = (Tensor, torch.nn.Parameter)
_COMPILED = (torch.float32, torch.float64)


def as_array(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """``tensor`` in ``dtype`` with unit stride in its last dimension; a view where it already is so."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    if tensor.stride(-1) != 1:
        # not .contiguous(): it leaves a last dimension of size one at any stride
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor.numpy()


def is_plain_cpu_call(*tensors: Tensor | None) -> bool:
    """Whether these have memory to read at once: on CPU, no gradient asked for, nothing traced."""
    if not HAS_NUMBA or torch.compiler.is_compiling():
        return False
    grad = torch.is_grad_enabled()
    for v in tensors:
        if v is None:
            continue
        if not v.is_cpu or type(v) not in _PLAIN or v.is_neg() or (grad and v.requires_grad):
            return False
    return True


def usual_addresses(
    dtype: torch.dtype, *wanted: tuple[Tensor | None, tuple[int, ...] | torch.Size]
) -> list[int] | None:
    """Where the numbers of each tensor begin, 0 for None; or None if one of them is not as usual.

    As usual: as in ``is_plain_cpu_call``, contiguous, and of the dtype and shape wanted. One call for all of
    it, because the steps of a stream are short; what is not as usual takes the longer way.
    """
    if not HAS_NUMBA or dtype not in _COMPILED or torch.compiler.is_compiling():
        return None
    grad = torch.is_grad_enabled()
    found = []
    for v, shape in wanted:
        if v is None:
            found.append(0)
        elif (
            type(v) in _PLAIN
            and v.dtype is dtype
            and v.shape == shape
            and v.is_cpu
            and v.is_contiguous()
            and not v.is_neg()
            and not (grad and v.requires_grad)
        ):
            found.append(v.data_ptr())
        else:
            return None
    return found


def step_memory(state: Tensor, *others: Tensor | None, inplace: bool) -> list[Tensor | None] | None:
    """``(state, *others)`` as a compiled step reads them, copied where they are not as usual.

    None if the step must run in torch, for gradients or on another device, or cannot write to ``state``.
    """
    dtype = state.dtype
    if dtype not in _COMPILED or (inplace and not state.is_contiguous()):
        return None
    if not is_plain_cpu_call(state, *others):
        return None
    return [None if v is None else v.detach().to(dtype).contiguous() for v in (state, *others)]


def addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """Where the numbers of each tensor begin, 0 for None."""
    return [0 if v is None else v.data_ptr() for v in tensors]
