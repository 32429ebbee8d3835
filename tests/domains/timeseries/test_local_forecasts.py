"""Naive forecasts against numbers worked out by hand, with gaps; their intervals against simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.domains.timeseries.backtesting.local_forecasts import (
    LOCAL,
    drift,
    naive,
    naive2,
    predictor,
    seasonal_naive,
)
from mambakit.domains.timeseries.tables.table import Series

NAN = np.nan


def test_by_hand():
    values = np.array([1.0, 5.0, 2.0, 7.0])
    point, deviation = naive(values, 3)
    assert point.tolist() == [7, 7, 7]
    sigma = np.sqrt((4**2 + 3**2 + 5**2) / 3)
    np.testing.assert_allclose(deviation, sigma * np.sqrt([1, 2, 3]))
    point, deviation = seasonal_naive(values, 5, 2)
    assert point.tolist() == [2, 7, 2, 7, 2]
    np.testing.assert_allclose(deviation, np.sqrt((1 + 4) / 2) * np.sqrt([1, 1, 2, 2, 3]))
    point, deviation = drift(values, 2)
    np.testing.assert_allclose(point, [9, 11])
    sigma = np.sqrt((2**2 + 5**2 + 3**2) / 3)
    np.testing.assert_allclose(deviation, sigma * np.sqrt([1 * (1 + 1 / 3), 2 * (1 + 2 / 3)]))


def test_missing_values_are_passed_over():
    values = np.array([NAN, 1.0, 5.0, 2.0, 7.0, 3.0, NAN])
    point, deviation = naive(values, 2)
    assert point.tolist() == [3, 3]
    # the last value is one step further back than it would be
    np.testing.assert_allclose(deviation[1] / deviation[0], np.sqrt(3 / 2))
    point, deviation = seasonal_naive(values, 4, 2)
    assert point.tolist() == [3, 7, 3, 7]
    np.testing.assert_allclose(deviation[1] / deviation[0], np.sqrt(2))
    assert drift(values, 1)[0][0] == pytest.approx(3 + 2 * 0.5)


def test_a_history_within_a_season_repeats_its_last_value():
    assert seasonal_naive(np.array([1.0, 4.0, 9.0]), 2, 3)[0].tolist() == [9, 9]


def test_naive2_takes_the_season_out_and_puts_it_back():
    season = np.array([0.5, 1.0, 1.5, 1.0])
    values = 10 * np.tile(season, 8)[:-1]  # the next one is the last phase
    point, deviation = naive2(values, 5, 4)
    np.testing.assert_allclose(point, 10 * np.array([1.0, 0.5, 1.0, 1.5, 1.0]))
    np.testing.assert_allclose(deviation, 0, atol=1e-6)
    noise = np.random.default_rng(0).normal(10, 1, 40)  # no season to find
    np.testing.assert_allclose(naive2(noise, 3, 4)[0], naive(noise, 3)[0])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.just(NAN), st.floats(-1e6, 1e6)), min_size=2, max_size=40),
    st.integers(1, 12),
    st.integers(1, 9),
)
def test_any_history_gives_ordered_finite_quantiles(values, horizon, season):
    history = np.array([3.0, *values, 4.0])
    one = Series("a", pd.RangeIndex(len(history)), history, "1")
    for rule in LOCAL.values():
        made = predictor(rule, season_length=season, levels=(0.1, 0.5, 0.9))([one], horizon)[0]
        assert made.quantiles.shape == (horizon, 3)
        assert np.isfinite(made.quantiles).all()
        assert (np.diff(made.quantiles, axis=1) >= 0).all()
        np.testing.assert_allclose(made.quantiles[:, 1], made.point)


def test_intervals_of_a_random_walk_hold_what_they_say():
    rng = np.random.default_rng(0)
    walks = rng.standard_normal((400, 130)).cumsum(1)
    series = [Series(str(i), pd.RangeIndex(100), walk[:100], "1") for i, walk in enumerate(walks)]
    for name in ("naive", "drift"):
        predict = predictor(LOCAL[name], season_length=1, levels=(0.1, 0.5, 0.9))
        inside = [
            (made.quantiles[:, 0] <= walk[100:]) & (walk[100:] <= made.quantiles[:, 2])
            for made, walk in zip(predict(series, 30), walks, strict=True)
        ]
        # 400 walks: a standard error of 2 % at each step
        np.testing.assert_allclose(np.mean(inside, axis=0), 0.8, atol=0.07)
