"""Perceptual contrast stretching: in bands that speech needs, what is loud gets louder, noise stays behind.

After Chao et al. 2022 (arXiv:2203.17152): ``log(1 + magnitude)`` of each band is multiplied by a factor that
grows with the band's importance to hearing speech. Here magnitudes are relative to the signal's level, so
that the output scales with the input, and speech keeps its loudness about.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Importance of bands up to so many Hz, and above the last, to the speech intelligibility index (ANSI S3.5),
# relative to the greatest, as the paper takes it.
_UP_TO_HZ = (94.0, 188.0, 281.0, 375.0, 4312.0, 5188.0, 6250.0, 7531.0)
_IMPORTANCE = (0.0, 0.175, 0.456, 0.719, 1.0, 0.807, 0.596, 0.403, 0.193)
_KEPT = 3.0  # the magnitude, relative to the level, that stays as it is: that of loud speech


def importance(n_bins: int, rate_hz: int) -> Tensor:
    """Of each frequency of a spectrum, 0 to 1, ``(n_bins,)``."""
    hz = torch.linspace(0, rate_hz / 2, n_bins)
    return torch.tensor(_IMPORTANCE)[torch.bucketize(hz, torch.tensor(_UP_TO_HZ))]


def stretched(spectra: Tensor, importance: Tensor, strength: float) -> Tensor:
    """Complex spectra ``(..., n_bins)``, relative to the level; phases stay.

    Args:
        spectra: To stretch.
        importance: Of each bin.
        strength: 0 changes nothing; the paper's is 0.4.
    """
    size = spectra.abs().clamp(min=1e-8)
    wanted = torch.expm1((1 + strength * importance) * torch.log1p(size))
    same = _KEPT / math.expm1((1 + strength) * math.log1p(_KEPT))
    return spectra * (same * wanted / size)
