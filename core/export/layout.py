"""A state as the plain tensors that a program takes and gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch.utils._pytree as pytree
from torch import Tensor

from mambakit.core.state import State


class StateLayout:
    """The names and the nesting of a state's tensors.

    Args:
        like: Any state of the model.

    Attributes:
        names: Dotted, as ``State.tensors`` has them and in its order, for instance ``0.ssm``.
    """

    def __init__(self, like: State) -> None:
        self.names = [name for name, _ in like.tensors()]
        self._spec = pytree.tree_structure(like)

    @staticmethod
    def pack(state: State) -> dict[str, Tensor]:
        """The state's tensors by name, each contiguous: packages go by the strides they were shown."""
        return {name: tensor.contiguous() for name, tensor in state.tensors()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> State:
        """The inverse of ``pack``."""
        return pytree.tree_unflatten([tensors[name] for name in self.names], self._spec)
