"""Utterances in memory, and mixtures made of them: speech with noise, two speakers at once.

What chance decides comes from one ``numpy`` generator, so that a seed makes a mixture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mambakit.core.errors import DataError
from mambakit.domains.speech.audio import read_audio
from mambakit.domains.speech.augment import reverberate, room_response
from mambakit.domains.speech.enhance.config import MixConfig
from mambakit.domains.speech.noises import Signal, babble, coloured, cut, low_passed, machine
from mambakit.domains.speech.utterances import Utterances

_QUIET_DB = -40.0  # below the loudest frame: a pause
_PEAK = 0.95


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
        self._of = {name: [one for one in spoken if one.speaker == name] for name in self.speakers}

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

    def draw(self, n: int, rng: np.random.Generator, speaker: str | None = None) -> Spoken:
        """``n`` samples of one speaker: a cut of an utterance, or several with pauses between."""
        if speaker is None:
            first = self.spoken[rng.integers(len(self.spoken))]
            speaker = first.speaker
        own = self._of[speaker]
        filled, at, band = np.zeros(n, np.float32), 0, self.rate_hz / 2
        while at < n:
            one = own[rng.integers(len(own))]
            room = n - at
            start = rng.integers(len(one.samples) - room + 1) if len(one.samples) > room else 0
            piece = one.samples[start : start + room]
            filled[at : at + len(piece)] = piece
            band = min(band, one.band_hz)
            at += len(piece) + int(rng.uniform(0, 0.4) * self.rate_hz)
        return Spoken(filled, speaker, band)


def _read(utterances: Utterances, place: int, rate_hz: int) -> Spoken:
    row = utterances.table.iloc[place]
    clean = row["clean_path"]
    end = None if np.isnan(row["end_s"]) else float(row["end_s"])
    path = clean if isinstance(clean, str) else row["path"]
    own = read_audio(path, start_s=float(row["start_s"]), end_s=end)
    audio = own
    if own.rate_hz != rate_hz:
        audio = read_audio(path, rate_hz=rate_hz, start_s=float(row["start_s"]), end_s=end)
    samples = audio.samples.numpy()
    peak = float(np.abs(samples).max())
    if peak < 1e-4:
        raise DataError(f"{path}: is silent")
    speaker = row["speaker"] if isinstance(row["speaker"], str) else "unknown"
    return Spoken((samples / peak * 0.5).astype(np.float32), speaker, min(own.rate_hz, rate_hz) / 2)


def active_power(samples: Signal, rate_hz: int) -> float:
    """Mean square of the stretches of 20 ms that are within 40 dB of the loudest: pauses do not count."""
    width = max(1, int(0.02 * rate_hz))
    whole = len(samples) // width * width
    if not whole:
        return float(np.mean(np.square(samples, dtype=np.float64)))
    power = np.square(samples[:whole], dtype=np.float64).reshape(-1, width).mean(1)
    return float(power[power >= power.max() * 10 ** (_QUIET_DB / 10)].mean())


class NoisyMixer:
    """Makes pairs of noisy and clean speech.

    Args:
        pool: The speech.
        noises: Recordings of noise at the pool's rate.
        config: How mixtures are made.
    """

    def __init__(self, pool: SpeechPool, noises: Sequence[Signal], config: MixConfig) -> None:
        self.pool, self.noises, self.config = pool, list(noises), config
        self.n = round(config.segment_s * pool.rate_hz)

    def make(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Noisy and clean speech, ``(n,)`` float32 each; they differ by the noise alone."""
        config, rate = self.config, self.pool.rate_hz
        speech = self.pool.draw(self.n, rng)
        clean = speech.samples
        if rng.random() < config.rooms:
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            response = room_response(rate, rng.uniform(0.1, 0.6), generator)
            clean = reverberate(torch.from_numpy(clean), response).numpy()
        # a recording without high frequencies must not teach that they are noise
        noise = low_passed(self._noise(rng), rate, speech.band_hz)
        snr_db = rng.uniform(config.snr_low_db, config.snr_high_db)
        power = float(np.mean(np.square(noise, dtype=np.float64))) + 1e-12
        noise = noise * np.sqrt(active_power(clean, rate) / power / 10 ** (snr_db / 10))
        noisy = clean + noise
        gain = 10 ** (rng.uniform(-config.gain_db, config.gain_db) / 20)
        gain = min(gain, _PEAK / max(float(np.abs(noisy).max()), float(np.abs(clean).max()), 1e-6))
        return _tensor(noisy * gain), _tensor(clean * gain)

    def _noise(self, rng: np.random.Generator) -> Signal:
        config, rate, kind = self.config, self.pool.rate_hz, rng.random()
        if self.noises and kind < config.real_noise:
            return cut(self.n, self.noises, rng)
        if kind > 1 - config.babble:
            voices = [self.pool.draw(self.n, rng).samples for _ in range(rng.integers(4, 9))]
            return babble(self.n, voices, rng)
        return machine(self.n, rate, rng) if rng.random() < 0.35 else coloured(self.n, rate, rng)


class TwoSpeakerMixer:
    """Makes mixtures of two speakers, and the two alone.

    Args:
        pool: Utterances of two speakers at least.
        segment_s: Seconds of a mixture.
        level_db: The second speaker is louder or softer than the first by up to so much.
        pairs: Which two speakers are heard together; any two by default.

    Raises:
        DataError: If the pool has fewer than two speakers.
    """

    def __init__(
        self,
        pool: SpeechPool,
        segment_s: float,
        level_db: float = 2.5,
        pairs: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        if len(pool.speakers) < 2:
            raise DataError(
                f"separation takes utterances of two speakers at least, got {len(pool.speakers)}: "
                f"{', '.join(pool.speakers)}; name them in a column speaker"
            )
        self.pool, self.n, self.level_db = pool, round(segment_s * pool.rate_hz), level_db
        self.pairs = None if pairs is None else list(pairs)

    def make(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The mixture ``(n,)`` and its sources ``(2, n)``, which add up to it."""
        if self.pairs is None:
            one, two = rng.choice(self.pool.speakers, 2, replace=False)
        else:
            one, two = self.pairs[rng.integers(len(self.pairs))]
        sources = []
        for i, speaker in enumerate((str(one), str(two))):
            samples = self.pool.draw(self.n, rng, speaker).samples
            level = np.sqrt(active_power(samples, self.pool.rate_hz)) + 1e-9
            sources.append(samples / level * 10 ** (i * rng.uniform(-self.level_db, self.level_db) / 20))
        both = np.stack(sources)
        both *= rng.uniform(0.3, 0.9) / max(float(np.abs(both.sum(0)).max()), float(np.abs(both).max()), 1e-6)
        return _tensor(both.sum(0)), _tensor(both)


class Mixed(Dataset[tuple[Tensor, Tensor]]):
    """Pairs that a mixer makes: new ones every time, or with ``seed`` the same ones at the same place.

    New ones come from torch's generator, so that a seeded run makes the same, in workers too.

    Args:
        mixer: With ``make(rng)``.
        count: How many are in an epoch.
        seed: Of pairs that stay.
    """

    def __init__(self, mixer: NoisyMixer | TwoSpeakerMixer, count: int, seed: int | None = None) -> None:
        self.mixer, self.count, self.seed = mixer, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        if not 0 <= place < self.count:
            raise IndexError(place)
        seeds = [int(torch.randint(2**31, ()))] if self.seed is None else [self.seed, place]
        return self.mixer.make(np.random.default_rng(seeds))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[place] for place in range(self.count))


def _tensor(samples: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
