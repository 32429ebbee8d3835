"""Splits: nothing later is learned from, and each event has one part."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.data import leave_one_out, tied, time_split
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.reading import read_interactions

events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), min_size=1, max_size=60)


def interactions(pairs: list[tuple[int, int]]) -> Interactions:
    """Users and times; every event is of another item."""
    frame = pd.DataFrame(pairs, columns=["user", "timestamp"])
    return read_interactions(frame.assign(item=np.arange(len(frame))))


def parts(found: Interactions, split: Split) -> np.ndarray:
    """0, 1, 2 for train, validation, test; an event in two parts or none is refused."""
    place = np.arange(len(found))
    masks = [
        place < split.train_end[found.user],
        np.isin(place, split.validation),
        np.isin(place, split.test),
    ]
    assert np.sum(masks, axis=0).tolist() == [1] * len(found)
    return np.argmax(masks, axis=0)


@given(events)
def test_leave_one_out(pairs: list[tuple[int, int]]):
    found = interactions(pairs)
    counts = np.diff(found.offsets)
    if counts.max() < 3:
        with pytest.raises(DataError, match=f"the longest history has {counts.max()}"):
            leave_one_out(found)
        return
    part = parts(found, leave_one_out(found))
    for start, stop in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        expected = [0] * (stop - start - 2) + [1, 2] if stop - start >= 3 else [0] * (stop - start)
        assert part[start:stop].tolist() == expected


@given(events, st.integers(0, 20), st.integers(0, 20))
def test_a_moment_splits_all_users_alike(pairs: list[tuple[int, int]], first: int, second: int):
    found = interactions(pairs)
    expected = np.where(found.time < first, 0, np.where(found.time < second, 1, 2))
    if first >= second:
        with pytest.raises(UsageError, match="test_at: expected a moment after"):
            time_split(found, first, second)
    elif len(np.unique(expected)) < 3:
        with pytest.raises(DataError, match=r"no event is left for (train|validation|test): valid"):
            time_split(found, first, second)
    else:
        assert parts(found, time_split(found, first, second)).tolist() == expected.tolist()


def test_fractions_keep_equal_times_together():
    found = interactions([(user, time) for time in range(100) for user in range(3)])
    part = parts(found, time_split(found, validation_fraction=0.2, test_fraction=0.15))
    assert np.bincount(part).tolist() == [195, 60, 45]
    for time in range(100):
        assert len(set(part[found.time == time])) == 1
    assert found.time[part == 0].max() < found.time[part == 1].min()
    assert found.time[part == 1].max() < found.time[part == 2].min()


def test_users_without_history_are_cases():
    found = interactions([(0, 0), (0, 1), (0, 5), (1, 6), (1, 9)])
    split = time_split(found, 5, 9)
    assert (split.train_end - found.offsets[:-1]).tolist() == [2, 0]
    assert found.user[split.validation].tolist() == [0, 1]
    assert found.time[split.test].tolist() == [9]


def test_moments_may_be_dates():
    days = pd.date_range("2024-01-01", periods=10).astype(str)
    found = read_interactions(pd.DataFrame({"user": "a", "item": range(10), "timestamp": days}))
    split = time_split(found, "2024-01-06", "2024-01-09T00:00:00Z")
    assert (split.train_end.tolist(), split.test.tolist()) == ([5], [8, 9])
    with pytest.raises(UsageError, match=r"test_at: expected seconds or an ISO date .*got 'tomorrow'"):
        time_split(found, "2024-01-06", "tomorrow")


def test_what_has_no_common_time_is_not_split_by_it():
    found = interactions([(0, 1), (0, 2), (1, 3), (1, 4)])
    with pytest.raises(DataError, match="leave one out instead"):
        time_split(dataclasses.replace(found, clock="own"), 2, 4)
    unknown = np.where(found.user == 1, np.nan, found.time)
    with pytest.raises(DataError, match=r"1 of 2 users have no times \(the first: '1'\)"):
        time_split(dataclasses.replace(found, time=unknown), 2, 4)
    with pytest.raises(UsageError, match="give both"):
        time_split(found, 2)
    with pytest.raises(UsageError, match="test_fraction: expected a share between 0 and 1, got 0"):
        time_split(found, test_fraction=0)
    with pytest.raises(UsageError, match=r"expected less than 1, got 1\.1"):
        time_split(found, validation_fraction=0.5, test_fraction=0.6)


@given(events)
def test_tied_events_follow_another_of_their_user_and_time(pairs: list[tuple[int, int]]):
    found = interactions(pairs)
    seen: set[tuple[int, float]] = set()
    expected = []
    for key in zip(found.user.tolist(), found.time.tolist(), strict=True):
        expected.append(key in seen)
        seen.add(key)
    assert tied(found, np.arange(len(found))).tolist() == expected
    assert tied(found, np.arange(len(found))[::-1]).tolist() == expected[::-1]
    assert not tied(dataclasses.replace(found, time=np.full(len(found), np.nan)), np.arange(len(found))).any()


def test_events_that_do_not_exist():
    with pytest.raises(IndexError, match="events: expected 0 to 1, got 0 to 2"):
        tied(interactions([(0, 1), (0, 1)]), np.array([0, 2]))
