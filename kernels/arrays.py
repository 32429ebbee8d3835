"""Tensors as numpy arrays for compiled loops."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

# numba compiles the CPU loops; without it everything runs in plain torch, slower
HAS_NUMBA = importlib.util.find_spec("numba") is not None


def as_array(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """``tensor`` in ``dtype`` with unit stride in its last dimension; a view where it already is so."""
    tensor = tensor.detach().to(dtype)
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
        if tensor.stride(-1) != 1:  # a last dimension of size one may keep any stride
            tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor.numpy()
