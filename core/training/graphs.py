"""CUDA graphs of a training loss: one launch in place of the hundreds of small kernels of a small model."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

# The last batch of an epoch is smaller and comes once an epoch: only shapes that come often are recorded.
_RECORD_AT = 3
_MOST_GRAPHS = 4


class GraphedLoss:
    """Calls a loss on a GPU as a CUDA graph, forward and backward, one graph for each set of input shapes.

    Where a model is small, the CPU that launches its kernels is slower than the GPU that runs them. A set of
    shapes is recorded when it comes for the third time, for four sets at most; until then, elsewhere than on
    a GPU, under autocast and without gradients the loss is called as it is. Dropout draws new numbers at
    every call.

    Args:
        loss: A module in training mode whose ``forward`` takes tensors alone and gives one scalar. It must
            not read a tensor's value on the CPU (``item``, data-dependent shapes), and its parameters stay
            where they are.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._graphs: dict[tuple[object, ...], nn.Module] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The loss; its graph's own memory, overwritten by the next call of the same shapes."""
        if not inputs[0].is_cuda or not torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"):
            return self.loss(*inputs)
        key = tuple((one.shape, one.dtype, one.device) for one in inputs)
        graph = self._graphs.get(key)
        if graph is None:
            self._seen[key] += 1
            if self._seen[key] < _RECORD_AT or len(self._graphs) >= _MOST_GRAPHS:
                return self.loss(*inputs)
            graph = self._graphs[key] = self._record(inputs)
        return graph(*inputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> nn.Module:
        # recording replaces the module's forward: a wrapper of its own for every set of shapes
        samples = tuple(one.detach().clone() for one in inputs)
        wrapper = _Wrapper(self.loss).train()
        return torch.cuda.make_graphed_callables(wrapper, samples, allow_unused_input=True)


class _Wrapper(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.loss(*inputs)
