"""A short-time Fourier transform that looks at no sample too late: whole, or hop by hop with the same result.

Frame k sees the samples before ``(k + 1) * hop``; before the first sample there is silence. Analysis and
synthesis use the square root of a Hann window, whose squares at distances of a hop add up to a constant, so
that overlapping and adding gives the samples back (Griffin & Lim 1984, equation 6, with equal windows).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSTFT(nn.Module):
    """Analysis and synthesis.

    Args:
        n_fft: Samples of a window.
        hop: Samples from one to the next; divides ``n_fft``, which is at least twice it.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.overlap = n_fft - hop
        self.register_buffer("window", torch.hann_window(n_fft).sqrt(), persistent=False)
        # the squared windows over one place add up to n_fft / (2 * hop)
        self.scale = 2 * hop / n_fft

    def analyse(self, samples: Tensor) -> Tensor:
        """Spectra of the frames that ``samples`` completes.

        Args:
            samples: ``(batch, overlap + n_frames * hop)``: the ``overlap`` samples before, then new ones.

        Returns:
            ``(batch, n_frames, n_fft / 2 + 1)`` complex.
        """
        if samples.shape[-1] < self.n_fft:
            return samples.new_zeros(len(samples), 0, self.n_fft // 2 + 1, dtype=samples.dtype.to_complex())
        return torch.fft.rfft(samples.unfold(-1, self.n_fft, self.hop) * self.window)

    def synthesise(self, spectra: Tensor) -> Tensor:
        """Overlapped and added frames, ``(batch, overlap + n_frames * hop)``; the last ``overlap`` samples
        still lack what later frames add."""
        batch, n_frames, _ = spectra.shape
        if not n_frames:
            return spectra.real.new_zeros(batch, self.overlap)
        frames = torch.fft.irfft(spectra, self.n_fft) * (self.window * self.scale)
        length = self.overlap + n_frames * self.hop
        added = F.fold(frames.transpose(1, 2), (1, length), (1, self.n_fft), stride=(1, self.hop))
        return added[:, 0, 0]

    def whole(self, samples: Tensor) -> Tensor:
        """Spectra of whole signals ``(batch, n)``: silence before, and after until every sample is complete.

        Returns:
            ``(batch, ceil(n / hop) + overlap / hop, n_fft / 2 + 1)`` complex.
        """
        n = samples.shape[-1]
        return self.analyse(F.pad(samples, (self.overlap, self.overlap + -n % self.hop)))

    def back(self, spectra: Tensor, n: int) -> Tensor:
        """``n`` samples of each signal from what ``whole`` gave, ``(batch, n)``."""
        return self.synthesise(spectra)[:, self.overlap : self.overlap + n]


def compress(spectra: Tensor, power: float) -> Tensor:
    """Complex spectra with magnitudes raised to ``power``, as real pairs ``(..., 2)``; phases stay."""
    pairs = torch.view_as_real(spectra)
    # the floor keeps the slope at silence finite
    return pairs * (pairs.square().sum(-1, keepdim=True) + 1e-10).pow((power - 1) / 2)


def expand(pairs: Tensor, power: float) -> Tensor:
    """The inverse of ``compress`` (away from silence): complex ``(...)``."""
    size = pairs.square().sum(-1, keepdim=True) + 1e-12
    return torch.view_as_complex((pairs * size.pow((1 / power - 1) / 2)).contiguous())
