"""What a model must be to generate, and reading its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mambakit.core.generation.config import GenerationConfig
from mambakit.core.state import State

Prompt = Tensor | Sequence[Sequence[int] | Tensor]


class Decoder(Protocol):
    """A causal model over ids with a recurrent state; ``LanguageModel`` is one.

    A model may have a fourth method ``prefill(ids, state, lengths)`` that returns the logits
    ``(batch, n_ids)`` after each row's last real id, and the state: it spares those of a long prompt.
    """

    def __call__(
        self, ids: Tensor, state: State | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits ``(batch, length, n_ids)`` of right-padded rows, and the state after each one's last id."""
        ...

    def step(self, ids: Tensor, state: State, *, inplace: bool = False) -> tuple[Tensor, State]:
        """Logits ``(batch, n_ids)`` after one more id ``(batch,)``, and the next state."""
        ...

    def init_state(self, batch: int) -> State:
        """The state before the first id."""
        ...


@dataclass(frozen=True)
class Begun:
    """Prompts that have been read."""

    ids: Tensor
    """``(batch, length)`` int64, right-padded."""
    lengths: Tensor
    """``(batch,)`` int64."""
    logits: Tensor
    """What comes next, ``(batch, n_ids)``."""
    state: State
    """After each row's last id."""


def begin(
    model: Decoder,
    prompt: Prompt,
    config: GenerationConfig,
    lengths: Tensor | None,
    state: State | None,
    next_logits: Tensor | None,
) -> Begun:
    """Read the prompts in one forward call.

    Raises:
        TypeError: On ids that are no whole numbers, or a state that is none.
        ValueError: On a wrong shape, or an empty prompt with nothing to go on from.
    """
    if state is not None and not isinstance(state, State):
        raise TypeError(f"state: expected a State, got {type(state).__name__}; State.from_dict makes one")
    ids, lengths = as_batch(model, prompt, lengths, state)
    batch = ids.shape[0]
    if batch == 0:
        raise ValueError("prompt: expected at least one row, got none")
    if state is not None and state.batch not in (None, batch):
        raise ValueError(f"state: it is for a batch of {state.batch} rows, but there are {batch} prompts")
    if next_logits is not None:
        if state is None:
            raise ValueError("next_logits: give the state too that they belong to")
        if next_logits.dim() != 2 or next_logits.shape[0] != batch:
            got = tuple(next_logits.shape)
            raise ValueError(f"next_logits: expected shape (batch={batch}, n_ids), got {got}")
    empty = lengths == 0
    n_empty = int(empty.sum())
    if n_empty and next_logits is None:
        if config.start_id is None:
            row = int(empty.nonzero()[0])
            raise ValueError(
                f"prompt: row {row} is empty, and nothing says what comes next; give start_id in the config, "
                "or next_logits with the state that it continues"
            )
        if ids.shape[1] == 0:
            ids = ids.new_zeros(batch, 1)
        ids = ids.clone()
        ids[:, 0] = torch.where(empty, config.start_id, ids[:, 0])
        lengths = lengths.clamp(min=1)
        n_empty = 0
    if ids.shape[1] == 0:
        assert next_logits is not None
        assert state is not None
        return Begun(ids, lengths, next_logits, state)
    logits, state = read(model, ids, lengths, state)
    if n_empty and next_logits is not None:
        logits = torch.where(empty[:, None], next_logits.to(logits), logits)
    return Begun(ids, lengths, logits, state)


def read(model: Decoder, ids: Tensor, lengths: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Logits ``(batch, n_ids)`` after each row's last real id, and the state; zero ids give any logits."""
    ragged = None if bool((lengths == ids.shape[1]).all()) else lengths
    prefill = getattr(model, "prefill", None)
    if prefill is not None:
        return cast(tuple[Tensor, State], prefill(ids, state, ragged))
    logits, state = model(ids, state, lengths=ragged)
    last = (lengths - 1).clamp(min=0)
    return logits[torch.arange(len(ids), device=ids.device), last], state


def as_batch(
    model: Decoder, prompt: Prompt, lengths: Tensor | None, state: State | None, *, first_row: int = 0
) -> tuple[Tensor, Tensor]:
    """Ids ``(batch, length)``, right-padded, and lengths ``(batch,)``, on the model's device.

    Errors count the rows from ``first_row``.

    Raises:
        TypeError, ValueError: As ``begin``.
    """
    if isinstance(prompt, Tensor):
        if prompt.dtype != torch.int64:
            raise TypeError(f"prompt: expected an int64 tensor, got {prompt.dtype}")
        if prompt.dim() != 2:
            raise ValueError(f"prompt: expected shape (batch, length), got {tuple(prompt.shape)}")
        batch, length = prompt.shape
        if lengths is None:
            return prompt, torch.full((batch,), length, device=prompt.device)
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
            raise TypeError(f"lengths: expected an int64 tensor, got {getattr(lengths, 'dtype', lengths)}")
        lengths = lengths.to(prompt.device)
        if lengths.shape != (batch,):
            raise ValueError(f"lengths: expected shape (batch={batch},), got {tuple(lengths.shape)}")
        if bool(((lengths < 0) | (lengths > length)).any()):
            raise ValueError(f"lengths: values must be in 0..{length}, got {lengths.tolist()}")
        return prompt, lengths
    if lengths is not None:
        raise ValueError("lengths: only with a padded tensor; a list of prompts has its own")
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        raise TypeError(f"prompt: expected a tensor or a list of lists of ids, got {type(prompt).__name__}")
    rows = []
    for i, row in enumerate(prompt, first_row):
        if isinstance(row, str):
            raise TypeError(f"prompt: expected a list of lists of ids, got the text {row!r} for row {i}")
        ids = torch.as_tensor(cast(Any, row))
        if ids.numel() == 0:
            ids = ids.long()
        if ids.dim() != 1 or ids.dtype != torch.int64:
            what = f"{ids.dtype} {tuple(ids.shape)}"
            raise TypeError(f"prompt: expected a list of lists of ids, got {what} for row {i}")
        rows.append(ids)
    if not rows:
        return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    device = device_of(model, state)
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    return padded, torch.tensor([len(row) for row in rows], device=device)


def device_of(model: Decoder, state: State | None) -> torch.device | None:
    """Where its ids are wanted; None if nothing says so."""
    if state is not None:
        for _, tensor in state.tensors():
            return tensor.device
    parameters = getattr(model, "parameters", None)
    first = None if parameters is None else next(iter(parameters()), None)
    return None if first is None else first.device
