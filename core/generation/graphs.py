"""A decoder's step as a CUDA graph: one launch in place of the hundreds of a small model's layers."""

from __future__ import annotations

import torch
from torch import Tensor

from mambakit.core.cuda_graph import record, waits_for_gpu
from mambakit.core.generation.decoder import Decoder
from mambakit.core.state import State

MOST_GRAPHS = 4  # of one decoder: each holds a state and a step's memory


class GraphedDecoder:
    """A decoder whose ``step`` on a GPU replays a CUDA graph, recorded once for each batch size.

    It is a decoder itself. Recording costs some steps: keep it for several calls of ``generate``. Elsewhere
    than on a GPU, under autocast, for a fifth batch size, and for a model that can't be recorded (its state
    grows, as attention's does, or its step waits for the GPU) the step is the model's own.

    Args:
        model: Its parameters stay where they are, in its dtype; values may change.
    """

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.parameters = getattr(model, "parameters", None)
        self.prefill = getattr(model, "prefill", None)
        self._recordings: dict[tuple[torch.device, int], _Recording | None] = {}

    def __call__(
        self, ids: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The model's own."""
        return self.model(ids, state, lengths=lengths)

    def init_state(self, batch: int) -> State:
        """The model's own."""
        return self.model.init_state(batch)

    @torch.no_grad()
    def step(self, ids: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """As the model's, without gradients; with ``inplace`` both results last until the next step."""
        if not ids.is_cuda or torch.is_autocast_enabled("cuda"):
            return self.model.step(ids, state, inplace=inplace)
        key = (ids.device, len(ids))
        if key not in self._recordings:
            if len(self._recordings) >= MOST_GRAPHS:
                return self.model.step(ids, state, inplace=inplace)
            fits = _can_be_recorded(self.model, ids, state)
            self._recordings[key] = _Recording(self.model, ids, state) if fits else None
        recording = self._recordings[key]
        if recording is None or not recording.fits(state):
            return self.model.step(ids, state, inplace=inplace)
        logits, state = recording.replay(ids, state)
        return (logits, state) if inplace else (logits.clone(), state.clone())


class _Recording:
    """A step that reads its ids, and overwrites its state, in place."""

    def __init__(self, model: Decoder, ids: Tensor, state: State) -> None:
        self.ids = ids.clone()
        self.state = state.clone()
        self.latest: State | None = None

        def run() -> Tensor:
            logits, following = model.step(self.ids, self.state, inplace=True)
            for (_, old), (_, new) in zip(self.state.tensors(), following.tensors(), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)
            return logits

        self.graph, self.logits = record(run)

    def fits(self, state: State) -> bool:
        return state is self.latest or shapes(state) == shapes(self.state)

    def replay(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        self.ids.copy_(ids)
        if state is not self.latest:  # a new sequence, or rows in another order
            for (_, mine), (_, theirs) in zip(self.state.tensors(), state.tensors(), strict=True):
                if mine.numel() and mine.data_ptr() == theirs.data_ptr():
                    raise RuntimeError(
                        "state: another sequence decoded by this GraphedDecoder has overwritten it; "
                        "give each of two interleaved streams a GraphedDecoder of its own"
                    )
                mine.copy_(theirs)
        self.graph.replay()
        self.latest = State.of(**self.state)  # the same tensors; which step they are of shows in the object
        return self.logits, self.latest


def _can_be_recorded(model: Decoder, ids: Tensor, state: State) -> bool:
    """Whether a step keeps the state's shapes and never waits for the GPU, found out by taking it."""
    _, following = model.step(ids, state.clone(), inplace=True)
    if shapes(following) != shapes(state):
        return False
    return not waits_for_gpu(lambda: model.step(ids, state.clone(), inplace=True))


def shapes(state: State) -> list[tuple[object, ...]]:
    """Names, shapes and dtypes of what a state holds."""
    return [(name, tensor.shape, tensor.dtype) for name, tensor in state.tensors()]
