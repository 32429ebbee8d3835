"""Noises made by chance, a batch at once: coloured noise, hum of machines, and babble."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mambakit.domains.speech.chance import Chance

Signal = NDArray[np.float32]
_FEW = 1e-12
_BUMPS, _HARMONICS = 3, 24


def coloured(batch: int, n: int, rate_hz: int, chance: Chance) -> Tensor:
    """Noise whose power falls as 1/f**b with b from 0 (white) to 2 (brown), with broad bumps, ``(batch, n)``.

    The level of some moves slowly, as that of wind and traffic does.
    """
    spectrum = torch.fft.rfft(chance.normal(batch, n))
    f = torch.arange(spectrum.shape[1], device=chance.device) * (rate_hz / n)
    gain = f.clamp(min=20.0) ** (-0.5 * chance.uniform(0, 2, batch, 1))
    octaves = f.clamp(min=1.0).log()
    for _ in range(_BUMPS):
        centre = chance.uniform(math.log(80), math.log(rate_hz / 2), batch, 1)
        bump = torch.exp(-0.5 * ((octaves - centre) / chance.uniform(0.1, 0.8, batch, 1)).square())
        there = chance.uniform(0, 1, batch, 1) < 0.5
        gain = gain * 10 ** (there * chance.uniform(-15, 15, batch, 1) / 20 * bump)
    noise = torch.fft.irfft(spectrum * gain, n)
    moving = chance.uniform(0, 1, batch, 1) < 0.4
    return to_unit(noise * torch.where(moving, _slow(batch, n, rate_hz, chance, deviation_db=6.0), 1.0))


def machine(batch: int, n: int, rate_hz: int, chance: Chance) -> Tensor:
    """A fan, a motor or a hum: harmonics of a slightly wandering tone over coloured noise, ``(batch, n)``."""
    base = chance.uniform(math.log(40), math.log(400), batch, 1).exp()
    slow = _slow(batch, n, rate_hz, chance, deviation_db=3.0) - 1
    wander = 1 + 0.01 * chance.uniform(0, 1, batch, 1) * slow
    turns = (base * wander / rate_hz).double().cumsum(1)
    highest = torch.minimum(
        3 + chance.below(_HARMONICS - 2, batch, 1), (0.5 * rate_hz / (1.02 * base)).long()
    )
    falls = chance.uniform(0.5, 2.0, batch, 1)
    k = torch.arange(1, _HARMONICS + 1, device=chance.device)
    levels = chance.uniform(0.2, 1.0, batch, _HARMONICS) * k**-falls * (k <= highest)
    phases = (k[:, None] * turns[:, None] + chance.uniform(0, 1, batch, _HARMONICS, 1)).frac().float()
    tone = torch.einsum("bk,bkn->bn", levels, torch.sin(2 * math.pi * phases))
    time = torch.arange(n, device=chance.device) / rate_hz
    depth, beats = chance.uniform(0, 0.5, batch, 1), chance.uniform(1, 20, batch, 1)
    hum = to_unit(tone * (1 + depth * torch.sin(2 * math.pi * beats * time)))
    return to_unit(hum * 10 ** (chance.uniform(-12, 6, batch, 1) / 20) + coloured(batch, n, rate_hz, chance))


def babble(voices: Tensor, chance: Chance) -> Tensor:
    """Several utterances at once, each at a level of its own: ``(batch, n_voices, n)`` to ``(batch, n)``.

    At least four are heard.
    """
    batch, n_voices, _ = voices.shape
    level = 10 ** (chance.uniform(-6, 3, batch, n_voices, 1) / 20)
    heard = torch.arange(n_voices, device=chance.device) < 4 + chance.below(n_voices - 3, batch, 1)
    return to_unit((to_unit(voices) * level * heard[..., None]).sum(1))


def low_passed(signals: Tensor, rate_hz: int, below_hz: Tensor) -> Tensor:
    """Signals ``(batch, n)`` without what lies above a frequency each, ``(batch,)``."""
    n = signals.shape[-1]
    f = torch.arange(n // 2 + 1, device=signals.device) * (rate_hz / n)
    return torch.fft.irfft(torch.fft.rfft(signals) * (f <= below_hz[:, None]), n)


def to_unit(signals: Tensor) -> Tensor:
    """At a root mean square of 1 over the last dimension; silence stays."""
    return signals / (signals.square().mean(-1, keepdim=True) + _FEW).sqrt()


def _slow(batch: int, n: int, rate_hz: int, chance: Chance, deviation_db: float) -> Tensor:
    """A gain ``(batch, n)`` that moves within a second or so, around 1."""
    points = max(int(n / rate_hz * 3), 1) + 2
    decibels = (chance.normal(batch, points) * deviation_db).clamp(-2 * deviation_db, 2 * deviation_db)
    moving = F.interpolate(decibels[:, None], n, mode="linear", align_corners=True)[:, 0]
    return 10 ** (moving / 20)
