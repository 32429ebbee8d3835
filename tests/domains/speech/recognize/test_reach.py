"""Times of words reach over the sound around what is written of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambakit.domains.speech.recognize.reach import REACH_S, Activity, activity_of, reaching
from mambakit.domains.speech.recognize.words import Word


def word(start_s: float, end_s: float) -> Word:
    return Word("one", start_s, end_s, 0.9)


def times(words: list[Word], said: str, **options: float) -> list[tuple[float, float]]:
    """Of activity as text, a character a tenth of a second."""
    found = reaching(words, Activity([one == "x" for one in said], 0.1), **options)
    return [(round(one.start_s, 6), round(one.end_s, 6)) for one in found]


def test_words_reach_over_their_sound_and_not_over_pauses():
    assert times([word(0.4, 0.5), word(1.0, 1.1)], "  xxxxx xxxxx  ") == [(0.2, 0.7), (0.8, 1.3)]


def test_sound_between_two_words_is_mostly_the_first_ones():
    assert times([word(0.4, 0.5), word(1.0, 1.1)], "  xxxxxxxxxxx  ") == [(0.2, 0.85), (0.85, 1.3)]


def test_what_is_written_in_silence_stays():
    assert times([word(0.4, 0.5)], "      xxxx") == [(0.4, 0.5)]


def test_noise_without_an_end_is_not_all_of_a_word():
    (found,) = times([word(2.0, 2.1)], "x" * 60)
    assert found == (pytest.approx(2.0 - REACH_S), pytest.approx(2.1 + REACH_S))


def test_words_end_with_the_recording_and_begin_behind_the_line_before():
    assert times([word(0.4, 0.5)], "x" * 60, seconds=0.75, since_s=0.25) == [(0.25, 0.75)]


def test_activity_may_begin_late():
    activity = Activity([True] * 5, 0.1, first=10)
    assert activity.since(1.25) == pytest.approx(1.0)
    assert activity.until(1.25) == pytest.approx(1.5)
    for silent in (0.55, 1.75):
        assert activity.since(silent) == activity.until(silent) == silent


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=0, max_size=8),
    st.lists(st.booleans(), max_size=300),
    st.integers(0, 20),
)
def test_no_word_lies_over_another_or_loses_what_is_written(gaps, said, first):
    words, at = [], 0
    for gap, long in gaps:
        words.append(word((at + gap) * 0.01, (at + gap + long) * 0.01))
        at += gap + long
    found = reaching(words, Activity(said, 0.02, first))
    edges = [edge for one in found for edge in (one.start_s, one.end_s)]
    assert edges == sorted(edges)
    for one, before in zip(found, words, strict=True):
        assert before.start_s - REACH_S - 1e-9 <= one.start_s <= before.start_s
        assert before.end_s <= one.end_s <= before.end_s + REACH_S + 1e-9


def test_activity_of_a_recording_hears_its_last_samples():
    samples = torch.cat(
        [torch.zeros(8000), 0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))]
    )
    found = activity_of(samples, 8000)
    assert found.said == [False] * 50 + [True] * 7  # 6.25 frames of 20 ms
