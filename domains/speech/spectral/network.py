"""Mamba over time and over frequency, on compressed spectra: sound to one signal or several.

In the spirit of SEMamba (Chao et al. 2024, arXiv:2405.06573) and, for several speakers, of SPMamba (Li & Chen
2024, arXiv:2404.02063): magnitudes compressed by a power, blocks that read each frequency along time and each
frame along frequency, and a mask for each output. Other than there, a patch of bins is one token, the phase
is changed by a complex term that is added after the mask, and one form of the network is causal and streams.
With ``levels`` the blocks stand in a U over time and frequency, as Mamba-SEUNet has it (Wang et al. 2024,
arXiv:2412.16626).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks import RMSNorm
from mambakit.core.state import State
from mambakit.domains.speech.overlap import Overlapping
from mambakit.domains.speech.spectral.config import SpectralConfig
from mambakit.domains.speech.spectral.pairs import Pairs, Scales
from mambakit.domains.speech.spectral.stft import CausalSTFT, compress, expand

_CHANNELS = 3  # compressed magnitude, real and imaginary part
_SILENCE = 1e-8  # mean square below which a level means nothing: -80 dB of full scale


class SpectralMemory(NamedTuple):
    """What the network remembers of a stream, beside samples."""

    level: Tensor
    """Sum of squares, and number, of the samples so far, ``(batch, 2)`` float64."""
    blocks: State
    """Of the blocks over time."""


class SpectralNetwork(Overlapping):
    """One channel at ``config.rate_hz`` to ``n_outputs``.

    Args:
        config: The network.
        n_outputs: How many signals come out.
    """

    def __init__(self, config: SpectralConfig, n_outputs: int) -> None:
        overlap = config.n_fft - config.hop
        super().__init__(
            config.rate_hz, hop=config.hop, overlap=overlap, n_outputs=n_outputs, causal=config.causal
        )
        self.config = config
        self.stft = CausalSTFT(config.n_fft, config.hop)
        self.n_patches = -(-config.n_bins // config.patch)
        self.embed = nn.Linear(_CHANNELS * config.patch, config.d_model)
        self.place = nn.Parameter(0.02 * torch.randn(self.n_patches, config.d_model))
        self.pairs = Pairs(config) if config.levels == 1 else Scales(config, config.levels)
        self.norm = RMSNorm(config.d_model)
        self.readout = nn.Linear(config.d_model, n_outputs * _CHANNELS * config.patch)

    def _spectra(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra of whole signals' outputs, and what they are to be multiplied by.

        Returns:
            Compressed pairs ``(batch, n_outputs, n_frames, n_bins, 2)`` and levels ``(batch, n_frames, 1)``.
        """
        spectra = self.stft.whole(samples)
        before = samples.new_zeros(len(samples), 2, dtype=torch.float64)
        level, _ = self._level(samples, spectra.shape[1], before)
        pairs, _ = self._read(compress(spectra / level, self.config.compression), None)
        return pairs, level

    def said(self, pairs: Tensor) -> Tensor:
        """Complex spectra of compressed pairs."""
        return expand(pairs, self.config.compression)

    def _whole(self, samples: Tensor) -> Tensor:
        pairs, level = self._spectra(samples)
        spectra = self.said(pairs) * level[:, None]
        return self.stft.back(spectra.flatten(0, 1), samples.shape[1]).unflatten(0, pairs.shape[:2])

    def _begin(self, batch: int) -> SpectralMemory:
        level = torch.zeros(batch, 2, dtype=torch.float64, device=self.place.device)
        return SpectralMemory(level, self.pairs.init_state(batch, self.n_patches))

    def _added(self, samples: Tensor, memory: SpectralMemory) -> tuple[Tensor, SpectralMemory]:
        heard = self.stft.analyse(samples)
        level, after = self._level(samples[:, self.overlap :], heard.shape[1], memory.level)
        pairs, blocks = self._read(compress(heard / level, self.config.compression), memory.blocks)
        spectra = self.said(pairs) * level[:, None]
        added = self.stft.synthesise(spectra.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        return added, SpectralMemory(after, blocks)

    def _level(self, samples: Tensor, n_frames: int, before: Tensor) -> tuple[Tensor, Tensor]:
        """What spectra are divided by, ``(batch, n_frames, 1)``, and the sums after them.

        It is the root mean square of what each frame has heard, as a spectrum's bins have it.

        A causal network's runs from the beginning of the stream to the frame's end; the other's is that of
        the whole signal. ``samples`` ``(batch, n)`` without what lies before the first frame.
        """
        hop = self.hop
        missing = n_frames * hop - samples.shape[1]
        energy = F.pad(samples, (0, missing)).double().square().unflatten(1, (n_frames, hop)).sum(-1)
        if not self.causal:
            mean = energy.sum(1, keepdim=True).expand(-1, n_frames) / max(samples.shape[1], 1)
            return self._per_bin(mean).to(samples.dtype), before
        sums = before[:, :1] + energy.cumsum(1)
        counts = before[:, 1:] + hop * torch.arange(1, n_frames + 1, device=samples.device)
        level = self._per_bin(sums / counts).to(samples.dtype)
        return level, torch.stack([sums[:, -1], counts[:, -1]], 1)

    def _per_bin(self, mean_square: Tensor) -> Tensor:
        return (mean_square.clamp(min=_SILENCE) * self.config.n_fft).sqrt()[..., None]

    def _read(self, heard: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Compressed pairs ``(batch, n_frames, n_bins, 2)`` to those of each output, ``(batch, n_outputs,
        n_frames, n_bins, 2)``, and the state."""
        config = self.config
        seen = torch.cat([heard, (heard.square().sum(-1, keepdim=True) + 1e-10).sqrt()], -1)
        short = self.n_patches * config.patch - config.n_bins
        patches = F.pad(seen, (0, 0, 0, short)).unflatten(2, (self.n_patches, config.patch)).flatten(3)
        x = self.embed(patches) + self.place
        x, state = self.pairs(x, state)
        said = self.readout(self.norm(x)).unflatten(-1, (self.n_outputs, config.patch, _CHANNELS))
        said = said.permute(0, 3, 1, 2, 4, 5).flatten(3, 4)[:, :, :, : config.n_bins]  # [b, o, t, f, 3]
        mask = 2 * torch.sigmoid(said[..., :1])
        return mask * heard[:, None] + said[..., 1:], state
