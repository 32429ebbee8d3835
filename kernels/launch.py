"""What the Triton launchers share: when to launch at once, on which device, and what to tell the compiler."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

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


def asks_for_triton(state: object, backend: str | None) -> bool:
    """Whether a step on ``state`` may be one that ``StepPlans`` knows: a guess, for speed."""
    if torch.compiler.is_compiling():
        return False
    asked = backend or os.environ.get("MAMBAKIT_BACKEND")
    if asked:
        return asked == "triton"
    return isinstance(state, Tensor) and state.is_cuda


class Plan:
    """A kernel ready to be launched on tensors of one make.

    Args:
        kernel: Takes the tensors first, then ``rest``, by position.
        grid: Its number of programs.
        rest: Numbers and constants.
        num_warps: Of a program.
    """

    __slots__ = ("_compiled", "grid", "kernel", "num_warps", "rest")

    def __init__(
        self, kernel: Any, grid: tuple[int, int, int], rest: tuple[Any, ...], num_warps: int
    ) -> None:
        self.kernel, self.grid, self.rest, self.num_warps = kernel, grid, rest, num_warps
        self._compiled: Any = None  # stays None under the interpreter

    def launch(self, tensors: tuple[Tensor | None, ...], addresses: list[int | None]) -> None:
        if self._compiled is None:
            self._compiled = self.kernel[self.grid](*tensors, *self.rest, num_warps=self.num_warps)
        else:  # past Triton's look at every argument, which takes longer than a step
            self._compiled[self.grid](*addresses, *self.rest)


class StepPlans:
    """The launches of a one-token step, by the make of its arguments.

    Checks, the choice of backend and tiles, and Triton's look at each argument depend on dtypes, shapes,
    strides, device, 16-byte alignment and options, and not on the numbers: they are done once for each make.
    A stream of tokens then pays for finding the plan.

    Args:
        make_plan: From ``(tensors, options)`` to the plan. It is called with checked arguments only.
    """

    def __init__(self, make_plan: Callable[[tuple[Any, ...], tuple[Any, ...]], Plan]) -> None:
        self._make_plan = make_plan
        self._plans: dict[Hashable, Plan] = {}

    def run(
        self, tensors: tuple[Tensor | None, ...], options: tuple[Hashable, ...], inplace: bool, checked: bool
    ) -> tuple[Tensor, Tensor] | None:
        """``(y, new_state)`` of ``tensors = (state, x, ...)``.

        None for arguments of a make not seen before unless ``checked``, and for those that need gradients.
        ``checked``: and laid out as the kernel reads them.
        The kernel gets ``y`` and the new state as its first two arguments.
        """
        grad = torch.is_grad_enabled()
        key: list[Hashable] = [options]
        addresses: list[int | None] = [0, 0]
        low_bits = 0
        for v in tensors:
            if v is None:
                key.append(None)
                addresses.append(None)
                continue
            if type(v) not in PLAIN or (grad and v.requires_grad):
                return None
            address = v.data_ptr()
            low_bits |= address
            addresses.append(address)
            key += (v.dtype, v.shape, v.stride(), v.get_device())
        if low_bits & 15:
            key.append(tuple(None if at is None else at & 15 == 0 for at in addresses))
        made = tuple(key)
        plan = self._plans.get(made)
        if plan is None:
            if not checked:
                return None
            plan = self._plans[made] = self._make_plan(tensors, options)
        state, x = tensors[0], tensors[1]
        assert state is not None
        assert x is not None
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        new_state = state if inplace else torch.empty_like(state)
        addresses[0], addresses[1] = y.data_ptr(), new_state.data_ptr()
        if not state.is_cuda or state.get_device() == torch.cuda.current_device():
            plan.launch((y, new_state, *tensors), addresses)
        else:
            with torch.cuda.device(state.device):
                plan.launch((y, new_state, *tensors), addresses)
        return y, new_state


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
