"""What is done to the samples while training: noise, speed, rooms and gain, to whole batches at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import padding_mask
from mambakit.core.config_checks import check_shares
from mambakit.core.errors import UsageError
from mambakit.domains.speech.audio import resample
from mambakit.domains.speech.chance import Chance, moved

_WAVES = 3  # of a bent frequency response


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
        check_shares(self, "speed", "noise", "reverberation")
        for name in ("speed_range", "snr_db", "gain_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise UsageError(f"{name}: expected the lower one first, got {low}, {high}")
        if self.speed_range[0] <= 0:
            raise UsageError(f"speed_range: expected factors above 0, got {self.speed_range[0]}")


class Augmenter(nn.Module):
    """Changes whole batches at random, on their device.

    Args:
        config: What may be done.
        rate_hz: Of the recordings.
        noises: Recordings of noise at the same rate to draw from; coloured noise is made beside them.
    """

    def __init__(self, config: AugmentConfig, rate_hz: int, noises: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.config, self.rate_hz = config, rate_hz
        self.noises = Recordings(noises) if noises else None

    def forward(
        self,
        samples: Tensor,
        lengths: Tensor,
        chance: Chance | None = None,
        *,
        least: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Recordings ``(batch, n)``, zero at padding, and their lengths ``(batch,)``, both changed.

        Args:
            samples: The recordings.
            lengths: Samples of each.
            chance: Decides; torch's own generators by default.
            least: Samples that each must keep: what would be played so fast that it has fewer is not.
        """
        chance = chance or Chance(samples.device)
        config, batch = self.config, len(samples)
        # autocast would pass samples through the filter in half precision
        with torch.autocast(samples.device.type, enabled=False):
            samples, lengths = self._at_other_speeds(samples, lengths, chance, least)
        there = ~padding_mask(lengths, samples.shape[1])
        if len(rows := chance.rows(config.reverberation, batch)):
            decays = chance.uniform(0.1, 0.5, len(rows))
            heard = reverberate(samples[rows], room_responses(self.rate_hz, decays, 0.5, chance))
            samples = samples.index_copy(0, rows, heard)
        if len(rows := chance.rows(config.noise, batch)):
            noise = self._noise(len(rows), samples.shape[1], chance) * there[rows]
            noisy = mix(samples[rows], noise, chance.uniform(*config.snr_db, len(rows), 1))
            samples = samples.index_copy(0, rows, noisy)
        gain = 10 ** (chance.uniform(*config.gain_db, batch, 1) / 20)
        return samples * gain * there, lengths

    def _at_other_speeds(
        self, samples: Tensor, lengths: Tensor, chance: Chance, least: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Played faster or slower, in twentieths: rows of like speed pass through one filter."""
        changed = chance.decide(0.0, 1.0, len(samples)) < self.config.speed
        twentieths = (20 * chance.decide(*self.config.speed_range, len(samples))).round().clamp(min=1).long()
        twentieths = torch.where(changed, twentieths, 20)
        width = -(-samples.shape[1] * 20 // min(20, int(twentieths.min())))
        made = F.pad(samples, (0, width - samples.shape[1]))
        for factor in sorted(set(twentieths.tolist()) - {20}):
            rows = moved((twentieths == factor).nonzero()[:, 0], samples.device)
            faster = resample(samples[rows], factor, 20)
            made = made.index_copy(0, rows, F.pad(faster, (0, width - faster.shape[1])))
        by = moved(twentieths, lengths.device)
        shorter = (lengths * 20 + by - 1) // by
        if least is not None:
            fits = shorter >= least
            made = torch.where(fits[:, None], made, F.pad(samples, (0, width - samples.shape[1])))
            shorter = torch.where(fits, shorter, lengths)
        return made, shorter

    def _noise(self, batch: int, n: int, chance: Chance) -> Tensor:
        """``(batch, n)``: coloured, or cuts of recordings, of which each is as likely as a colour."""
        recorded = 0
        if self.noises is not None:
            share = len(self.noises) / (len(self.noises) + 1)
            recorded = int((chance.decide(0.0, 1.0, batch) < share).sum())
        made = []
        if self.noises is not None and recorded:
            made.append(self.noises.cut(recorded, n, chance))
        if coloured := batch - recorded:
            made.append(coloured_noises(n, chance.uniform(0.0, 2.0, coloured), chance))
        return torch.cat(made)


class Recordings(nn.Module):
    """Recordings of noise in one tensor, from which stretches are cut.

    Args:
        recordings: ``(n,)`` each.
    """

    samples: Tensor
    starts: Tensor
    lengths: Tensor

    def __init__(self, recordings: Sequence[Tensor]) -> None:
        super().__init__()
        lengths = torch.tensor([len(one) for one in recordings])
        self.register_buffer("samples", torch.cat([one.float() for one in recordings]), persistent=False)
        self.register_buffer("lengths", lengths, persistent=False)
        self.register_buffer("starts", lengths.cumsum(0) - lengths, persistent=False)

    def __len__(self) -> int:
        return len(self.lengths)

    def cut(self, batch: int, n: int, chance: Chance) -> Tensor:
        """``(batch, n)``, each from a random place of one; short ones go round."""
        which = chance.below(len(self), batch)
        length = self.lengths[which][:, None]
        place = chance.below(length, batch, 1) + torch.arange(n, device=length.device)
        return self.samples[self.starts[which][:, None] + place % length]


def mix(speech: Tensor, noise: Tensor, snr_db: float | Tensor) -> Tensor:
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
    """A room's impulse response ``(rate_hz * decay_s,)``; see ``room_responses``."""
    chance = Chance(generator=generator)
    return room_responses(rate_hz, torch.tensor([decay_s]), decay_s, chance)[0]


def room_responses(rate_hz: int, decay_s: Tensor, most_s: float, chance: Chance) -> Tensor:
    """Impulse responses of rooms: the direct sound, then noise that falls by 60 dB in ``decay_s``.

    The simplest model of diffuse reverberation (Polack 1988): Gaussian noise under an exponential.

    Args:
        rate_hz: Samples a second.
        decay_s: ``(batch,)``.
        most_s: Seconds of a response.
        chance: Makes them.

    Returns:
        ``(batch, rate_hz * most_s)``.
    """
    n = max(1, int(rate_hz * most_s))
    time = torch.arange(n, device=chance.device) / rate_hz
    tail = chance.normal(len(decay_s), n) * torch.exp(-3 * math.log(10) * time / decay_s[:, None])
    tail[:, : max(1, int(0.002 * rate_hz))] = 0.0
    share = chance.uniform(0.05, 0.5, len(decay_s), 1)
    tail *= (share / (1 - share)).sqrt() / tail.norm(dim=1, keepdim=True).clamp(min=1e-9)
    tail[:, 0] = 1.0
    return tail


def reverberate(samples: Tensor, response: Tensor) -> Tensor:
    """``samples`` ``(..., n)`` in the rooms ``(..., m)``, as long as before."""
    n_fft = fft_size(samples.shape[-1] + response.shape[-1] - 1)
    spectrum = torch.fft.rfft(samples, n_fft) * torch.fft.rfft(response, n_fft)
    return torch.fft.irfft(spectrum, n_fft)[..., : samples.shape[-1]]


def coloured_noise(n: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Noise ``(n,)``; see ``coloured_noises``."""
    return coloured_noises(n, torch.tensor([exponent]), Chance(generator=generator))[0]


def coloured_noises(n: int, exponents: Tensor, chance: Chance) -> Tensor:
    """Noise ``(batch, n)`` whose power falls with frequency to these exponents: 0 white, 1 pink, 2 brown."""
    spectrum = torch.fft.rfft(chance.normal(len(exponents), fft_size(n)))
    frequency = torch.arange(1, spectrum.shape[1] + 1, device=spectrum.device)
    noise = torch.fft.irfft(spectrum * frequency ** (-exponents[:, None] / 2), fft_size(n))[:, :n]
    return noise / noise.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-9)


def tilts(batch: int, at: Tensor, deviation_db: float, chance: Chance) -> Tensor:
    """Random frequency responses as logarithms of power, ``(batch, n)``: three slow waves.

    Args:
        batch: How many.
        at: ``(n,)`` the frequencies' places, from 0 to 1.
        deviation_db: Of each wave.
        chance: Draws them.
    """
    waves = torch.arange(1, _WAVES + 1, device=at.device)[:, None]
    drawn = chance.normal(batch, _WAVES) * (deviation_db * math.log(10) / 10)
    return drawn @ torch.cos(math.pi * waves * at)


def fft_size(n: int) -> int:
    """The next power of two: lengths with large primes are slow, and a GPU keeps tables of every length."""
    return 1 << max(0, n - 1).bit_length()


def of_few_lengths(samples: Tensor, rate_hz: int) -> Tensor:
    """``(batch, n)``, on a GPU filled up to half seconds: its tables, memory and graphs then serve again."""
    return F.pad(samples, (0, -samples.shape[1] % (rate_hz // 2))) if samples.is_cuda else samples


def stretch(noise: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n samples of a recording from a random place, repeated where it is too short."""
    noise = noise.repeat(math.ceil((n + 1) / len(noise)))
    start = int(torch.randint(0, len(noise) - n + 1, (), generator=generator))
    return noise[start : start + n]
