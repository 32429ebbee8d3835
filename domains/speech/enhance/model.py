"""Noisy speech to clean speech: Mamba over time and over frequency, on compressed spectra.

In the spirit of SEMamba (Chao et al. 2024, arXiv:2405.06573): magnitudes compressed by a power, blocks that
read each frequency along time and each frame along frequency, and a mask for the magnitude. Other than there,
a patch of bins is one token, the phase is changed by a complex term that is added after the mask, and one
form of the model is causal and streams. With ``levels`` the blocks stand in a U over time and frequency, as
Mamba-SEUNet has it (Wang et al. 2024, arXiv:2412.16626).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks import RMSNorm
from mambakit.core.errors import UsageError
from mambakit.core.hub import HubModel
from mambakit.core.state import State
from mambakit.domains.speech.about import ENHANCER
from mambakit.domains.speech.enhance.config import EnhanceConfig
from mambakit.domains.speech.enhance.contrast import importance, stretched
from mambakit.domains.speech.enhance.pairs import Pairs, Scales
from mambakit.domains.speech.enhance.stft import CausalSTFT, compress, expand
from mambakit.domains.speech.stitching import stitched

_CHANNELS = 3  # compressed magnitude, real and imaginary part
_SILENCE = 1e-8  # mean square below which a level means nothing: -80 dB of full scale
_FRAMES_AT_ONCE = 500


class EnhanceState(NamedTuple):
    """What a stream carries: a few thousand numbers, however long it has been going on."""

    waiting: Tensor
    """The ``overlap`` last samples and those that fill no hop yet, ``(batch, overlap + m)``."""
    unfinished: Tensor
    """Output that later frames add to, ``(batch, overlap)``."""
    level: Tensor
    """Sum of squares, and number, of the samples so far, ``(batch, 2)`` float64."""
    blocks: State
    """Of the blocks over time."""


class Enhancer(nn.Module, HubModel):
    """Removes noise; one channel at ``config.rate_hz``.

    Args:
        config: The network.
    """

    about = ENHANCER

    def __init__(self, config: EnhanceConfig) -> None:
        super().__init__()
        self.config = config
        self.stft = CausalSTFT(config.n_fft, config.hop)
        self.n_patches = -(-config.n_bins // config.patch)
        self.embed = nn.Linear(_CHANNELS * config.patch, config.d_model)
        self.place = nn.Parameter(0.02 * torch.randn(self.n_patches, config.d_model))
        self.pairs = Pairs(config) if config.levels == 1 else Scales(config, config.levels)
        self.importance: Tensor
        self.register_buffer("importance", importance(config.n_bins, config.rate_hz), persistent=False)
        self.norm = RMSNorm(config.d_model)
        self.readout = nn.Linear(config.d_model, _CHANNELS * config.patch)
        nn.init.zeros_(self.readout.weight)  # begins as the identity: a mask of 1, and nothing added
        nn.init.zeros_(self.readout.bias)

    @property
    def delay(self) -> int:
        """Samples that a stream's output lags behind its input, at most."""
        return self.config.n_fft

    def forward(self, samples: Tensor) -> Tensor:
        """Whole signals ``(batch, n)`` float32 to enhanced ones of the same shape.

        Without gradients long signals are read piece by piece, so that memory does not grow with the length:
        by a causal model with its state, by another as ``stitched`` says.

        Raises:
            ValueError: If it is not of two dimensions.
        """
        if samples.dim() != 2:
            raise ValueError(f"samples: expected shape (batch, n), got {tuple(samples.shape)}")
        n = samples.shape[1]
        if not n:
            return samples
        if torch.is_grad_enabled():
            return self._whole(samples)
        if not self.config.causal:
            return stitched(lambda x: self._whole(x)[:, None], samples, self.config.rate_hz)[:, 0]
        if n > _FRAMES_AT_ONCE * self.config.hop:
            return self._by_pieces(samples)
        return self._whole(samples)

    def signals(self, pairs: Tensor, level: Tensor, n: int) -> Tensor:
        """``n`` samples of each signal, from what ``spectra`` gave, as training sees them: not stretched."""
        return self.stft.back(expand(pairs, self.config.compression) * level, n)

    def spectra(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Enhanced spectra of whole signals, and what they are to be multiplied by.

        Returns:
            Compressed pairs ``(batch, n_frames, n_bins, 2)`` and levels ``(batch, n_frames, 1)``.
        """
        spectra = self.stft.whole(samples)
        before = samples.new_zeros(len(samples), 2, dtype=torch.float64)
        level, _ = self._level(samples, spectra.shape[1], before)
        pairs, _ = self._enhance(compress(spectra / level, self.config.compression), None)
        return pairs, level

    def init_state(self, batch: int = 1) -> EnhanceState:
        """The state before the first sample.

        Raises:
            UsageError: If the model is not causal.
        """
        if not self.config.causal:
            raise UsageError("this model reads time both ways and cannot stream; train one with causal true")
        device = self.place.device
        silence = torch.zeros(batch, self.stft.overlap, device=device)
        blocks = self.pairs.init_state(batch, self.n_patches)
        level = torch.zeros(batch, 2, dtype=torch.float64, device=device)
        return EnhanceState(silence, silence.clone(), level, blocks)

    def step(self, samples: Tensor, state: EnhanceState) -> tuple[Tensor, EnhanceState]:
        """The next samples of streams.

        Args:
            samples: ``(batch, m)``; any ``m``, 0 too.
            state: What came before.

        Returns:
            Finished output, ``(batch, a multiple of hop)``, and the next state. All outputs of a stream, one
            after the other, are ``overlap`` samples of silence, then what ``forward`` gives; ``finish``
            gives the rest.
        """
        hop, overlap = self.config.hop, self.stft.overlap
        waiting = torch.cat([state.waiting, samples], 1)
        n_frames = (waiting.shape[1] - overlap) // hop
        if not n_frames:
            return samples.new_zeros(len(samples), 0), state._replace(waiting=waiting)
        used = overlap + n_frames * hop
        level, after = self._level(waiting[:, overlap:used], n_frames, state.level)
        noisy = compress(self.stft.analyse(waiting[:, :used]) / level, self.config.compression)
        pairs, blocks = self._enhance(noisy, state.blocks)
        added = self.stft.synthesise(self._said(pairs) * level)
        added = torch.cat([added[:, :overlap] + state.unfinished, added[:, overlap:]], 1)
        done = n_frames * hop
        return added[:, :done], EnhanceState(waiting[:, done:], added[:, done:], after, blocks)

    def finish(self, state: EnhanceState) -> Tensor:
        """The output that is still to come when a stream ends, ``(batch, overlap + m)``: the stream's whole
        output is then ``overlap`` samples longer than its input, those of silence before it."""
        overlap = self.stft.overlap
        m = state.waiting.shape[1] - overlap
        silence = state.waiting.new_zeros(len(state.waiting), overlap + -m % self.config.hop)
        return self.step(silence, state)[0][:, : overlap + m]

    def _whole(self, samples: Tensor) -> Tensor:
        pairs, level = self.spectra(samples)
        return self.stft.back(self._said(pairs) * level, samples.shape[1])

    def _said(self, pairs: Tensor) -> Tensor:
        """Complex spectra, stretched where the config says so."""
        spectra, strength = expand(pairs, self.config.compression), self.config.contrast
        return stretched(spectra, self.importance, strength) if strength else spectra

    def _by_pieces(self, samples: Tensor) -> Tensor:
        state = self.init_state(len(samples))
        outputs = []
        for piece in samples.split(_FRAMES_AT_ONCE * self.config.hop, dim=1):
            y, state = self.step(piece, state)
            outputs.append(y)
        return torch.cat([*outputs, self.finish(state)], 1)[:, self.stft.overlap :]

    def _level(self, samples: Tensor, n_frames: int, before: Tensor) -> tuple[Tensor, Tensor]:
        """What spectra are divided by, ``(batch, n_frames, 1)``, and the sums after them.

        It is the root mean square of what each frame has heard, as a spectrum's bins have it.

        A causal model's runs from the beginning of the stream to the frame's end; the other's is that of the
        whole signal. ``samples`` ``(batch, n)`` without what lies before the first frame.
        """
        hop = self.config.hop
        missing = n_frames * hop - samples.shape[1]
        energy = F.pad(samples, (0, missing)).double().square().unflatten(1, (n_frames, hop)).sum(-1)
        if not self.config.causal:
            mean = energy.sum(1, keepdim=True).expand(-1, n_frames) / max(samples.shape[1], 1)
            return self._per_bin(mean).to(samples.dtype), before
        sums = before[:, :1] + energy.cumsum(1)
        counts = before[:, 1:] + hop * torch.arange(1, n_frames + 1, device=samples.device)
        level = self._per_bin(sums / counts).to(samples.dtype)
        return level, torch.stack([sums[:, -1], counts[:, -1]], 1)

    def _per_bin(self, mean_square: Tensor) -> Tensor:
        return (mean_square.clamp(min=_SILENCE) * self.config.n_fft).sqrt()[..., None]

    def _enhance(self, noisy: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Compressed pairs, noisy to enhanced ``(batch, n_frames, n_bins, 2)``, and the state."""
        config = self.config
        seen = torch.cat([noisy, (noisy.square().sum(-1, keepdim=True) + 1e-10).sqrt()], -1)
        short = self.n_patches * config.patch - config.n_bins
        patches = F.pad(seen, (0, 0, 0, short)).unflatten(2, (self.n_patches, config.patch)).flatten(3)
        x = self.embed(patches) + self.place
        x, state = self.pairs(x, state)
        said = self.readout(self.norm(x)).unflatten(-1, (config.patch, _CHANNELS)).flatten(2, 3)
        said = said[:, :, : config.n_bins]
        mask = 2 * torch.sigmoid(said[..., :1])
        return mask * noisy + said[..., 1:], state
