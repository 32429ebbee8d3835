"""Networks that read overlapping frames, and add up what they say of each: whole, or as the samples come."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambakit.core.errors import UsageError
from mambakit.domains.speech.stitching import stitched

_PIECE_S = 8.0


class OverlapState(NamedTuple):
    """What a stream carries: a few thousand numbers, however long it has been going on."""

    waiting: Tensor
    """The ``overlap`` last samples and those that fill no hop yet, ``(batch, overlap + m)``."""
    unfinished: Tensor
    """Output that later frames add to, ``(batch, n_outputs, overlap)``."""
    memory: Any
    """What the network itself remembers."""


class Overlapping(nn.Module):
    """One channel of sound to ``n_outputs`` of the same length; a subclass says what it makes of frames.

    Args:
        rate_hz: Sampling rate.
        hop: Samples from one frame to the next.
        overlap: Samples that a frame has in common with the next.
        n_outputs: How many signals come out.
        causal: Whether time is read forwards only, so that the network streams.
    """

    def __init__(self, rate_hz: int, *, hop: int, overlap: int, n_outputs: int, causal: bool) -> None:
        super().__init__()
        self.rate_hz, self.hop, self.overlap = rate_hz, hop, overlap
        self.n_outputs, self.causal = n_outputs, causal

    @property
    def delay(self) -> int:
        """Samples that a stream's output lags behind its input, at most."""
        return self.overlap + self.hop

    def forward(self, samples: Tensor) -> Tensor:
        """Whole signals ``(batch, n)`` to ``(batch, n_outputs, n)``.

        Without gradients long signals are read piece by piece, so that memory does not grow with the length:
        by a causal network with its state, by another as ``stitched`` says.

        Raises:
            ValueError: If it is not of two dimensions.
        """
        if samples.dim() != 2:
            raise ValueError(f"samples: expected shape (batch, n), got {tuple(samples.shape)}")
        batch, n = samples.shape
        if not n:
            return samples[:, None].expand(batch, self.n_outputs, 0)
        if torch.is_grad_enabled():
            return self._whole(samples)
        if not self.causal:
            return stitched(self._whole, samples, self.rate_hz)
        at_once = max(1, round(_PIECE_S * self.rate_hz) // self.hop) * self.hop
        return self._by_pieces(samples, at_once) if n > at_once else self._whole(samples)

    def init_state(self, batch: int = 1) -> OverlapState:
        """The state before the first sample.

        Raises:
            UsageError: If the network is not causal.
        """
        if not self.causal:
            raise UsageError("this model reads time both ways and cannot stream; train one with causal true")
        silence = next(self.parameters()).new_zeros(batch, self.overlap)
        unfinished = silence[:, None].expand(-1, self.n_outputs, -1)
        return OverlapState(silence, unfinished, self._begin(batch))

    def step(self, samples: Tensor, state: OverlapState) -> tuple[Tensor, OverlapState]:
        """The next samples of streams.

        Args:
            samples: ``(batch, m)``; any ``m``, 0 too.
            state: What came before.

        Returns:
            Finished output ``(batch, n_outputs, a multiple of hop)``, and the next state. All outputs of a
            stream, one after the other, are ``overlap`` samples from before its beginning, then what
            ``forward`` gives; ``finish`` gives the rest.
        """
        return self._advance(samples, state)

    def finish(self, state: OverlapState) -> Tensor:
        """The output that is still to come when a stream ends, ``(batch, n_outputs, overlap + m)``: the
        stream's whole output is then ``overlap`` samples longer than its input, those from before it."""
        return self._rest(state)

    # under names of their own: a subclass may give the public ones outputs of another shape
    def _advance(self, samples: Tensor, state: OverlapState) -> tuple[Tensor, OverlapState]:
        waiting = torch.cat([state.waiting, samples], 1)
        done = (waiting.shape[1] - self.overlap) // self.hop * self.hop
        if not done:
            return samples.new_zeros(len(samples), self.n_outputs, 0), state._replace(waiting=waiting)
        added, memory = self._added(waiting[:, : self.overlap + done], state.memory)
        added = torch.cat([added[..., : self.overlap] + state.unfinished, added[..., self.overlap :]], -1)
        return added[..., :done], OverlapState(waiting[:, done:], added[..., done:], memory)

    def _rest(self, state: OverlapState) -> Tensor:
        m = state.waiting.shape[1] - self.overlap
        silence = state.waiting.new_zeros(len(state.waiting), self.overlap + -m % self.hop)
        return self._advance(silence, state)[0][..., : self.overlap + m]

    def _by_pieces(self, samples: Tensor, at_once: int) -> Tensor:
        state, outputs = self.init_state(len(samples)), []
        for piece in samples.split(at_once, dim=1):
            said, state = self._advance(piece, state)
            outputs.append(said)
        return torch.cat([*outputs, self._rest(state)], -1)[..., self.overlap :]

    def _whole(self, samples: Tensor) -> Tensor:
        """Signals of one sample or more, read at once."""
        raise NotImplementedError

    def _begin(self, batch: int) -> Any:
        """The network's memory before the first frame."""
        raise NotImplementedError

    def _added(self, samples: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """What is said of all frames of ``(batch, overlap + k * hop)``, added up in their places,
        ``(batch, n_outputs, overlap + k * hop)``, and the memory after them."""
        raise NotImplementedError
