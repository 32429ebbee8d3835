"""Gated recurrent networks as blocks: GRU (Cho et al. 2014, arXiv:1406.1078), LSTM (Hochreiter & Schmidhuber
1997, with the forget gate of Gers et al. 2000).

The recurrence is torch's own, cuDNN's on a GPU. Padded and packed rows go in as the sequences they hold,
ordered by time and without padding (torch's ``PackedSequence``): each begins from a state of its own. The
recurrence stays in the parameters' precision under autocast. ``torch.compile`` and ``torch.export`` take a
sequence's recurrence as one op (``recurrent_op``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mambakit.core.blocks import recurrent_op
from mambakit.core.blocks.base import Block
from mambakit.core.blocks.packed import Packed
from mambakit.core.blocks.ragged import time_major
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State
from mambakit.kernels.semantics import state_dtype


class _Recurrent(Block):
    """recurrence -> out_proj; its states are ``(batch, d_hidden)``."""

    projections = ("out_proj",)

    # torch's: the name of its weights' layout, a sequence's recurrence, a token's
    _kind: ClassVar[str]
    _sequence: ClassVar[Callable[..., Any]]
    _cell: ClassVar[Callable[..., Any]]

    def __init__(self, *, d_model: int, d_hidden: int | None = None, bias: bool = True) -> None:
        super().__init__()
        d_hidden = d_model if d_hidden is None else d_hidden
        if min(d_model, d_hidden) < 1:
            raise ValueError(f"d_model, d_hidden: expected at least 1, got {d_model} and {d_hidden}")
        self.d_model = d_model
        self.d_hidden = d_hidden
        self._shapes = dict.fromkeys(self.learnable_state, (d_hidden,))
        # one run of memory, as cuDNN wants the weights; dynamo refuses nn.GRU and nn.LSTM, not their base
        self.rnn = nn.RNNBase(self._kind, d_model, d_hidden, bias=bias, batch_first=True)
        self.out_proj = nn.Linear(d_hidden, d_model, bias=bias)

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return self._shapes  # type: ignore[return-value]

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        batch, length = x.shape[:2]
        if state is None:
            state = self.init_state(batch, device=x.device, dtype=x.dtype)
        if batch == 0:
            return self.out_proj(x.new_zeros(0, length, self.d_hidden)), state
        past = [state[name] for name in self.learnable_state]
        if seq_idx is not None:
            packed = Packed(seq_idx)
            starts = [one.new_zeros(packed.count, self.d_hidden) for one in past]
            starts = [new.index_copy(0, packed.first, one) for new, one in zip(starts, past, strict=True)]
            y, states = self._recur_ragged(x, starts, packed.start, packed.lengths)
            states = [one[packed.last] for one in states]
        elif lengths is not None:
            first = torch.arange(batch, device=x.device) * length
            y, states = self._recur_ragged(x, past, first, lengths)
        else:
            y, states = self._recur(x, None, past)
        return self.out_proj(y), self._kept(states, x)

    def mix_step(self, x: Tensor, state: State, inplace: bool = False) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):
            weights = list(self.rnn.parameters())
            dtype = weights[0].dtype
            past = [state[name].to(dtype) for name in self.learnable_state]
            following = self._cell(x.to(dtype), _as_torch(past), *weights)
        states = [following] if isinstance(following, Tensor) else list(following)
        return self.out_proj(states[0]), self._kept(states, x)

    def _recur_ragged(
        self, x: Tensor, past: list[Tensor], first: Tensor, lengths: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs at every token of n sequences in the flattened rows, zero elsewhere, and their last states.

        Args:
            x: ``(batch, length, d_model)``.
            past: What each sequence begins from, ``(n, d_hidden)`` each.
            first: Where it begins, ``(n,)``.
            lengths: How many tokens it has, ``(n,)``; 0 leaves its state as it is.
        """
        places, batch_sizes, alive = time_major(first, lengths)
        y = x.new_zeros(x.shape[0] * x.shape[1], self.d_hidden)
        if len(alive):
            tokens, final = self._recur(x.flatten(0, 1)[places], batch_sizes, [one[alive] for one in past])
            y = y.to(tokens.dtype).index_copy(0, places, tokens)
            past = [one.index_copy(0, alive, new.to(one.dtype)) for one, new in zip(past, final, strict=True)]
        return y.view(*x.shape[:2], -1), past

    def _recur(
        self, x: Tensor, batch_sizes: Tensor | None, past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states of rows ``(batch, length, d_model)``, or of a ``PackedSequence``'s data."""
        with torch.autocast(x.device.type, enabled=False):
            weights: list[Tensor] = list(self.rnn.parameters())
            dtype = weights[0].dtype
            carried = [one.to(dtype)[None].contiguous() for one in past]  # cuDNN insists
            # cuDNN keeps what gradients need only if it is told so, and they are wanted of eval mode too
            shared = (weights, self.rnn.bias, 1, 0.0, torch.is_grad_enabled(), False)
            if batch_sizes is None and torch.compiler.is_compiling():
                y, *final = recurrent_op.forward(self._kind, x.to(dtype), carried, weights, self.rnn.bias)
            elif batch_sizes is None:
                y, *final = self._sequence(x.to(dtype), _as_torch(carried), *shared, True)
            else:
                y, *final = self._sequence(x.to(dtype), batch_sizes, _as_torch(carried), *shared)
        return y, [one[0] for one in final]

    def _kept(self, tensors: list[Tensor], x: Tensor) -> State:
        pairs = zip(self.learnable_state, tensors, strict=True)
        return State.of(**{name: one.to(state_dtype(x)) for name, one in pairs})


def _as_torch(past: list[Tensor]) -> Tensor | list[Tensor]:
    """torch takes the one state of a GRU bare."""
    return past[0] if len(past) == 1 else past


@register_block("gru")
class GRU(_Recurrent):
    """A gated recurrent unit and out_proj (as in GRU4Rec: Hidasi et al. 2016, arXiv:1511.06939).

    Args:
        d_model: Width of input and output.
        d_hidden: Width of the state; ``d_model`` by default.
        bias: Biases of the gates and of out_proj.

    Raises:
        ValueError: On a size below 1.
    """

    learnable_state = ("hidden",)
    _kind = "GRU"
    _sequence = staticmethod(torch.gru)
    _cell = staticmethod(torch.gru_cell)


@register_block("lstm")
class LSTM(_Recurrent):
    """Long short-term memory and out_proj.

    Args:
        d_model: Width of input and output.
        d_hidden: Width of the hidden state and of the cell; ``d_model`` by default.
        bias: Biases of the gates and of out_proj.

    Raises:
        ValueError: On a size below 1.
    """

    learnable_state = ("hidden", "cell")
    _kind = "LSTM"
    _sequence = staticmethod(torch.lstm)
    _cell = staticmethod(torch.lstm_cell)
