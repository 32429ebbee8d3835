"""``ssd`` on Triton, and its autograd function. Only inputs are saved for backward.

The kernels and their formulas are in ``gpu_forward`` and ``gpu_backward``, the choice of their sizes in
``gpu_config``, their launches in ``gpu_launch``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambakit.kernels.launch import needs_grad
from mambakit.kernels.recording import Found, Options, Recordings
from mambakit.kernels.ssd.gpu_config import (
    N_TENSORS,
    Backward,
    BackwardByHeads,
    Forward,
    Inputs,
    backward_configs,
    forward_configs,
    sizes_of,
)
from mambakit.kernels.ssd.gpu_launch import run_forward
from mambakit.kernels.ssd.gpu_launch_backward import finish_backward, run_backward
from mambakit.kernels.ssd.gpu_launch_heads import run_backward_by_heads
from mambakit.kernels.tape import Tape, Tensors
from mambakit.kernels.tuning import first_that_fits


def ssd_triton(tensors: Tensors, options: Options, *, checked: bool) -> tuple[Tensor, Tensor | None] | None:
    """``(y, final_state)``, the state None unless asked for.

    Args:
        tensors: The tensors of ``Inputs``.
        options: ``dt_softplus, dt_limit, chunk_size, return_final_state``.
        checked: Unless so, the result is None for arguments of a make not seen before.
    """
    if checked:
        if needs_grad(*tensors):
            return _SSD.apply(None, options, *tensors)
        return _forward.run(tensors, options)
    found = _forward.find(tensors, options)
    if found is None:
        return None
    if found.needs_grad:
        return _SSD.apply(found, found.recording.options, *tensors)
    return found.recording.play(tensors, found.addresses)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: Found | None, options: Options, *tensors: Any) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.options = options
        ctx.set_materialize_grads(False)
        if found is not None:
            return found.recording.play(tensors, found.addresses)
        return _forward.run(tensors, options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> Any:
        tensors = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros_like(tensors[0])
        return None, None, *_gradients(tensors, ctx.options, dy, dfinal), None


def forward(inputs: Inputs, chunk_size: int | None, return_final_state: bool) -> tuple[Tensor, Tensor | None]:
    """See ``ssd_triton``; unknown to autograd."""
    softplus, low, high = inputs[N_TENSORS:]
    y, final = _forward.run(inputs[:N_TENSORS], (softplus, (low, high), chunk_size, return_final_state))
    return y, final


def backward(
    inputs: Inputs, dy: Tensor, dfinal: Tensor | None, chunk_size: int | None
) -> tuple[Tensor | None, ...]:
    """The gradients of ``inputs.x`` to ``inputs.own_scale``; None where nothing was given."""
    softplus, low, high = inputs[N_TENSORS:]
    return _gradients(inputs[:N_TENSORS], (softplus, (low, high), chunk_size), dy, dfinal)


def _gradients(
    tensors: Tensors, options: Options, dy: Tensor, dfinal: Tensor | None
) -> tuple[Tensor | None, ...]:
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    parts = _backward.run((*tensors, dy, dfinal), options[:3])
    return finish_backward(tensors, parts)


def launch_forward(
    tape: Tape, tensors: Tensors, options: Options, config: Forward | None = None
) -> tuple[Tensor, Tensor | None]:
    """As ``ssd_triton``. ``config`` overrides the choice."""
    softplus, (low, high), chunk_size, return_final_state = options
    inputs = _in_rows(Inputs._make((*tensors, softplus, low, high)))
    x = inputs.x
    sizes = sizes_of(x, inputs.B, inputs.C)

    def launch(config: Forward) -> tuple[Tensor, Tensor | None]:
        tape.restart()
        return run_forward(tape, inputs, sizes, config, return_final_state)

    if config is not None:
        return launch(config)
    configs = forward_configs(inputs, sizes, chunk_size)
    key = ("ssd forward", x.device, sizes, x.dtype, inputs.D is None, inputs.z is None, configs)
    return first_that_fits(key, configs, launch)


def launch_backward(
    tape: Tape, tensors: Tensors, options: Options, config: Backward | BackwardByHeads | None = None
) -> tuple[Tensor | None, ...]:
    """For ``finish_backward``. ``config`` overrides the choice."""
    *given, dy, dfinal = tensors
    softplus, (low, high), chunk_size = options
    inputs = _in_rows(Inputs._make((*given, softplus, low, high)))
    x = inputs.x
    sizes = sizes_of(x, inputs.B, inputs.C)

    def launch(config: Backward | BackwardByHeads) -> tuple[Tensor | None, ...]:
        tape.restart()
        if isinstance(config, BackwardByHeads):
            return run_backward_by_heads(tape, inputs, dy, dfinal, sizes, config)
        return run_backward(tape, inputs, dy, dfinal, sizes, config)

    if config is not None:
        return launch(config)
    configs = backward_configs(inputs, sizes, chunk_size)
    key = ("ssd backward", x.device, sizes, x.dtype, inputs.D is None, inputs.z is None, configs)
    return first_that_fits(key, configs, launch)


# what the kernels read as it lies in memory, without strides
_WHOLE = ("A", "dt_bias", "initial_state", "B_bias", "C_bias", "angles", "seq_idx")

_forward = Recordings(launch_forward)
_backward = Recordings(launch_backward)


def _in_rows(inputs: Inputs) -> Inputs:
    """Copies only what lies in a way the kernels do not read."""
    rows = {"x": inputs.x, "B": inputs.B, "C": inputs.C, "z": inputs.z}
    whole = {name: getattr(inputs, name) for name in _WHOLE}
    if inputs.D is not None and inputs.D.dim() < 3:
        whole["D"] = inputs.D
    copied: dict[str, Any] = {
        name: v.contiguous() for name, v in rows.items() if v is not None and v.stride(-1) != 1
    }
    copied |= {name: v.contiguous() for name, v in whole.items() if v is not None and not v.is_contiguous()}
    return inputs._replace(**copied) if copied else inputs
