"""Tensors as numpy arrays for compiled loops."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

# numba compiles the CPU loops; without it everything runs in plain torch, slower
HAS_NUMBA = importlib.util.find_spec("numba") is not None

# what a compiled loop may read directly; subclasses may be traces without memory
_PLAIN = (Tensor, torch.nn.Parameter)


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
    """Whether these can be read as arrays at once: on CPU, no gradient asked for, nothing traced."""
    if not HAS_NUMBA or torch.compiler.is_compiling():
        return False
    grad = torch.is_grad_enabled()
    for v in tensors:
        if v is None:
            continue
        if not v.is_cpu or type(v) not in _PLAIN or (grad and v.requires_grad):
            return False
    return True
