"""Candidates of the GPU benchmarks: an op on its inputs, how it is run, and how it is compared with float64.

Each is checked at the full shape that is timed: its output's gradient is zero outside a small part (one row,
a few heads or channels), so that the part's output and every gradient are those of the part alone, which the
portable backend computes in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mambakit.kernels.testing import relative_error

Index = tuple[slice, ...]


@dataclass
class Candidate:
    """An op on inputs of its own layout.

    Attributes:
        inputs: What it takes, and what gradients go to.
        call: From the inputs by name to its outputs.
        exact: The same function in whatever precision its inputs have, through the portable backend.
        part: Where the check looks, for each input and output (``out0``, ...); empty for no check.
        writes: Inputs that a call overwrites; with any there is no backward pass.
    """

    inputs: dict[str, Tensor]
    call: Callable[..., tuple[Tensor, ...]]
    exact: Callable[..., tuple[Tensor, ...]]
    part: dict[str, Index]
    writes: tuple[str, ...] = ()


@dataclass
class Problem:
    """One line of the benchmark.

    Attributes:
        n_bytes: Least bytes moved, by pass.
        flops: Least work of the matrix units, by pass; 0 where there is none.
        candidates: How to make each, ours first; one may raise ImportError.
    """

    n_bytes: dict[str, float]
    flops: dict[str, float]
    candidates: dict[str, Callable[[], Candidate]] = field(default_factory=dict)


@dataclass(frozen=True)
class Error:
    """One tensor's distance from float64: relative root mean square, and relative to the largest value."""

    rms: float
    largest: float
    allowed: float

    @property
    def is_fine(self) -> bool:
        return self.largest <= self.allowed


def run_pass(candidate: Candidate, which: str) -> Callable[[], object]:
    """A function that runs the candidate once: ``fwd+bwd``, or only forward under any other name."""
    if which != "fwd+bwd":
        inputs = candidate.inputs

        def forward() -> object:
            with torch.no_grad():
                return candidate.call(**inputs)

        return forward
    leaves = {name: value.detach().requires_grad_() for name, value in candidate.inputs.items()}
    with torch.no_grad():
        cotangent = torch.randn_like(candidate.call(**candidate.inputs)[0])

    def forward_backward() -> object:
        return torch.autograd.grad(candidate.call(**leaves)[0], list(leaves.values()), cotangent)

    return forward_backward


def check(candidate: Candidate) -> dict[str, Error]:
    """Errors of the outputs and gradients in the candidate's part; empty if it has none.

    What is allowed is twice the error of the portable backend on inputs of the same precision, and eight
    units in the last place of the least precise input.
    """
    part = candidate.part
    if not part:
        return {}
    cut = {name: value[part[name]].detach().clone() for name, value in candidate.inputs.items()}
    inputs = candidate.inputs | {name: candidate.inputs[name].clone() for name in candidate.writes}
    pull = None
    if not candidate.writes:
        with torch.no_grad():
            pull = torch.randn_like(candidate.call(**inputs)[0][part["out0"]])
    everywhere: dict[str, Index] = dict.fromkeys(part, (...,))
    actual = _results(candidate.call, inputs, part, pull)
    naive = _results(candidate.exact, cut, everywhere, pull)
    exact = _results(candidate.exact, {n: v.double() for n, v in cut.items()}, everywhere, pull)
    eps = max(torch.finfo(value.dtype).eps for value in cut.values())
    errors = {}
    for name, wanted in exact.items():
        value = actual[name].double()
        rms = ((value - wanted).norm() / wanted.norm().clamp(min=1e-300)).item()
        allowed = 2 * relative_error(naive[name], wanted) + 8 * eps
        errors[name] = Error(rms, relative_error(value, wanted), allowed)
    return errors


def _results(
    call: Callable[..., tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
    part: dict[str, Index],
    pull: Tensor | None,
) -> dict[str, Tensor]:
    """Outputs and, with the gradient ``pull`` in the first one's part, gradients: all cut to their parts."""
    leaves = {name: value.detach().requires_grad_(pull is not None) for name, value in inputs.items()}
    outputs = call(**leaves)
    found = {f"out{i}": out.detach()[part[f"out{i}"]] for i, out in enumerate(outputs)}
    if pull is not None:
        cotangent = torch.zeros_like(outputs[0])
        cotangent[part["out0"]] = pull.to(cotangent.dtype)
        grads = torch.autograd.grad(outputs[0], list(leaves.values()), cotangent)
        found |= {f"d{name}": grad[part[name]] for name, grad in zip(leaves, grads, strict=True)}
    return found
