"""Metrics of anomaly scores beside scikit-learn's, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from mambakit.core.errors import UsageError
from mambakit.domains.timeseries.anomalies.metrics import (
    average_precision,
    found_top_1,
    labelled_ranges,
    roc_auc,
    vus,
)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(4, 80))
def test_rows_agree_with_scikit_learn(seed: int, n: int):
    rng = np.random.default_rng(seed)
    score = rng.standard_normal(n).round(1) * 1000  # ties, and numbers that a sigmoid would squash
    label = rng.random(n) < 0.3
    label[0], label[1] = True, False
    assert average_precision(score, label) == pytest.approx(average_precision_score(label, score), abs=1e-5)
    assert roc_auc(score, label) == pytest.approx(roc_auc_score(label, score), abs=1e-5)
    gaps = np.insert(score, 2, np.nan)
    assert roc_auc(gaps, np.insert(label, 2, True)) == pytest.approx(roc_auc_score(label, score), abs=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_without_a_neighbourhood_one_range_is_judged_row_by_row(seed: int):
    rng = np.random.default_rng(seed)
    label = np.zeros(60, bool)
    label[20:30] = True
    score = rng.standard_normal(60)
    found = vus(score, label, buffer=0)
    assert found.pr == pytest.approx(average_precision_score(label, score), abs=1e-9)
    assert found.roc == pytest.approx(roc_auc_score(label, score), abs=1e-9)


def test_neighbourhoods_by_hand():
    label = np.array([0, 0, 0, 1, 1, 0, 0, 0], bool)
    score = np.array([0, 0, 3, 2, 1, 0, 0, 0], float)
    # with l = 2 the rows beside count sqrt(1 - 1/2); positive rows: (2 + 2 + 2 sqrt(.5)) / 2
    soft = np.sqrt(0.5)
    positive = 2 + soft
    hits = np.array([soft, soft + 1, soft + 2])
    recall = np.minimum(hits / positive, 1)
    precision = hits / [1, 2, 3]
    one = (np.diff(recall, prepend=0) * precision).sum()  # all rows flagged add no recall
    plain = average_precision_score(label, score)
    # l = 1 reaches no further row than l = 0
    assert vus(score, label, buffer=2).pr == pytest.approx((2 * plain + one) / 3, abs=1e-9)


def test_a_near_miss_counts_in_the_volume_and_a_far_one_does_not():
    label = np.zeros(1000, bool)
    label[500:510] = True
    near, far = np.zeros(1000), np.zeros(1000)
    near[505:520], far[100:115] = 1, 1  # late by five rows, and elsewhere
    assert vus(near, label).pr > 4 * vus(far, label).pr
    assert vus(label.astype(float), label, buffer=0) == pytest.approx((1, 1))
    assert average_precision(near, label) < 0.4  # no point adjustment: five rows of ten, ten beside


def test_ranges_and_the_rule_of_the_archive():
    assert labelled_ranges(np.array([1, 0, 0, 1, 1], bool)) == [(0, 1), (3, 5)]
    score = np.zeros(500)
    score[10], score[390] = 9, 5
    score[11] = np.nan
    assert not found_top_1(score, 300, 310)
    assert found_top_1(score, 300, 310, least=100)
    assert not found_top_1(score, 300, 310, least=100, tolerance=80)
    with pytest.raises(UsageError, match="score: expected one that is not NaN from row 1000 on"):
        found_top_1(score, 300, 310, least=1000)


def test_labels_of_one_kind_are_refused():
    with pytest.raises(UsageError, match="some of 3 scored rows to be anomalous, got 0"):
        average_precision(np.arange(3.0), np.zeros(3, bool))
    with pytest.raises(UsageError, match="buffer: expected at least 0"):
        vus(np.arange(3.0), np.array([0, 1, 0], bool), buffer=-1)
