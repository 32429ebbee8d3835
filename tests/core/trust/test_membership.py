"""Membership inference by the loss, beside scikit-learn, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from mambakit.core.errors import DataError
from mambakit.core.trust.membership import CALIBRATED, THRESHOLD, Attacked, membership, roc, roc_figure


def rows_of(members, others, reference=None):
    beside = None if reference is None else Attacked(*map(np.asarray, reference), "a case")
    found = membership(Attacked(np.asarray(members), np.asarray(others), "a case"), beside)
    return {row["attack"]: row for row in found.rows}, found


def test_figures_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    members, others = np.round(rng.exponential(0.8, 700), 1), np.round(rng.exponential(1.0, 900), 1)  # ties
    rows, found = rows_of(members, others)
    truth, score = np.r_[np.ones(700), np.zeros(900)], -np.r_[members, others]
    alarms, hits, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    row = rows[THRESHOLD]
    assert row["auc"] == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
    assert row["tpr@1%fpr"] == pytest.approx(hits[alarms <= 0.01].max())
    np.testing.assert_allclose(found.curves[THRESHOLD], (alarms, hits), atol=1e-12)
    # Yeom's: the difference at the members' mean loss
    assert row["advantage"] == pytest.approx(
        (members <= members.mean()).mean() - (others <= members.mean()).mean()
    )
    # Hanley & McNeil 1982: the deviation of an AUC near a half is sqrt((m + n + 1) / (12 m n))
    half = (row["auc-hi"] - row["auc-lo"]) / 2
    assert half == pytest.approx(1.96 * np.sqrt(1601 / (12 * 700 * 900)), rel=0.15)
    assert len(roc_figure(found).axes) == 1


def test_what_was_memorised_is_found_and_what_was_not_is_guessed():
    rng = np.random.default_rng(1)
    rows, _ = rows_of(rng.random(200), 2 + rng.random(300))
    assert (rows[THRESHOLD]["auc"], rows[THRESHOLD]["tpr@1%fpr"]) == (1.0, 1.0)
    assert rows[THRESHOLD]["auc-lo"] == 1.0
    rows, _ = rows_of(rng.random(500), rng.random(500))
    assert rows[THRESHOLD]["auc-lo"] < 0.5 < rows[THRESHOLD]["auc-hi"]


def test_a_reference_takes_out_how_hard_a_case_is():
    rng = np.random.default_rng(2)
    hard = [rng.exponential(5, 400), rng.exponential(5, 400)]
    own = [hard[0] - 0.5 + 0.1 * rng.random(400), hard[1] + 0.1 * rng.random(400)]
    rows, _ = rows_of(*own, reference=hard)
    assert rows[THRESHOLD]["auc"] < 0.6
    assert rows[CALIBRATED]["auc"] == 1.0


def test_roc_by_hand_and_what_is_refused():
    alarms, hits = roc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    assert alarms.tolist() == [0, 0, 0.5, 0.5, 1]
    assert hits.tolist() == [0, 0.5, 0.5, 1, 1]
    with pytest.raises(DataError, match="two members and others or more, got 1 and 2"):
        rows_of([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="not a finite number"):
        rows_of([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(DataError, match="other cases"):
        rows_of([1.0, 2.0], [1.0, 2.0], reference=([1.0], [1.0, 2.0]))
