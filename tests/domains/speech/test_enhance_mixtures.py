"""Mixtures: what is in them, and that a seed makes the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.enhance.config import MixConfig
from mambakit.domains.speech.mixtures import (
    Mixed,
    NoisyMixer,
    SpeechPool,
    Spoken,
    TwoSpeakerMixer,
    active_power,
)
from mambakit.domains.speech.noises import coloured, low_passed, machine

RATE = 8000


def pool(speakers: int = 3, band_hz: float = 4000.0) -> SpeechPool:
    rng = np.random.default_rng(0)
    made = []
    for i in range(speakers):
        for _ in range(3):
            n = int(rng.integers(1500, 5000))
            tone = 0.5 * np.sin(2 * np.pi * (150 + 90 * i) * np.arange(n) / RATE)
            made.append(Spoken(tone.astype(np.float32), f"s{i}", band_hz))
    return SpeechPool(made, RATE)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), snr=st.floats(-10, 30))
def test_noise_is_added_at_the_ratio_asked_for(seed: int, snr: float) -> None:
    config = MixConfig(segment_s=0.5, snr_low_db=snr, snr_high_db=snr, rooms=0.5)
    noisy, clean = NoisyMixer(pool(), [], config).make(np.random.default_rng(seed))
    noise = (noisy - clean).double().square().mean()
    got = 10 * np.log10(active_power(clean.numpy(), RATE) / float(noise))
    assert got == pytest.approx(snr, abs=0.05)
    assert noisy.abs().max() <= 0.951


def test_a_seed_makes_the_same_mixtures_and_without_one_they_are_new() -> None:
    mixer = NoisyMixer(pool(), [np.ones(100, np.float32)], MixConfig(segment_s=0.3))
    kept = Mixed(mixer, 3, seed=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(list(kept), list(kept), strict=True))
    assert not torch.equal(kept[0][0], kept[1][0])
    torch.manual_seed(0)
    first, second = Mixed(mixer, 1)[0][0], Mixed(mixer, 1)[0][0]
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, Mixed(mixer, 1)[0][0])


def test_speech_without_high_frequencies_gets_noise_without_them() -> None:
    config = MixConfig(segment_s=0.5, rooms=0.0, babble=0.0)
    noisy, clean = NoisyMixer(pool(band_hz=1000.0), [], config).make(np.random.default_rng(3))
    spectrum = np.abs(np.fft.rfft((noisy - clean).numpy()))
    above = np.fft.rfftfreq(len(noisy), 1 / RATE) > 1010
    assert spectrum[above].max() < 1e-3 * spectrum.max()


@pytest.mark.parametrize("make", [coloured, machine])
def test_noises_are_of_unit_level_and_differ(make) -> None:  # type: ignore[no-untyped-def]
    one, two = (make(4000, RATE, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.isfinite(one).all()
    assert np.mean(one**2) == pytest.approx(1, rel=1e-3)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.5


def test_low_passing_at_half_the_rate_changes_nothing() -> None:
    x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    assert low_passed(x, RATE, 4000) is x


def test_two_speakers_add_up_and_are_never_the_same() -> None:
    mixer = TwoSpeakerMixer(pool(2), 0.5, level_db=0.0)
    for seed in range(5):
        mixture, sources = mixer.make(np.random.default_rng(seed))
        torch.testing.assert_close(mixture, sources.sum(0), rtol=0, atol=1e-6)
        peaks = torch.fft.rfft(sources).abs().argmax(-1).tolist()
        assert abs(peaks[0] - peaks[1]) > 30  # 150 and 240 Hz in bins of 2 Hz
        levels = [active_power(one.numpy(), RATE) for one in sources]
        assert levels[0] == pytest.approx(levels[1], rel=1e-3)
    with pytest.raises(DataError, match="two speakers at least, got 1"):
        TwoSpeakerMixer(pool(1), 0.5)


def test_shares_that_are_more_than_all_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 1 together"):
        MixConfig(real_noise=0.7, babble=0.5)
