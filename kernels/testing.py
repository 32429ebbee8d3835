"""Tools for testing ops: run forward and backward at once, and judge errors by the arithmetic's own.

A result in a low precision is right when it is about as close to the float64 answer as the plain
reference computed in the same precision is; no tolerance is picked by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """``max |actual - exact| / max |exact|`` in float64 (absolute where ``exact`` is all zero)."""
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} is not {tuple(exact.shape)}")
    if exact.numel() == 0:
        return 0.0
    difference = (actual.double() - exact.double()).abs().max().item()
    if difference != difference:
        return float("inf")
    scale = exact.double().abs().max().item()
    return difference / scale if scale > 0 else difference


def assert_as_accurate(
    name: str, actual: Tensor, *, exact: Tensor, naive: Tensor, slack: float = 2.0
) -> None:
    """Fail unless ``actual`` is as near to ``exact`` as ``naive`` is, within ``slack`` and a few ulps.

    In float64 ``naive`` is ``exact`` and says nothing of roundings, which sums that cancel make larger: more
    ulps then.

    Args:
        name: What is compared, for the message.
        actual: The result under test.
        exact: The same quantity from the reference in float64.
        naive: The same quantity from the reference in the precision of ``actual``.
        slack: How many times the naive error is allowed.
    """
    eps = torch.finfo(actual.dtype).eps
    allowed = slack * relative_error(naive, exact) + (128 if actual.dtype == torch.float64 else 8) * eps
    error = relative_error(actual, exact)
    if not error <= allowed:
        raise AssertionError(f"{name}: relative error {error:.3e}, allowed {allowed:.3e} ({actual.dtype})")


def forward_backward(
    op: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Mapping[str, Tensor | None],
    cotangents: Sequence[Tensor],
    **options: object,
) -> dict[str, Tensor]:
    """Run ``op(**inputs, **options)`` and pull ``cotangents`` back.

    Returns the outputs as ``out0``, ``out1``, ... and the gradient of every floating input as ``d<name>``.
    """
    leaves: dict[str, Tensor | None] = {}
    for name, value in inputs.items():
        if value is not None and value.is_floating_point():
            leaves[name] = value.detach().clone().requires_grad_()
        else:
            leaves[name] = value
    outputs = op(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    named = {name: leaf for name, leaf in leaves.items() if leaf is not None and leaf.requires_grad}
    # an empty sequence's outputs may depend on nothing
    reached = [(out, ct) for out, ct in zip(outputs, cotangents, strict=True) if out.requires_grad]
    grads = (
        torch.autograd.grad(
            [out for out, _ in reached],
            list(named.values()),
            [ct.to(out.dtype) for out, ct in reached],
            allow_unused=True,
        )
        if reached
        else [None] * len(named)
    )
    result = {f"out{i}": out.detach() for i, out in enumerate(outputs)}
    for (name, leaf), grad in zip(named.items(), grads, strict=True):
        result[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad
    return result


def cast(inputs: Mapping[str, Tensor | None], dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Every floating tensor of ``inputs`` in ``dtype``."""
    return {
        name: value.to(dtype) if value is not None and value.is_floating_point() else value
        for name, value in inputs.items()
    }
