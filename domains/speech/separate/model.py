"""Speakers apart: by learned filters in the time domain, or over time and frequency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambakit.core.hub import HubModel
from mambakit.domains.speech.about import SEPARATOR
from mambakit.domains.speech.overlap import Overlapping, OverlapState
from mambakit.domains.speech.separate.config import SeparateConfig
from mambakit.domains.speech.separate.filters import FilterNetwork
from mambakit.domains.speech.spectral.network import SpectralNetwork

_LEVELLED_AT_ONCE = 1 << 20


class Separator(nn.Module, HubModel):
    """One channel at ``config.rate_hz`` to as many as there are speakers.

    Args:
        config: The network.
    """

    about = SEPARATOR

    def __init__(self, config: SeparateConfig) -> None:
        super().__init__()
        self.config = config
        self.network: Overlapping = (
            FilterNetwork(config) if config.domain == "time" else SpectralNetwork(config, config.n_sources)
        )

    @property
    def overlap(self) -> int:
        """Samples from before the beginning, with which a stream's output begins."""
        return self.network.overlap

    @property
    def delay(self) -> int:
        """Samples that a stream's output lags behind its input, at most."""
        return self.network.delay

    def forward(self, samples: Tensor) -> Tensor:
        """Mixtures ``(batch, n)`` to speakers ``(batch, n_sources, n)``, as ``Overlapping`` reads them.

        Training asks for no level: each speaker has one of its own, which ``at_level_of`` gives back.
        """
        said: Tensor = self.network(samples)
        return said

    def init_state(self, batch: int = 1) -> OverlapState:
        """The state before the first sample.

        Raises:
            UsageError: If the model is not causal.
        """
        return self.network.init_state(batch)

    def step(self, samples: Tensor, state: OverlapState) -> tuple[Tensor, OverlapState]:
        """The next samples of streams ``(batch, m)``, and what is finished, ``(batch, n_sources, a multiple
        of hop)``."""
        return self.network.step(samples, state)

    def finish(self, state: OverlapState) -> Tensor:
        """The output that is still to come when a stream ends, ``(batch, n_sources, overlap + m)``."""
        return self.network.finish(state)


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
