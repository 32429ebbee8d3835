"""``mambakit::recurrent_fwd`` and ``_bwd``: torch's GRU and LSTM over a sequence as ops of a known shape.

Traced, torch's own unroll into the steps of one length. As custom ops with fake implementations and a
registered backward they are opaque to torch.compile and torch.export, and serve any length. The backward
runs the sequence again, as torch's own results cannot leave the op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SEQUENCE: dict[str, Callable[..., Any]] = {"GRU": torch.gru, "LSTM": torch.lstm}


def forward(kind: str, x: Tensor, past: list[Tensor], weights: list[Tensor], bias: bool) -> list[Tensor]:
    """Hidden states ``(batch, length, d_hidden)``, and the last states as ``past`` has the first.

    Args:
        kind: ``"GRU"`` or ``"LSTM"``.
        x: ``(batch, length, d_input)``.
        past: The states before, ``(1, batch, d_hidden)`` each: one of a GRU, two of an LSTM.
        weights: Of one layer, in the order of ``nn.RNNBase``.
        bias: Whether there are biases among them.
    """
    return recurrent_fwd(kind, x, past, weights, bias)


def _run(
    kind: str, x: Tensor, past: list[Tensor], weights: list[Tensor], bias: bool, train: bool
) -> list[Tensor]:
    carried = past[0] if len(past) == 1 else past
    return list(_SEQUENCE[kind](x, carried, weights, bias, 1, 0.0, train, False, True))


@torch.library.custom_op("mambakit::recurrent_fwd", mutates_args=())
def recurrent_fwd(
    kind: str, x: Tensor, past: list[Tensor], weights: list[Tensor], bias: bool
) -> list[Tensor]:
    """See ``forward``."""
    with torch.no_grad():
        return [one.contiguous() for one in _run(kind, x, past, weights, bias, False)]


@recurrent_fwd.register_fake
def _(kind: str, x: Tensor, past: list[Tensor], weights: list[Tensor], bias: bool) -> list[Tensor]:
    y = x.new_empty((*x.shape[:2], past[0].shape[2]))
    return [y, *(one.new_empty(one.shape) for one in past)]


# not torch.library.custom_op: autograd, which this runs, is off inside one
torch.library.define(
    "mambakit::recurrent_bwd",
    "(str kind, Tensor[] grads, Tensor x, Tensor[] past, Tensor[] weights, bool bias) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)


@torch.library.impl("mambakit::recurrent_bwd", "CompositeExplicitAutograd")
def _(
    kind: str, grads: list[Tensor], x: Tensor, past: list[Tensor], weights: list[Tensor], bias: bool
) -> list[Tensor]:
    """Gradients of ``x``, ``past`` and ``weights``, in a row, from those of what ``forward`` gives."""
    n = len(past)
    with torch.enable_grad():
        inputs = [one.detach().requires_grad_() for one in (x, *past, *weights)]
        outputs = _run(kind, inputs[0], inputs[1 : 1 + n], inputs[1 + n :], bias, True)
        found = torch.autograd.grad(outputs, inputs, grads)
    return [one.contiguous() for one in found]


@torch.library.register_fake("mambakit::recurrent_bwd")
def _(
    kind: str, grads: list[Tensor], x: Tensor, past: list[Tensor], weights: list[Tensor], bias: bool
) -> list[Tensor]:
    return [one.new_empty(one.shape) for one in (x, *past, *weights)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.kind, x, past, weights, ctx.bias = inputs
    ctx.n_past = len(past)
    ctx.save_for_backward(x, *past, *weights)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    past, weights = rest[: ctx.n_past], rest[ctx.n_past :]
    found = torch.ops.mambakit.recurrent_bwd(ctx.kind, list(grads), x, past, weights, ctx.bias)
    return None, found[0], found[1 : 1 + ctx.n_past], found[1 + ctx.n_past :], None


recurrent_fwd.register_autograd(_backward, setup_context=_setup)
