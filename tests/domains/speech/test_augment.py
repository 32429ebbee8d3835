"""Augmentation does what it says, and the same generator does the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.core.errors import UsageError
from mambakit.domains.speech.augment import (
    AugmentConfig,
    Augmenter,
    change_speed,
    coloured_noise,
    mix,
    reverberate,
    room_response,
    stretch,
)
from mambakit.domains.speech.chance import Chance


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(st.floats(-20, 40), st.floats(1e-3, 10))
def test_mixing_is_at_the_ratio(snr_db: float, level: float) -> None:
    speech, noise = torch.randn(2, 4000, generator=seeded()).double()
    added = mix(speech, level * noise, snr_db) - speech
    assert 10 * math.log10(float(speech.square().mean() / added.square().mean())) == pytest.approx(snr_db)


def test_silence_is_mixed_with_nothing() -> None:
    noise = torch.randn(100, generator=seeded())
    assert torch.equal(mix(torch.zeros(100), noise, 10.0), torch.zeros(100))
    assert torch.equal(mix(noise, torch.zeros(100), 10.0), noise)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_speed_moves_length_and_pitch(factor: float) -> None:
    tone = torch.sin(2 * math.pi * 500 * torch.arange(8000) / 8000)
    made = change_speed(tone, factor)
    assert len(made) == pytest.approx(8000 / factor, abs=1)
    heard = float(torch.fft.rfft(made).abs().argmax()) * 8000 / len(made)
    assert heard == pytest.approx(500 * factor, abs=2)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_falls_as_its_colour_says(exponent: float) -> None:
    power = torch.fft.rfft(coloured_noise(2**16, exponent, seeded())).abs().square()
    low, high = power[200:400].mean(), power[12800:25600].mean()
    fall = math.log2(float(low / high)) / 6  # octaves between
    assert fall == pytest.approx(exponent, abs=0.1)


def test_a_room_keeps_the_beginning_and_rings_on() -> None:
    click = torch.zeros(8000)
    click[100] = 1.0
    made = reverberate(click, room_response(8000, 0.3, seeded()))
    assert torch.allclose(made[:101], click[:101], atol=1e-5)
    early, late = made[120:900].square().sum(), made[1700:2500].square().sum()
    assert 0 < float(late) < float(early) / 100  # 20 dB in 0.1 s, twice


def test_a_short_noise_repeats() -> None:
    assert len(stretch(torch.arange(10.0), 37, seeded())) == 37


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([3000, 2000, 2999, 1000, 2500, 1][:n])
    samples = torch.randn(n, 3000, generator=seeded())
    return samples * (torch.arange(3000) < lengths[:, None]), lengths


def test_the_same_seed_does_the_same() -> None:
    augmenter = Augmenter(AugmentConfig(), 8000, [torch.ones(70), torch.randn(5000, generator=seeded())])
    made = [augmenter(*batch(), Chance(generator=seeded(seed))) for seed in range(4)]
    again = [augmenter(*batch(), Chance(generator=seeded(seed))) for seed in range(4)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(made, again, strict=True))
    assert len({tuple(lengths.tolist()) for _, lengths in made}) > 2
    nothing = Augmenter(AugmentConfig(speed=0, noise=0, reverberation=0, gain_db=(0, 0)), 8000)
    assert torch.equal(nothing(*batch())[0], batch()[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_padding_stays_silent_and_lengths_are_those_of_the_speed(seed: int) -> None:
    samples, lengths = batch()
    made, now = Augmenter(AugmentConfig(speed=0.7), 8000)(samples, lengths, Chance(generator=seeded(seed)))
    assert ((now >= (lengths / 1.25).floor()) & (now <= (lengths / 0.8).ceil())).all()
    assert now.max() <= made.shape[1]
    assert not (made * (torch.arange(made.shape[1]) >= now[:, None])).any()


def test_a_batch_at_another_speed_is_each_at_another_speed() -> None:
    faster = AugmentConfig(speed=1, speed_range=(1.2, 1.2), noise=0, reverberation=0, gain_db=(0, 0))
    samples, lengths = batch()
    made, now = Augmenter(faster, 8000)(samples, lengths)
    for row, n, own, length in zip(made, now.tolist(), samples, lengths.tolist(), strict=True):
        alone = change_speed(own[:length], 1.2)
        assert n == len(alone)
        torch.testing.assert_close(row[:n], alone, rtol=1e-4, atol=1e-5)


def test_none_becomes_shorter_than_its_text_allows() -> None:
    faster = AugmentConfig(speed=1, speed_range=(1.25, 1.25), noise=0, reverberation=0, gain_db=(0, 0))
    samples, lengths = batch()
    made, now = Augmenter(faster, 8000)(samples, lengths, least=torch.tensor([2900, 100, 100, 100, 2500, 1]))
    assert now.tolist() == [3000, 1600, 2400, 800, 2500, 1]
    assert torch.equal(made[0, :3000], samples[0])


def test_noise_is_as_far_below_the_speech_as_asked_for() -> None:
    config = AugmentConfig(speed=0, noise=1, snr_db=(10, 10), reverberation=0, gain_db=(0, 0))
    samples, lengths = batch(5)
    made, _ = Augmenter(config, 8000, [torch.randn(500, generator=seeded())])(samples, lengths)
    ratio = samples.square().sum(1) / (made - samples).square().sum(1)
    torch.testing.assert_close(10 * ratio.log10(), torch.full((5,), 10.0), rtol=1e-3, atol=0)


def test_bad_options_are_named() -> None:
    with pytest.raises(UsageError, match="noise: expected a share"):
        AugmentConfig(noise=2)
    with pytest.raises(UsageError, match="snr_db: expected the lower one first, got 30, 10"):
        AugmentConfig(snr_db=(30, 10))
