"""Utterances in memory, and mixtures made of them: speech with noise, two speakers at once.

Batches are made on the device that learns from them, new ones every time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mambakit.core.errors import DataError
from mambakit.domains.speech.audio import read_audio, resample
from mambakit.domains.speech.augment import Recordings, change_speed, reverberate, room_responses
from mambakit.domains.speech.chance import Chance
from mambakit.domains.speech.enhance.config import MixConfig
from mambakit.domains.speech.noises import Signal, babble, coloured, low_passed, machine, to_unit
from mambakit.domains.speech.utterances import Utterances

_QUIET_DB = -40.0  # below the loudest frame: a pause
_PEAK = 0.95
_PAUSE_S = 0.4  # between utterances at most
_MOST_PIECES = 32  # of a stretch; with shorter utterances its end is silent
_VOICES = 8  # of a babble at most
_AT_ONCE = 8
_BATCHES_AHEAD = 8


class Spoken(NamedTuple):
    """An utterance in memory."""

    samples: Signal
    speaker: str
    band_hz: float
    """Half the rate of its recording: it holds nothing above."""


class SpeechPool:
    """Utterances of several speakers at one rate, from which stretches of speech are drawn.

    Args:
        spoken: The utterances; each holds some sound.
        rate_hz: Their rate.
    """

    def __init__(self, spoken: Sequence[Spoken], rate_hz: int) -> None:
        self.spoken, self.rate_hz = list(spoken), rate_hz
        self.speakers = sorted({one.speaker for one in spoken})

    @classmethod
    def of(cls, utterances: Utterances, places: NDArray[np.int64], rate_hz: int) -> SpeechPool:
        """Rows of a table; silent ones and those that can't be read are left out with a warning.

        Raises:
            DataError: If none is left.
        """
        spoken, bad = [], []
        for place in places.tolist():
            try:
                spoken.append(_read(utterances, place, rate_hz))
            except DataError as error:
                bad.append(str(error))
        if not spoken:
            raise DataError(f"{utterances.name}: no utterance can be used; the first: {(bad or ['none'])[0]}")
        if bad:
            warnings.warn(f"{utterances.name}: {len(bad)} utterances left out: {bad[0]}", stacklevel=2)
        return cls(spoken, rate_hz)

    def __len__(self) -> int:
        return len(self.spoken)

    def at_speeds(self, factors: Sequence[float]) -> SpeechPool:
        """These utterances, and each of them so many times as fast: another speaker's, by its pitch."""
        spoken = list(self.spoken)
        for factor in factors:
            for one in self.spoken:
                samples = change_speed(torch.from_numpy(one.samples), factor).numpy()
                band = min(one.band_hz * factor, self.rate_hz / 2)
                spoken.append(Spoken(samples, f"{one.speaker} at {factor:g}", band))
        return SpeechPool(spoken, self.rate_hz)

    def in_pieces(self, piece_s: float) -> SpeechPool:
        """These utterances, cut into pieces of about so many seconds where they are quietest; 0 cuts none."""
        if not piece_s:
            return self
        spoken = [
            Spoken(piece, one.speaker, one.band_hz)
            for one in self.spoken
            for piece in _pieces(one.samples, round(piece_s * self.rate_hz), self.rate_hz)
        ]
        return SpeechPool(spoken, self.rate_hz)


def _pieces(samples: Signal, length: int, rate_hz: int) -> list[Signal]:
    """An utterance in pieces of ``length`` samples, give or take a third, that fade in and out."""
    count = max(1, round(len(samples) / length))
    width = max(1, rate_hz // 100)
    loudness = np.convolve(np.square(samples), np.ones(width), "same")
    cuts = []
    for k in range(1, count):
        begin = len(samples) * k // count - length // 3
        cuts.append(begin + int(loudness[begin : begin + 2 * (length // 3)].argmin()))
    pieces = [piece.copy() for piece in np.split(samples, cuts)]
    slope = np.linspace(0, 1, width // 2, dtype=np.float32)
    for piece in pieces[1:]:
        piece[: len(slope)] *= slope
    for piece in pieces[:-1]:
        piece[len(piece) - len(slope) :] *= slope[::-1]
    return [piece for piece in pieces if piece.any()]


def _read(utterances: Utterances, place: int, rate_hz: int) -> Spoken:
    row = utterances.table.iloc[place]
    clean = row["clean_path"]
    end = None if np.isnan(row["end_s"]) else float(row["end_s"])
    path = clean if isinstance(clean, str) else row["path"]
    own = read_audio(path, start_s=float(row["start_s"]), end_s=end)
    samples = resample(own.samples, own.rate_hz, rate_hz).numpy()
    peak = float(np.abs(samples).max())
    if peak < 1e-4:
        raise DataError(f"{path}: is silent")
    speaker = row["speaker"] if isinstance(row["speaker"], str) else "unknown"
    return Spoken((samples / peak * 0.5).astype(np.float32), speaker, min(own.rate_hz, rate_hz) / 2)


def active_power(samples: Tensor, rate_hz: int) -> Tensor:
    """Mean square over the stretches of 20 ms within 40 dB of the loudest, ``(..., n)`` to ``(...)``: pauses
    do not count."""
    width = max(1, int(0.02 * rate_hz))
    whole = samples.shape[-1] // width * width
    if not whole:
        return samples.square().mean(-1)
    power = samples[..., :whole].square().unflatten(-1, (-1, width)).mean(-1)
    active = power >= power.amax(-1, keepdim=True) * 10 ** (_QUIET_DB / 10)
    return (power * active).sum(-1) / active.sum(-1)


class Voices(nn.Module):
    """The utterances of a pool in one tensor, from which batches of speech are drawn.

    Args:
        pool: The utterances.
    """

    samples: Tensor
    starts: Tensor
    lengths: Tensor
    bands: Tensor
    speakers: Tensor
    first: Tensor
    counts: Tensor

    def __init__(self, pool: SpeechPool) -> None:
        super().__init__()
        number = {name: i for i, name in enumerate(pool.speakers)}
        spoken = sorted(pool.spoken, key=lambda one: number[one.speaker])
        lengths = torch.tensor([len(one.samples) for one in spoken])
        speakers = torch.tensor([number[one.speaker] for one in spoken])
        counts = torch.bincount(speakers)
        self.rate_hz, self.n_speakers, self.shortest = pool.rate_hz, len(number), int(lengths.min())
        for name, value in {
            "samples": torch.from_numpy(np.concatenate([one.samples for one in spoken])),
            "starts": lengths.cumsum(0) - lengths,
            "lengths": lengths,
            "bands": torch.tensor([one.band_hz for one in spoken]),
            "speakers": speakers,
            "first": counts.cumsum(0) - counts,
            "counts": counts,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def anyone(self, chance: Chance, *shape: int) -> Tensor:
        """Numbers of speakers, each as often as there is speech."""
        place = chance.below(len(self.samples), *shape)
        return self.speakers[torch.searchsorted(self.starts, place, right=True) - 1]

    def draw(self, n: int, speakers: Tensor, chance: Chance) -> tuple[Tensor, Tensor]:
        """``n`` samples of each speaker: a cut of an utterance, or several with pauses between.

        Args:
            n: How many.
            speakers: Their numbers, ``(batch,)``.
            chance: Draws.

        Returns:
            Samples ``(batch, n)``, and the frequency in Hz above which they hold nothing, ``(batch,)``.
        """
        batch = len(speakers)
        pieces = min(n // self.shortest + 1, _MOST_PIECES)
        which = self.first[speakers, None] + chance.below(self.counts[speakers, None], batch, pieces)
        lengths = self.lengths[which]
        pauses = chance.below(round(_PAUSE_S * self.rate_hz) + 1, batch, pieces)
        begins = (lengths + pauses).cumsum(1) - lengths - pauses
        cut = chance.below((lengths - (n - begins)).clamp(min=0) + 1, batch, pieces)
        time = torch.arange(n, device=which.device).expand(batch, n).contiguous()
        at = torch.searchsorted(begins, time, right=True) - 1
        place = time - begins.gather(1, at) + cut.gather(1, at)
        there = place < lengths.gather(1, at)
        source = self.starts[which].gather(1, at) + place
        spoken = self.samples[source.clamp(max=len(self.samples) - 1)] * there
        heard = torch.where(begins < n, self.bands[which], math.inf)
        return spoken, heard.amin(1)


class NoisyMixer(nn.Module):
    """Makes pairs of noisy and clean speech, a batch at once on its device.

    Args:
        pool: The speech.
        noises: Recordings of noise at the pool's rate.
        config: How mixtures are made.
    """

    def __init__(self, pool: SpeechPool, noises: Sequence[Signal], config: MixConfig) -> None:
        super().__init__()
        self.voices, self.config = Voices(pool), config
        self.noises = Recordings([torch.from_numpy(one) for one in noises]) if noises else None
        self.n = round(config.segment_s * pool.rate_hz)

    def forward(self, batch: int, chance: Chance | None = None) -> tuple[Tensor, Tensor]:
        """Noisy and clean speech, ``(batch, n)`` float32 each; they differ by the noise alone."""
        chance = chance or Chance(self.voices.samples.device)
        config, rate = self.config, self.voices.rate_hz
        clean, bands = self.voices.draw(self.n, self.voices.anyone(chance, batch), chance)
        if len(rows := chance.rows(config.rooms, batch)):
            responses = room_responses(rate, chance.uniform(0.1, 0.6, len(rows)), 0.6, chance)
            clean = clean.index_copy(0, rows, reverberate(clean[rows], responses))
        # a recording without high frequencies must not teach that they are noise
        noise = low_passed(self._noise(batch, chance), rate, bands)
        snr = 10 ** (chance.uniform(config.snr_low_db, config.snr_high_db, batch) / 10)
        power = noise.square().mean(-1) + 1e-12
        noise = noise * (active_power(clean, rate) / power / snr).sqrt()[:, None]
        noisy = clean + noise
        gain = 10 ** (chance.uniform(-config.gain_db, config.gain_db, batch, 1) / 20)
        peak = torch.maximum(noisy.abs().amax(1, keepdim=True), clean.abs().amax(1, keepdim=True))
        gain = torch.minimum(gain, _PEAK / peak.clamp(min=1e-6))
        return noisy * gain, clean * gain

    def _noise(self, batch: int, chance: Chance) -> Tensor:
        """``(batch, n)``, kinds in their order: rows are alike before, so that no shuffling is needed."""
        config, rate, n = self.config, self.voices.rate_hz, self.n
        kind = chance.decide(0.0, 1.0, batch)
        made = []
        recorded = kind < (config.real_noise if self.noises is not None else 0.0)
        if self.noises is not None and (count := int(recorded.sum())):
            one, other = (to_unit(self.noises.cut(count, n, chance)) for _ in range(2))
            both = chance.uniform(0, 1, count, 1) < 0.3
            levels = chance.uniform(0.3, 1.0, count, 2)
            made.append(to_unit(one * levels[:, :1] + both * other * levels[:, 1:]))
        talking = ~recorded & (kind > 1 - config.babble)
        if count := int(talking.sum()):
            speakers = self.voices.anyone(chance, count * _VOICES)
            voices, _ = self.voices.draw(n, speakers, chance)
            made.append(babble(voices.unflatten(0, (count, _VOICES)), chance))
        machines = ~recorded & ~talking & (chance.decide(0.0, 1.0, batch) < 0.35)
        if count := int(machines.sum()):
            made.append(machine(count, n, rate, chance))
        if count := batch - sum(len(one) for one in made):
            made.append(coloured(count, n, rate, chance))
        return torch.cat(made)


class TwoSpeakerMixer(nn.Module):
    """Makes mixtures of two speakers, and the two alone, a batch at once on its device.

    Args:
        pool: Utterances of two speakers at least.
        segment_s: Seconds of a mixture.
        level_db: The second speaker is louder or softer than the first by up to so much.

    Raises:
        DataError: If the pool has fewer than two speakers.
    """

    def __init__(self, pool: SpeechPool, segment_s: float, level_db: float = 2.5) -> None:
        super().__init__()
        if len(pool.speakers) < 2:
            raise DataError(
                f"separation takes utterances of two speakers at least, got {len(pool.speakers)}: "
                f"{', '.join(pool.speakers)}; name them in a column speaker"
            )
        self.voices, self.n = Voices(pool), round(segment_s * pool.rate_hz)
        self.level_db = level_db

    def forward(self, batch: int, chance: Chance | None = None) -> tuple[Tensor, Tensor]:
        """Mixtures ``(batch, n)`` and their sources ``(batch, 2, n)``, which add up to them."""
        chance = chance or Chance(self.voices.samples.device)
        one = chance.below(self.voices.n_speakers, batch)
        other = (one + 1 + chance.below(self.voices.n_speakers - 1, batch)) % self.voices.n_speakers
        samples = torch.stack([self.voices.draw(self.n, who, chance)[0] for who in (one, other)], 1)
        level = active_power(samples, self.voices.rate_hz).sqrt() + 1e-9
        level[:, 1] /= 10 ** (chance.uniform(-self.level_db, self.level_db, batch) / 20)
        sources = samples / level[..., None]
        peaks = torch.maximum(sources.sum(1).abs().amax(-1), sources.abs().amax((1, 2)))
        sources = sources * (chance.uniform(0.3, 0.9, batch) / peaks.clamp(min=1e-6))[:, None, None]
        return sources.sum(1), sources


class Stock:
    """Batches of a mixer: several are made at once, which on a GPU takes as many kernels as one does.

    Args:
        mixer: Makes them.
        ahead: How many at once; 8 on a GPU and 1 elsewhere by default.
    """

    def __init__(self, mixer: NoisyMixer | TwoSpeakerMixer, ahead: int | None = None) -> None:
        self.mixer, self.ahead = mixer, ahead
        self._made: list[tuple[Tensor, Tensor]] = []

    def take(self, batch: int) -> tuple[Tensor, Tensor]:
        """``batch`` pairs that were not taken before."""
        if not self._made or len(self._made[-1][0]) != batch:
            ahead = self.ahead or (_BATCHES_AHEAD if self.mixer.voices.samples.is_cuda else 1)
            one, two = self.mixer(ahead * batch)
            # rows come by kind of noise: every batch gets some of each
            self._made = [(one[i::ahead], two[i::ahead]) for i in range(ahead)]
        return self._made.pop()

    def clear(self) -> None:
        """Forgets what is left, so that an epoch depends on nothing but its seed."""
        self._made = []


def kept(mixer: NoisyMixer | TwoSpeakerMixer, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same ``count`` pairs for a seed, made on the CPU a few at a time."""
    chance = Chance(generator=torch.Generator().manual_seed(seed))
    made = [mixer(min(_AT_ONCE, count - at), chance) for at in range(0, count, _AT_ONCE)]
    first, second = (torch.cat(side) for side in zip(*made, strict=True))
    return first, second


def made_anew(steps: int, batch_size: int) -> DataLoader[Tensor]:
    """A loader of empty batches ``(batch_size,)``, for tasks whose batches a mixer makes on their device."""
    return DataLoader(torch.zeros(steps * batch_size), batch_size)  # type: ignore[arg-type]


def measuring_loader(pairs: tuple[Tensor, Tensor], batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Pairs in their order."""
    return DataLoader(TensorDataset(*pairs), batch_size)
