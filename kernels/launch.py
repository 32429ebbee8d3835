"""What the Triton launchers share: when to launch at once, on which device, and what to tell the compiler."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether a kernel may be launched on these at once: they have memory, and nothing is traced."""
    return not torch.compiler.is_compiling() and all(v is None or type(v) in PLAIN for v in tensors)


def needs_grad(*tensors: object) -> bool:
    """Whether autograd wants to hear of a call on these."""
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in tensors)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: makes it the tensor's, where it is not so already."""
    if tensor.is_cuda and tensor.get_device() != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def unit_rows(tensor: Tensor) -> Tensor:
    """``tensor``, copied only where its last dimension is not contiguous."""
    if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()


def common_unit(*sizes: int) -> int:
    """8 or 1: what divides all these sizes and strides.

    Triton looks at a size for divisibility by 16 only. A kernel that gets ``size // unit`` and multiplies it
    by the constant unit keeps 16-byte access to rows of, say, 3,352 values.
    """
    for size in sizes:
        if size % 8:
            return 1
    return 8


def register_limit(tensor: Tensor, registers: int | None) -> dict[str, int]:
    """The launch option that holds a thread to ``registers``; Nvidia's backend alone has it."""
    if registers is None or not tensor.is_cuda or torch.version.hip:
        return {}
    return {"maxnreg": registers}


def asks_for_triton(tensor: object, backend: str | None) -> bool:
    """Whether a call on ``tensor`` may be one that ``Recordings`` know: a guess, for speed."""
    if torch.compiler.is_compiling():
        return False
    asked = backend or os.environ.get("MAMBAKIT_BACKEND")
    if asked:
        return asked == "triton"
    return isinstance(tensor, Tensor) and tensor.is_cuda


def dense_rows(tensor: Tensor | None) -> Tensor | None:
    """``tensor``, copied only where more than its first dimension is strided unlike a contiguous tensor."""
    if tensor is None:
        return None
    expected = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
