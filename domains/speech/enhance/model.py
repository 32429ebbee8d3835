"""Noisy speech to clean speech: a network over time and frequency, and contrast stretching on top."""

from __future__ import annotations

from torch import Tensor, nn

from mambakit.core.hub import HubModel
from mambakit.domains.speech.about import ENHANCER
from mambakit.domains.speech.enhance.config import EnhanceConfig
from mambakit.domains.speech.enhance.contrast import importance, stretched
from mambakit.domains.speech.overlap import OverlapState
from mambakit.domains.speech.spectral.network import SpectralNetwork
from mambakit.domains.speech.spectral.stft import expand


class Enhancer(SpectralNetwork, HubModel):
    """Removes noise; one channel at ``config.rate_hz``. Of its one output no method keeps the dimension.

    Args:
        config: The network.
    """

    about = ENHANCER
    config: EnhanceConfig

    def __init__(self, config: EnhanceConfig) -> None:
        super().__init__(config, 1)
        self.importance: Tensor
        self.register_buffer("importance", importance(config.n_bins, config.rate_hz), persistent=False)
        nn.init.zeros_(self.readout.weight)  # begins as the identity: a mask of 1, and nothing added
        nn.init.zeros_(self.readout.bias)

    def forward(self, samples: Tensor) -> Tensor:
        """Whole signals ``(batch, n)`` float32 to enhanced ones of the same shape, as ``Overlapping``."""
        return super().forward(samples)[:, 0]

    def spectra(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Enhanced spectra of whole signals, and what they are to be multiplied by.

        Returns:
            Compressed pairs ``(batch, n_frames, n_bins, 2)`` and levels ``(batch, n_frames, 1)``.
        """
        pairs, level = self._spectra(samples)
        return pairs[:, 0], level

    def signals(self, pairs: Tensor, level: Tensor, n: int) -> Tensor:
        """``n`` samples of each signal, from what ``spectra`` gave, as training sees them: not stretched."""
        return self.stft.back(expand(pairs, self.config.compression) * level, n)

    def step(self, samples: Tensor, state: OverlapState) -> tuple[Tensor, OverlapState]:
        """The next samples ``(batch, m)`` of streams; what is finished, ``(batch, a multiple of hop)``."""
        said, state = super().step(samples, state)
        return said[:, 0], state

    def finish(self, state: OverlapState) -> Tensor:
        """The output that is still to come when a stream ends, ``(batch, overlap + m)``."""
        return super().finish(state)[:, 0]

    def said(self, pairs: Tensor) -> Tensor:
        """Complex spectra, stretched where the config says so."""
        spectra, strength = super().said(pairs), self.config.contrast
        return stretched(spectra, self.importance, strength) if strength else spectra
