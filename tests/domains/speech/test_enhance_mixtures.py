"""Mixtures: what is in them, and that a seed makes the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.chance import Chance
from mambakit.domains.speech.enhance.config import MixConfig
from mambakit.domains.speech.mixtures import (
    NoisyMixer,
    SpeechPool,
    Spoken,
    Stock,
    TwoSpeakerMixer,
    Voices,
    active_power,
    kept,
)
from mambakit.domains.speech.noises import coloured, low_passed, machine
from mambakit.domains.speech.separate.config import PairConfig

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


def seeded(seed: int) -> Chance:
    return Chance(generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), snr=st.floats(-10, 30))
def test_noise_is_added_at_the_ratio_asked_for(seed: int, snr: float) -> None:
    config = MixConfig(segment_s=0.5, snr_low_db=snr, snr_high_db=snr, rooms=0.5)
    noisy, clean = NoisyMixer(pool(), [], config)(3, seeded(seed))
    noise = (noisy.double() - clean.double()).square().mean(1)
    got = 10 * torch.log10(active_power(clean, RATE) / noise)
    assert got.tolist() == pytest.approx([snr] * 3, abs=0.05)
    assert noisy.abs().max() <= 0.951


def test_a_seed_makes_the_same_mixtures_and_without_one_they_are_new() -> None:
    mixer = NoisyMixer(pool(), [np.ones(100, np.float32)], MixConfig(segment_s=0.3))
    noisy, clean = kept(mixer, 11, seed=1)
    assert noisy.shape == clean.shape == (11, 2400)
    assert torch.equal(noisy, kept(mixer, 11, seed=1)[0])
    assert len({tuple(row.tolist()) for row in noisy}) == 11
    torch.manual_seed(0)
    first, second = mixer(2)[0], mixer(2)[0]
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(first, mixer(2)[0])


def test_speech_without_high_frequencies_gets_noise_without_them() -> None:
    config = MixConfig(segment_s=0.5, rooms=0.0, babble=0.0)
    noisy, clean = NoisyMixer(pool(band_hz=1000.0), [], config)(4, seeded(3))
    spectrum = torch.fft.rfft(noisy - clean).abs()
    above = torch.fft.rfftfreq(noisy.shape[1], 1 / RATE) > 1010
    assert (spectrum[:, above].amax(1) < 1e-3 * spectrum.amax(1)).all()


@pytest.mark.parametrize("make", [coloured, machine])
def test_noises_are_of_unit_level_and_differ(make) -> None:  # type: ignore[no-untyped-def]
    made = make(6, 4000, RATE, seeded(0))
    assert made.square().mean(1).tolist() == pytest.approx([1] * 6, rel=1e-3)
    alike = torch.corrcoef(made).abs() - torch.eye(6)
    assert alike.max() < 0.6


def test_low_passing_at_half_the_rate_changes_nothing() -> None:
    x = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    same, lower = low_passed(x, RATE, torch.tensor([4000.0, 500.0]))
    torch.testing.assert_close(same, x[0])
    assert lower.square().mean() < 0.3 * x[1].square().mean()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9000))
def test_drawn_speech_is_cuts_of_one_speaker_with_pauses(seed: int, n: int) -> None:
    """The speakers' samples are numbered, so that what is drawn says where it comes from."""
    lengths = [[700, 900], [1500]]
    sounds, at = [], 1.0
    for i, of_speaker in enumerate(lengths):
        for length in of_speaker:
            sounds.append(Spoken(np.arange(at, at + length, dtype=np.float32), f"s{i}", 4000.0 - i))
            at += length
    voices = Voices(SpeechPool(sounds, RATE))
    drawn, bands = voices.draw(n, torch.tensor([0, 1]), seeded(seed))
    assert bands.tolist() == [4000.0, 3999.0]
    for row, (low, high) in zip(drawn.long(), [(1, 1600), (1601, 3100)], strict=True):
        spoken = row[row > 0]
        assert len(spoken)
        assert spoken.min() >= low
        assert spoken.max() <= high
        steps = row.diff()[(row[1:] > 0) & (row[:-1] > 0)]
        starts = {1, 701, 1601}
        jumps = row[1:][(row[1:] > 0) & (row[:-1] > 0)][steps != 1]  # the next utterance, without a pause
        assert set(jumps.tolist()) <= starts or n < 1600
        pauses = "".join("x" if value else " " for value in row.tolist()).strip().split("x")
        assert max(map(len, pauses)) <= 0.4 * RATE


def test_two_speakers_add_up_and_are_never_the_same() -> None:
    mixtures, sources = TwoSpeakerMixer(pool(2), 0.5, level_db=0.0)(5, seeded(0))
    torch.testing.assert_close(mixtures, sources.sum(1), rtol=0, atol=1e-6)
    peaks = torch.fft.rfft(sources).abs().argmax(-1)
    assert ((peaks[:, 0] - peaks[:, 1]).abs() > 30).all()  # 150 and 240 Hz in bins of 2 Hz
    levels = active_power(sources, RATE)
    torch.testing.assert_close(levels[:, 0], levels[:, 1], rtol=1e-3, atol=0)
    with pytest.raises(DataError, match="two speakers at least, got 1"):
        TwoSpeakerMixer(pool(1), 0.5)


@pytest.mark.parametrize("piece_s", [0.2, 0.45, 5.0])
def test_pieces_hold_the_utterance_and_are_cut_where_it_is_quietest(piece_s: float) -> None:
    time = np.arange(2 * RATE) / RATE
    sound = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    for middle in (0.4, 0.9, 1.5):
        sound[np.abs(time - middle) < 0.03] = 0
    whole = SpeechPool([Spoken(sound, "s0", 4000.0)], RATE)
    pieces = whole.in_pieces(piece_s)
    assert pieces.speakers == ["s0"]
    assert len(pieces) == max(1, round(2 / piece_s))
    joined = np.concatenate([one.samples for one in pieces.spoken])
    assert len(joined) == len(sound)
    lengths = np.array([len(one.samples) for one in pieces.spoken]) / RATE
    assert (np.abs(lengths - 2 / len(pieces)) <= 0.68 * piece_s).all()
    cuts = lengths.cumsum()[:-1]
    if piece_s == 0.45:  # a pause lies within reach of each cut
        assert np.allclose(
            [min(abs(cut - middle) for middle in (0.4, 0.9, 1.5)) for cut in cuts], 0, atol=0.03
        )
    near_a_cut = (np.abs(time[:, None] - cuts).min(1) < 0.006) if len(cuts) else np.zeros(len(time), bool)
    np.testing.assert_array_equal(joined[~near_a_cut], sound[~near_a_cut])
    assert np.abs(joined).max() <= np.abs(sound).max()
    assert whole.in_pieces(0) is whole


def test_an_utterance_at_another_speed_is_another_speakers() -> None:
    own = pool(2)
    more = own.at_speeds([0.8, 1.25])
    assert len(more) == 3 * len(own)
    assert more.speakers == sorted(f"s{i}{speed}" for i in range(2) for speed in ("", " at 0.8", " at 1.25"))
    for speed, one in ((0.8, more.spoken[len(own)]), (1.25, more.spoken[2 * len(own)])):
        first = own.spoken[0]
        assert len(one.samples) == pytest.approx(len(first.samples) / speed, abs=1)
        assert one.band_hz == pytest.approx(min(4000.0, 4000.0 * speed))
        spectrum = np.abs(np.fft.rfft(one.samples * np.hanning(len(one.samples))))
        assert spectrum.argmax() * RATE / len(one.samples) == pytest.approx(150 * speed, abs=4)
    assert own.at_speeds([]).speakers == own.speakers
    with pytest.raises(UsageError, match=r"piece_s: expected 0 or at least 0\.05, got -1"):
        PairConfig(piece_s=-1.0)
    for speeds, said in (
        ([0.9, 3.0], "got 3"),
        ([0.93], "got 0.93"),
        ([1.0], "got 1"),
        ([0.9, 0.9], "twice"),
    ):
        with pytest.raises(UsageError, match=f"speeds: .*{said}"):
            PairConfig(speeds=speeds)


def test_shares_that_are_more_than_all_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 1 together"):
        MixConfig(real_noise=0.7, babble=0.5)


@pytest.mark.parametrize("n_takes", [1, 4, 9])
def test_batches_that_are_made_ahead_are_all_new_and_of_all_kinds(n_takes: int) -> None:
    torch.manual_seed(0)
    stock = Stock(NoisyMixer(pool(), [np.ones(100, np.float32)], MixConfig(segment_s=0.3)), ahead=4)
    batches = [stock.take(6) for _ in range(n_takes)]
    rows = [tuple(row.tolist()) for noisy, _ in batches for row in noisy]
    assert len(set(rows)) == len(rows) == 6 * n_takes
    torch.manual_seed(1)
    stock.clear()
    first = stock.take(6)[0]
    torch.manual_seed(1)
    stock.clear()
    assert torch.equal(stock.take(6)[0], first)  # whatever was left of an epoch before
    assert len(stock.take(2)[0]) == 2
