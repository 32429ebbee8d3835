"""CUDA graphs of a training loss: one launch in place of the hundreds of small kernels of a small model."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.cuda_graph import record, waits_for_gpu

# The last batch of an epoch is smaller and comes once an epoch: only shapes that come often are recorded.
_RECORD_AT = 3


class GraphedLoss:
    """Calls a loss on a GPU as a CUDA graph of its forward and backward, one for each set of input shapes.

    Where a model is small, the CPU that launches its kernels is slower than the GPU that runs them. A set of
    shapes is recorded when it comes for the third time, for ``most`` sets; until then, elsewhere than on
    a GPU, under autocast to float16 and without gradients the loss is called as it is. So is one that reads a
    tensor's value on the CPU (``item``, data-dependent shapes, experts): it can't be recorded. Dropout draws
    new numbers at every call.

    Args:
        loss: A module in training mode whose ``forward`` takes tensors alone, none of which wants a gradient,
            and gives one scalar. It makes no tensor on the CPU; its parameters stay where they are.
        most: Sets of shapes that are recorded. They share the memory of what is computed between.
    """

    def __init__(self, loss: nn.Module, most: int = 4) -> None:
        self.loss, self.most = loss, most
        self._pool: tuple[int, int] | None = None
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._graphs: dict[tuple[object, ...], _Recording | None] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The loss, a scalar that can be differentiated once."""
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        # gradients of float16 want their scale before they are computed, and a graph has computed them
        if not inputs[0].is_cuda or not torch.is_grad_enabled() or autocast == torch.float16:
            return self.loss(*inputs)
        key = (autocast, *((one.shape, one.dtype, one.device) for one in inputs))
        if key not in self._graphs:
            self._seen[key] += 1
            if self._seen[key] < _RECORD_AT or len(self._graphs) >= self.most:
                return self.loss(*inputs)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            waits = self._waits(inputs)
            self._graphs[key] = None if waits else _Recording(self.loss, inputs, autocast, self._pool)
        recording = self._graphs[key]
        if recording is None:
            return self.loss(*inputs)
        parameters = [one for one in self.loss.parameters() if one.requires_grad]
        return _Replay.apply(recording, inputs, *parameters)

    def forget(self) -> None:
        """Record anew: to be called where the weights have moved since."""
        self._seen.clear()
        self._graphs.clear()

    def _waits(self, inputs: tuple[Tensor, ...]) -> bool:
        parameters = [one for one in self.loss.parameters() if one.requires_grad]
        return waits_for_gpu(lambda: torch.autograd.grad(self.loss(*inputs), parameters, allow_unused=True))


class _Recording:
    """A loss and its gradients as one graph that reads its inputs, and writes its results, in place."""

    def __init__(
        self,
        loss: nn.Module,
        inputs: tuple[Tensor, ...],
        autocast: torch.dtype | None,
        pool: tuple[int, int],
    ) -> None:
        # A twin in the same memory: autograd's nodes of the original's parameters belong to another stream,
        # which a capture may not touch.
        twin = copy.deepcopy(loss)
        for mine, theirs in zip(_tensors(twin), _tensors(loss), strict=True):
            mine.data = theirs.data
        parameters = [one for one in twin.parameters() if one.requires_grad]
        self.inputs = tuple(one.detach().clone() for one in inputs)

        def run() -> tuple[Tensor, tuple[Tensor | None, ...]]:
            # every replay casts the weights as they are then: none of a cache
            with torch.autocast("cuda", autocast, enabled=autocast is not None, cache_enabled=False):
                value = twin(*self.inputs)
            with torch.autocast("cuda", enabled=False):
                return value.detach(), torch.autograd.grad(value, parameters, allow_unused=True)

        torch.cuda.empty_cache()  # what the calls before have left behind can't be used by a graph
        self.graph, (self.value, self.gradients) = record(run, pool)

    def replay(self, inputs: tuple[Tensor, ...]) -> None:
        """The results for these inputs."""
        torch._foreach_copy_(list(self.inputs), list(inputs))
        self.graph.replay()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, inputs: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        recording.replay(inputs)
        ctx.recording = recording
        return recording.value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.recording.gradients
        scaled = iter(torch._foreach_mul([one for one in gradients if one is not None], outer))
        return None, None, *(None if one is None else next(scaled) for one in gradients)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
