"""What layers ask training to minimise besides the loss, such as the load balance of a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Held:
    """A tensor of the last forward pass; copies and pickles of its owner go without it and its graph."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        return Held()

    def __reduce__(self) -> tuple[Callable[[], Held], tuple[()]]:
        return Held, ()


def auxiliary_loss(model: nn.Module) -> Tensor | float:
    """The sum of what the backbones inside a model asked for in their last forward pass.

    Already weighted (``balance_weight``, ``z_weight`` of ``moe``): add it to the loss before ``backward``.
    Zero where no layer asks for anything, and after a pass in evaluation mode.
    """
    found = [getattr(module, "auxiliary", None) for module in model.modules()]
    values = [held.value for held in found if isinstance(held, Held) and held.value is not None]
    return torch.stack(values).sum() if values else 0.0
