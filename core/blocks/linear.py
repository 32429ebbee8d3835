"""What a block's linear maps are: plain, so that a kernel may read their weights, or adapted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all


def weight_of(linear: nn.Module) -> Tensor:
    """``(d_output, d_input)`` of a linear map: that of an adapted one too, as it is without dropout."""
    if type(linear) is nn.Linear:
        return linear.weight
    kept = linear.weight  # of the map that is adapted
    assert isinstance(kept, Tensor)
    was_training = linear.training
    linear.eval()
    rows = linear(torch.cat([torch.eye(kept.shape[1], device=kept.device, dtype=kept.dtype), kept[:1] * 0.0]))
    linear.train(was_training)
    return (rows[:-1] - rows[-1:]).T


def plain_linear(modules: Mapping[str, nn.Module | None], *names: str) -> list[dict[str, Any]] | None:
    """Weight and bias of each of these modules if calling it is ``F.linear`` with them, else None.

    As far as no gradient flows; never while a graph is traced, which so does not come to depend on it.
    """
    return plain_parameters(modules, nn.Linear, {"weight", "bias"}, *names)


def plain_parameters(
    modules: Mapping[str, nn.Module | None], kind: type[nn.Module], own: set[str], *names: str
) -> list[dict[str, Any]] | None:
    """As ``plain_linear``, of modules of the very class ``kind``, whose parameters are ``own``."""
    if torch.compiler.is_compiling():
        return None
    found: list[dict[str, Any]] = []
    for name in names:
        module = modules.get(name)
        if type(module) is not kind or module._parameters.keys() != own or watched([module]):
            return None
        found.append(module._parameters)
    return found


def watched(modules: Iterable[nn.Module]) -> bool:
    """Whether calling one of these modules does more than its class says: a hook, or a forward of its own."""
    if hooks_of_all._global_forward_hooks or hooks_of_all._global_forward_pre_hooks:
        return True
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in modules
    )
