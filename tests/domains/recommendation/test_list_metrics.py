"""What lists are like, by hand and by brute force; means and their intervals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from mambakit.domains.recommendation.intervals import mean_over_users
from mambakit.domains.recommendation.list_metrics import (
    appearances,
    coverage,
    diversity,
    feature_vectors,
    gini,
    novelty,
    popularity,
)

LISTS = np.array([[0, 1], [0, 2], [0, -1]])


def test_coverage_gini_novelty_and_popularity_by_hand():
    counts = appearances(LISTS, 4)
    assert counts.tolist() == [3, 1, 1, 0]
    assert coverage(counts) == 0.75
    assert gini(counts) == pytest.approx((-3 * 0 - 1 * 1 + 1 * 1 + 3 * 3) / (4 * 5))
    assert (gini(np.array([2, 2, 2])), gini(np.array([0, 0, 0, 8]))) == (0, 0.75)
    assert np.isnan(gini(np.zeros(3, dtype=int)))
    had = np.array([8, 4, 0, 2])  # item 2 that nobody had counts as had by one of 8
    assert novelty(LISTS, had, 8).tolist() == [(0 + 1) / 2, (0 + 3) / 2, 0]
    assert popularity(np.array([[0, 1], [3, -1], [-1, -1]]), had).tolist() == pytest.approx(
        [6, 2, np.nan], nan_ok=True
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
@settings(max_examples=50, deadline=None)
def test_gini_is_half_the_relative_mean_difference(counts):
    x = np.array(counts)
    expected = np.abs(x[:, None] - x).sum() / (2 * len(x) ** 2 * x.mean())
    assert gini(x) == pytest.approx(expected)
    assert gini(x[::-1]) == pytest.approx(gini(3 * x))


@given(st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_diversity_is_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 3, (7, 4)) * (rng.random((7, 1)) < 0.8)  # some have none
    lists = np.stack([rng.permutation(7)[:4] for _ in range(5)])
    lists[0, 2:] = -1
    lists[1, 1:] = -1
    length = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(length > 0, length, 1)[:, None]
    expected = []
    for row in lists:
        pairs = list(combinations(row[row >= 0], 2))
        expected.append(1 - np.mean([unit[a] @ unit[b] for a, b in pairs]) if pairs else np.nan)
    found = diversity(lists, sparse.csr_matrix(vectors.astype(np.float32)))
    assert found == pytest.approx(np.array(expected), abs=1e-6, nan_ok=True)


def test_features_are_the_categories_an_item_has():
    table = pd.DataFrame(
        {
            "title": ["a", "b", "c"],
            "genres": ["drama|war", None, "war"],
            "adult": [True, False, True],
            "year": [1999, 2001, 1999],
        }
    )
    assert feature_vectors(table).toarray().tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 1]]
    assert feature_vectors(table[["title", "year"]]).shape == (3, 0)


def test_normal_interval_of_one_case_a_user_is_the_usual_one():
    values = np.random.default_rng(0).random(50)
    made = mean_over_users(values, np.arange(50), level=0.9)
    reach = stats.norm.ppf(0.95) * stats.sem(values)
    assert (made.value, made.low, made.high) == pytest.approx(
        (values.mean(), values.mean() - reach, values.mean() + reach)
    )


@pytest.mark.parametrize("interval", ["normal", "bootstrap"])
def test_cases_of_one_user_are_no_evidence_of_their_own(interval):
    rng = np.random.default_rng(1)
    values = rng.random(80)
    once = mean_over_users(values, np.arange(80), interval=interval)
    again = mean_over_users(np.repeat(values, 5), np.repeat(np.arange(80), 5), interval=interval)
    assert (once.value, once.low, once.high) == pytest.approx((again.value, again.low, again.high))
    assert again.n == 400


def test_bootstrap_and_normal_agree_on_many_users_of_unlike_weight():
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(400), rng.integers(1, 8, 400))
    values = rng.random(400)[users] + 0.2 * rng.standard_normal(len(users))
    normal, drawn = (mean_over_users(values, users, interval=kind) for kind in ("normal", "bootstrap"))
    assert normal.value == drawn.value
    width = normal.high - normal.low
    assert abs(drawn.low - normal.low) < 0.1 * width
    assert abs(drawn.high - normal.high) < 0.1 * width


@pytest.mark.parametrize("interval", ["normal", "bootstrap"])
def test_intervals_hold_the_truth_as_often_as_they_say(interval):
    rng = np.random.default_rng(3)
    inside = 0
    for i in range(200):
        made = mean_over_users(
            rng.exponential(size=60), np.arange(60), level=0.8, interval=interval, resamples=200, seed=i
        )
        inside += made.low <= 1 <= made.high
    assert 140 <= inside <= 178  # 160 expected; three standard errors are 17, and 60 are skewed a little


def test_no_interval_of_one_user():
    made = mean_over_users(np.array([0.2, 0.4, np.nan]), np.zeros(3, dtype=int))
    assert (made.value, made.n) == (pytest.approx(0.3), 2)
    assert np.isnan(made.low)
    assert np.isnan(mean_over_users(np.empty(0), np.empty(0, dtype=int)).value)
