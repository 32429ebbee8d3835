"""Noises made by chance: coloured noise, hum of machines, and cuts of recordings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float32]
_FEW = 1e-12


def coloured(n: int, rate_hz: int, rng: np.random.Generator) -> Signal:
    """Noise whose power falls as 1/f**b with b from 0 (white) to 2 (brown), with broad bumps, ``(n,)``.

    Its level moves slowly where chance says so, as that of wind and traffic does.
    """
    spectrum = np.fft.rfft(rng.standard_normal(n))
    f = np.fft.rfftfreq(n, 1 / rate_hz)
    gain = np.maximum(f, 20.0) ** (-0.5 * rng.uniform(0, 2))
    for _ in range(rng.integers(0, 4)):
        centre, width = np.exp(rng.uniform(np.log(80), np.log(rate_hz / 2))), rng.uniform(0.1, 0.8)
        bump = np.exp(-0.5 * (np.log(np.maximum(f, 1.0) / centre) / width) ** 2)
        gain = gain * 10 ** (rng.uniform(-15, 15) / 20 * bump)
    noise = np.fft.irfft(spectrum * gain, n)
    if rng.random() < 0.4:
        noise = noise * _slow(n, rate_hz, rng, deviation_db=6.0)
    return _unit(noise)


def machine(n: int, rate_hz: int, rng: np.random.Generator) -> Signal:
    """A fan, a motor or a hum: harmonics of one slightly wandering tone over coloured noise, ``(n,)``."""
    base = np.exp(rng.uniform(np.log(40), np.log(400)))
    wander = 1 + 0.01 * rng.random() * (_slow(n, rate_hz, rng, deviation_db=3.0) - 1)
    phase = 2 * np.pi * np.cumsum(base * wander) / rate_hz
    tone = np.zeros(n)
    falls = rng.uniform(0.5, 2.0)
    for k in range(1, int(min(rng.integers(3, 25), 0.5 * rate_hz / (1.02 * base))) + 1):
        tone += rng.uniform(0.2, 1.0) * k**-falls * np.sin(k * phase + rng.uniform(0, 2 * np.pi))
    beat = 1 + rng.uniform(0, 0.5) * np.sin(2 * np.pi * rng.uniform(1, 20) * np.arange(n) / rate_hz)
    mixed = _unit(tone * beat) * 10 ** (rng.uniform(-12, 6) / 20) + coloured(n, rate_hz, rng)
    return _unit(mixed)


def babble(n: int, voices: Sequence[Signal], rng: np.random.Generator) -> Signal:
    """Several utterances at once, each at a level of its own, ``(n,)``; ``voices`` are ``(n,)`` each."""
    total = np.zeros(n)
    for voice in voices:
        total += _unit(voice) * 10 ** (rng.uniform(-6, 3) / 20)
    return _unit(total)


def cut(n: int, recordings: Sequence[Signal], rng: np.random.Generator) -> Signal:
    """A cut of one of some recordings, or of two at once, ``(n,)``; short ones go round."""
    total = np.zeros(n)
    for _ in range(1 + (rng.random() < 0.3)):
        recording = recordings[int(rng.integers(len(recordings)))]
        start = rng.integers(len(recording))
        total += _unit(np.resize(np.roll(recording, -start), n)) * rng.uniform(0.3, 1.0)
    return _unit(total)


def low_passed(signal: Signal, rate_hz: int, below_hz: float) -> Signal:
    """A signal without what lies above a frequency, ``(n,)``."""
    if below_hz >= rate_hz / 2:
        return signal
    spectrum = np.fft.rfft(signal)
    spectrum[np.fft.rfftfreq(len(signal), 1 / rate_hz) > below_hz] = 0
    return np.fft.irfft(spectrum, len(signal)).astype(np.float32)


def _slow(n: int, rate_hz: int, rng: np.random.Generator, deviation_db: float) -> NDArray[np.float64]:
    """A gain that moves within a second or so, around 1."""
    points = max(int(n / rate_hz * 3), 1) + 2
    decibels = np.clip(rng.standard_normal(points) * deviation_db, -2 * deviation_db, 2 * deviation_db)
    moving: NDArray[np.float64] = 10 ** (
        np.interp(np.linspace(0, points - 1, n), range(points), decibels) / 20
    )
    return moving


def _unit(signal: NDArray[np.floating]) -> Signal:
    """At a root mean square of 1; silence stays."""
    return (signal / np.sqrt(np.mean(np.square(signal), dtype=np.float64) + _FEW)).astype(np.float32)
