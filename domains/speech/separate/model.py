"""Speakers apart: a learned filter bank, Mamba blocks, and a mask for each speaker.

In the spirit of Mamba-TasNet (Jiang et al. 2024, arXiv:2407.09732), which puts Mamba blocks in the place of
Conv-TasNet's convolutions (Luo & Mesgarani 2019, arXiv:1809.07454).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import RMSNorm
from mambakit.core.errors import UsageError
from mambakit.core.hub import HubModel
from mambakit.core.state import State
from mambakit.domains.speech.about import SEPARATOR
from mambakit.domains.speech.separate.config import SeparateConfig
from mambakit.domains.speech.stitching import stitched

_FRAMES_AT_ONCE = 4000
_LEVELLED_AT_ONCE = 1 << 20


class SeparateState(NamedTuple):
    """What a stream carries: a few thousand numbers, however long it has been going on."""

    waiting: Tensor
    """The last ``hop`` samples and those that fill no hop yet, ``(batch, hop + m)``."""
    unfinished: Tensor
    """Output that the next frame adds to, ``(batch, n_sources, hop)``."""
    blocks: State


class Separator(nn.Module, HubModel):
    """One channel at ``config.rate_hz`` to as many as there are speakers.

    Args:
        config: The network.
    """

    about = SEPARATOR

    def __init__(self, config: SeparateConfig) -> None:
        super().__init__()
        self.config = config
        hop = config.kernel // 2
        self.encode = nn.Conv1d(1, config.n_filters, config.kernel, hop, bias=False)
        self.norm = RMSNorm(config.n_filters)
        self.narrow = nn.Linear(config.n_filters, config.d_model)
        self.backbone = Backbone(
            BackboneConfig(
                d_model=config.d_model,
                layers=[config.block],
                repeat=config.n_layers,
                block_options={config.block: config.block_options},
                bidirectional=not config.causal,
            )
        )
        self.masks = nn.Linear(config.d_model, config.n_sources * config.n_filters)
        self.decode = nn.ConvTranspose1d(config.n_filters, 1, config.kernel, hop, bias=False)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.config.kernel // 2

    @property
    def delay(self) -> int:
        """Samples that a stream's output lags behind its input, at most."""
        return self.config.kernel

    def forward(self, samples: Tensor) -> Tensor:
        """Mixtures ``(batch, n)`` to speakers ``(batch, n_sources, n)``.

        Training asks for no level: each speaker has one of its own, which ``at_level_of`` gives back. Without
        gradients long mixtures are read piece by piece, so that memory does not grow with the length: by a
        causal model with its state, by another as ``stitched`` says.

        Raises:
            ValueError: If it is not of two dimensions.
        """
        if samples.dim() != 2:
            raise ValueError(f"samples: expected shape (batch, n), got {tuple(samples.shape)}")
        batch, n = samples.shape
        if not n:
            return samples[:, None].expand(batch, self.config.n_sources, 0)
        if torch.is_grad_enabled():
            return self._whole(samples)
        if not self.config.causal:
            return stitched(self._whole, samples, self.config.rate_hz)
        return self._by_pieces(samples) if n > _FRAMES_AT_ONCE * self.hop else self._whole(samples)

    def _whole(self, samples: Tensor) -> Tensor:
        hop, n = self.hop, samples.shape[1]
        # half a window of silence before, so that the first samples are in two frames as all others are
        framed = F.pad(samples, (hop, hop + -n % hop))
        if self.config.causal:
            return self._apart(framed, None)[0][..., hop : hop + n]
        level = samples.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)
        return self._apart(framed / level, None)[0][..., hop : hop + n] * level[..., None]

    def init_state(self, batch: int = 1) -> SeparateState:
        """The state before the first sample.

        Raises:
            UsageError: If the model is not causal.
        """
        if not self.config.causal:
            raise UsageError("this model reads time both ways and cannot stream; train one with causal true")
        silence = self.masks.weight.new_zeros(batch, self.hop)
        unfinished = silence[:, None].expand(-1, self.config.n_sources, -1)
        return SeparateState(silence, unfinished, self.backbone.init_state(batch))

    def step(self, samples: Tensor, state: SeparateState) -> tuple[Tensor, SeparateState]:
        """The next samples of streams.

        Args:
            samples: ``(batch, m)``; any ``m``, 0 too.
            state: What came before.

        Returns:
            Finished output ``(batch, n_sources, a multiple of hop)``, and the next state. All outputs of a
            stream, one after the other, are ``hop`` samples from before its beginning, then what ``forward``
            gives; ``finish`` gives the rest.
        """
        hop = self.hop
        waiting = torch.cat([state.waiting, samples], 1)
        done = (waiting.shape[1] - hop) // hop * hop
        if not done:
            empty = samples.new_zeros(len(samples), self.config.n_sources, 0)
            return empty, state._replace(waiting=waiting)
        added, blocks = self._apart(waiting[:, : hop + done], state.blocks)
        added = torch.cat([added[..., :hop] + state.unfinished, added[..., hop:]], -1)
        return added[..., :done], SeparateState(waiting[:, done:], added[..., done:], blocks)

    def finish(self, state: SeparateState) -> Tensor:
        """The output that is still to come when a stream ends, ``(batch, n_sources, hop + m)``: the stream's
        whole output is then ``hop`` samples longer than its input, those from before it."""
        m = state.waiting.shape[1] - self.hop
        silence = state.waiting.new_zeros(len(state.waiting), self.hop + -m % self.hop)
        return self.step(silence, state)[0][..., : self.hop + m]

    def _by_pieces(self, samples: Tensor) -> Tensor:
        state, outputs = self.init_state(len(samples)), []
        for piece in samples.split(_FRAMES_AT_ONCE * self.hop, dim=1):
            said, state = self.step(piece, state)
            outputs.append(said)
        return torch.cat([*outputs, self.finish(state)], -1)[..., self.hop :]

    def _apart(self, framed: Tensor, state: State | None) -> tuple[Tensor, State]:
        """``(batch, m)`` to ``(batch, n_sources, m)``, and the state of the blocks."""
        filtered = F.relu(self.encode(framed[:, None])).transpose(1, 2)
        seen, state = self.backbone(self.narrow(self.norm(filtered)), state)
        masks = torch.sigmoid(self.masks(seen)).unflatten(-1, (self.config.n_sources, -1))
        masked = (masks * filtered[:, :, None]).permute(0, 2, 3, 1).flatten(0, 1)
        return self.decode(masked)[:, 0].unflatten(0, (len(framed), -1)), state


def at_level_of(mixture: Tensor, said: Tensor) -> Tensor:
    """Speakers at the levels, and the right way up, at which they add up to the mixture best.

    The loss is the same at every level of an output, and upside down. The levels are those of least squares
    (the mixture consistency of Wisdom et al. 2019, arXiv:1811.08521, with one number a speaker), with a
    little ridge, so that outputs that are nearly the same share the mixture.

    Args:
        mixture: ``(batch, n)``.
        said: ``(batch, n_sources, n)``; silent ones stay silent.
    """
    products = said.new_zeros(len(said), said.shape[1] + 1, said.shape[1] + 1, dtype=torch.float64)
    for at in range(0, said.shape[-1], _LEVELLED_AT_ONCE):  # copies of an hour are large
        cut = slice(at, at + _LEVELLED_AT_ONCE)
        both = torch.cat([said[..., cut], mixture[:, None, cut]], 1).double()
        products += both @ both.mT
    gram, likeness = products[:, :-1, :-1], products[:, :-1, -1:]  # [b, sources, sources], [b, sources, 1]
    power = gram.diagonal(dim1=1, dim2=2)
    ridge = torch.diag_embed(1e-3 * power + 1e-12)
    gains = torch.linalg.solve(gram + ridge, likeness)
    return said * gains.to(said.dtype)
