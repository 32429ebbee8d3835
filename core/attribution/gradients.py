"""Integrated gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365) and gradient times input.

Own code and not Captum's: importing that takes seconds and draws in pyplot, for what is the forty lines
below. A test compares the two where Captum is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# share of what is explained that may be missing before more steps are taken
_LARGE_GAP = 0.01


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    """What each input adds to the difference between a function at the inputs and at the baseline.

    Attributes:
        scores: Shaped as the inputs; they sum, up to the gap, to ``value - baseline_value`` (completeness).
        value: The function at the inputs, ``(batch,)``.
        baseline_value: The function at the baseline, ``(batch,)``.
    """

    scores: Tensor
    value: Tensor
    baseline_value: Tensor

    @property
    def gap(self) -> Tensor:
        """By how much completeness fails, ``(batch,)``: the error of the quadrature; more steps lessen
        it."""
        return (self.scores.flatten(1).sum(1) - (self.value - self.baseline_value)).abs()


def integrated_gradients(
    function: Function,
    inputs: Tensor,
    baseline: Tensor | float = 0.0,
    *,
    steps: int = 32,
    rows_per_call: int = 32,
) -> IntegratedGradients:
    """Mean gradient along the straight path from the baseline, times the way: eq. 1 of the paper.

    The integral is a Gauss-Legendre sum, exact where the function along the path is a polynomial of degree
    up to ``2 * steps``.

    Args:
        function: ``(rows, ...)`` to ``(rows,)``, differentiable, each row on its own; the number of rows
            differs from call to call.
        inputs: ``(batch, ...)`` floats: embeddings of ids, or continuous channels.
        baseline: What stands for "nothing there", a number or broadcast to the inputs' shape.
        steps: Points on the path.
        rows_per_call: Rows that the function gets at once, for the memory.

    Raises:
        TypeError: If the inputs are no floating-point tensor.
        ValueError: On ``steps`` or ``rows_per_call`` below 1, a baseline of another shape, or a function
            whose result is not ``(rows,)`` or does not depend on the inputs.
    """
    _check(inputs, rows_per_call)
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    inputs = inputs.detach()
    start = baseline_like(inputs, baseline)
    nodes, weights = leggauss(steps)
    points = torch.as_tensor((nodes + 1) / 2, dtype=inputs.dtype, device=inputs.device)
    shares = torch.as_tensor(weights / 2, dtype=inputs.dtype, device=inputs.device)
    batch, way = inputs.shape[0], inputs - start
    mean = torch.zeros_like(inputs)
    pairs = torch.arange(steps * batch, device=inputs.device)  # each point on the path of each row
    for chunk in pairs.split(rows_per_call):
        step, row = chunk // batch, chunk % batch
        at = start[row] + _per_row(points[step], inputs) * way[row]
        mean.index_add_(0, row, _per_row(shares[step], inputs) * _gradient(function, at))
    with torch.no_grad():
        value, baseline_value = evaluate(function, inputs), evaluate(function, start)
    return IntegratedGradients(mean * way, value, baseline_value)


def complete_integrated_gradients(
    function: Function,
    inputs: Tensor,
    baseline: Tensor | float = 0.0,
    *,
    steps: int = 32,
    most_steps: int = 256,
    enough: float = 0.0,
    rows_per_call: int = 32,
) -> IntegratedGradients:
    """``integrated_gradients`` in as many steps as completeness takes.

    Steps are doubled, up to ``most_steps``, while a row's gap is more than a hundredth of the difference that
    is explained, and more than ``enough``. Arguments and errors as in ``integrated_gradients``.
    """
    while True:
        found = integrated_gradients(function, inputs, baseline, steps=steps, rows_per_call=rows_per_call)
        allowed = (_LARGE_GAP * (found.value - found.baseline_value).abs()).clamp(min=enough)
        if steps >= most_steps or not bool((found.gap > allowed).any()):
            return found
        steps = min(2 * steps, most_steps)


def gradient_times_input(
    function: Function, inputs: Tensor, baseline: Tensor | float = 0.0, *, rows_per_call: int = 32
) -> Tensor:
    """Gradient at the inputs times their distance from the baseline, shaped as the inputs.

    One backward pass instead of ``steps``; equal to integrated gradients for a linear function, and blind
    to what has saturated. Arguments and errors as in ``integrated_gradients``.
    """
    _check(inputs, rows_per_call)
    inputs = inputs.detach()
    gradient = torch.cat([_gradient(function, chunk) for chunk in inputs.split(rows_per_call)])
    return gradient * (inputs - baseline_like(inputs, baseline))


def baseline_like(inputs: Tensor, baseline: Tensor | float) -> Tensor:
    """``baseline`` broadcast to the inputs' shape, in their dtype.

    Raises:
        ValueError: If it does not broadcast.
    """
    given = torch.as_tensor(baseline, device=inputs.device).detach().to(inputs.dtype)
    try:
        return given.expand_as(inputs)
    except RuntimeError:
        raise ValueError(
            f"baseline: expected a number or a shape that broadcasts to {tuple(inputs.shape)}, "
            f"got {tuple(given.shape)}"
        ) from None


def evaluate(function: Function, inputs: Tensor) -> Tensor:
    """``function(inputs)``, checked to be ``(rows,)``.

    Raises:
        ValueError: If it is not.
    """
    values = function(inputs)
    if not isinstance(values, Tensor) or values.shape != inputs.shape[:1]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"function: expected one number a row, shape {tuple(inputs.shape[:1])}, got {got}")
    return values


def _gradient(function: Function, at: Tensor) -> Tensor:
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        values = evaluate(function, at)
        if not values.requires_grad:
            raise ValueError("function: its result does not depend on the inputs (or was cut off by no_grad)")
        (gradient,) = torch.autograd.grad(values.sum(), at, allow_unused=True)
    if gradient is None:
        raise ValueError("function: its result does not depend on the inputs (or was cut off by detach)")
    return gradient


def _check(inputs: Tensor, rows_per_call: int) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 1:
        got = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(
            f"inputs: expected floats (batch, ...), got {got}; ids have no gradient, give their embeddings"
        )
    if rows_per_call < 1:
        raise ValueError(f"rows_per_call: expected at least 1, got {rows_per_call}")


def _per_row(values: Tensor, inputs: Tensor) -> Tensor:
    return values.view(-1, *(1 for _ in inputs.shape[1:]))
