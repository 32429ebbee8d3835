"""What is done to the samples while training: noise, speed, rooms and gain, by a seeded generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.domains.speech.audio import resample


@dataclass(frozen=True)
class AugmentConfig:
    """What is done, how often and how far; see each field."""

    speed: float = 0.5
    """Share of the utterances that are played faster or slower, which moves their pitch too."""
    speed_range: tuple[float, float] = (0.8, 1.25)
    """The factors."""
    noise: float = 0.5
    """Share that gets noise."""
    snr_db: tuple[float, float] = (5.0, 30.0)
    """How far speech is above it."""
    reverberation: float = 0.3
    """Share that is heard in a room."""
    gain_db: tuple[float, float] = (-12.0, 12.0)
    """How much louder all are made."""

    def __post_init__(self) -> None:
        for name in ("speed", "noise", "reverberation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}: expected a share from 0 to 1, got {getattr(self, name)}")
        for name in ("speed_range", "snr_db", "gain_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise UsageError(f"{name}: expected the lower one first, got {low}, {high}")
        if self.speed_range[0] <= 0:
            raise UsageError(f"speed_range: expected factors above 0, got {self.speed_range[0]}")


def augment(
    samples: Tensor,
    rate_hz: int,
    config: AugmentConfig,
    generator: torch.Generator,
    noises: Sequence[Tensor] = (),
) -> Tensor:
    """One utterance ``(n,)`` changed at random; its length changes with the speed.

    Args:
        samples: ``(n,)``.
        rate_hz: Their rate.
        config: What may be done.
        generator: Decides; the same one makes the same.
        noises: Recordings of noise at the same rate to draw from; coloured noise is made beside them.
    """
    if _chance(generator) < config.speed:
        samples = change_speed(samples, _between(config.speed_range, generator))
    if _chance(generator) < config.reverberation:
        samples = reverberate(samples, room_response(rate_hz, _between((0.1, 0.5), generator), generator))
    if _chance(generator) < config.noise:
        which = int(torch.randint(0, len(noises) + 1, (), generator=generator))
        if which < len(noises):
            noise = stretch(noises[which], len(samples), generator)
        else:
            noise = coloured_noise(len(samples), _between((0.0, 2.0), generator), generator)
        samples = mix(samples, noise, _between(config.snr_db, generator))
    return samples * 10 ** (_between(config.gain_db, generator) / 20)


def mix(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """``speech + g * noise`` with the power of the speech ``snr_db`` above that of ``g * noise``.

    Silent speech or silent noise is left as it is. Both are ``(..., n)``; powers are over n.
    """
    power_s, power_n = speech.square().mean(-1, keepdim=True), noise.square().mean(-1, keepdim=True)
    gain = (power_s / power_n.clamp(min=1e-20) / 10 ** (snr_db / 10)).sqrt()
    return speech + torch.where((power_n > 0) & (power_s > 0), gain, 0.0) * noise


def change_speed(samples: Tensor, factor: float) -> Tensor:
    """Played ``factor`` times as fast, pitch and all; ``(n,)`` to about ``(n / factor,)``.

    The factor is rounded to twentieths, so that resampling filters stay short.
    """
    twentieths = max(1, round(factor * 20))
    return resample(samples, twentieths, 20)


def room_response(rate_hz: int, decay_s: float, generator: torch.Generator) -> Tensor:
    """A room's impulse response: the direct sound, then noise that falls by 60 dB in ``decay_s``.

    The simplest model of diffuse reverberation (Polack 1988): Gaussian noise under an exponential.
    """
    n = max(1, int(rate_hz * decay_s))
    time = torch.arange(n) / rate_hz
    tail = torch.randn(n, generator=generator) * torch.exp(-3 * math.log(10) * time / decay_s)
    tail[: max(1, int(0.002 * rate_hz))] = 0.0
    share = _between((0.05, 0.5), generator)
    tail *= math.sqrt(share / (1 - share)) / tail.norm().clamp(min=1e-9)
    tail[0] = 1.0
    return tail


def reverberate(samples: Tensor, response: Tensor) -> Tensor:
    """``samples`` ``(n,)`` in the room, as long as before."""
    n = len(samples) + len(response) - 1
    spectrum = torch.fft.rfft(samples, n) * torch.fft.rfft(response, n)
    return torch.fft.irfft(spectrum, n)[: len(samples)]


def coloured_noise(n: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Noise ``(n,)`` whose power falls with frequency to this exponent: 0 white, 1 pink, 2 brown."""
    spectrum = torch.fft.rfft(torch.randn(n, generator=generator))
    frequency = torch.arange(1, len(spectrum) + 1)
    noise = torch.fft.irfft(spectrum * frequency ** (-exponent / 2), n)
    return noise / noise.square().mean().sqrt().clamp(min=1e-9)


def stretch(noise: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n samples of a recording from a random place, repeated where it is too short."""
    noise = noise.repeat(math.ceil((n + 1) / len(noise)))
    start = int(torch.randint(0, len(noise) - n + 1, (), generator=generator))
    return noise[start : start + n]


def _chance(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _between(limits: tuple[float, float], generator: torch.Generator) -> float:
    return limits[0] + (limits[1] - limits[0]) * _chance(generator)
