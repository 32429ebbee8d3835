"""What a learned model is measured beside: the log-spectral amplitude estimator, which learns nothing.

Ephraim & Malah 1985 (IEEE Trans. ASSP 33(2)), equation 20, with the decision-directed a-priori ratio of
Ephraim & Malah 1984, equation 51. The power of the noise is tracked by the probability that there is speech
(Gerkmann & Hendriks 2012, IEEE Trans. ASLP 20(4), equations 18, 22 and 23). Causal.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import exp1
from torch import Tensor

from mambakit.domains.speech.spectral.stft import CausalSTFT

_DECISION = 0.98  # weight of the last frame's estimate
_LEAST_RATIO = 10 ** (-25 / 10)
_LEAST_GAIN = 10 ** (-20 / 20)  # less than this leaves musical noise
_PRESENT_RATIO = 10 ** (15 / 10)  # a-priori ratio where there is speech, fixed as in the paper
_LISTENED_S = 0.1  # taken for noise at the beginning


def log_mmse(samples: Tensor, rate_hz: int) -> Tensor:
    """Noisy speech ``(n,)`` to enhanced speech ``(n,)``; windows of 32 ms, 8 ms apart."""
    n = len(samples)
    hop = max(1, round(0.008 * rate_hz))
    stft = CausalSTFT(4 * hop, hop)
    spectra = stft.whole(samples[None].float())[0].numpy()
    power = np.square(np.abs(spectra)).astype(np.float64) + 1e-12
    # frames of the first hops lie partly on the silence before the recording
    first = slice(3, 3 + max(1, round(_LISTENED_S * rate_hz / hop)))
    noise = power[first].mean(0) if len(power) > 3 else power.mean(0)
    presence = np.full_like(noise, 0.5)
    amplitude = np.zeros_like(noise)
    gains = np.empty_like(power)
    for t, now in enumerate(power):
        likelihood = (1 + _PRESENT_RATIO) * np.exp(-now / noise * _PRESENT_RATIO / (1 + _PRESENT_RATIO))
        there = 1 / (1 + likelihood)
        presence = 0.9 * presence + 0.1 * there
        there = np.where(presence > 0.99, np.minimum(there, 0.99), there)
        before = noise
        noise = 0.8 * noise + 0.2 * (there * noise + (1 - there) * now)
        posterior = np.minimum(now / noise, 1e3)
        prior = _DECISION * amplitude / before + (1 - _DECISION) * np.maximum(posterior - 1, 0)
        prior = np.maximum(prior, _LEAST_RATIO)
        share = prior / (1 + prior)
        gain = share * np.exp(0.5 * exp1(np.maximum(share * posterior, 1e-8)))
        gains[t] = np.clip(gain, _LEAST_GAIN, 1.0)
        amplitude = np.square(gains[t]) * now
    cleaned = torch.from_numpy((spectra * gains).astype(np.complex64))[None]
    return stft.back(cleaned, n)[0]
