"""Figures of property predictions: by hand, per task, over known labels, and never silently missing."""

from __future__ import annotations

import numpy as np
import pytest

from mambakit.domains.molecules.metrics import score
from mambakit.domains.molecules.molecules import Task

NAN = np.nan


def test_regression_by_hand_with_units():
    labels = np.array([[1.0], [2.0], [NAN], [6.0]])
    scores = score(np.array([[1.0], [4.0], [9.0], [5.0]]), labels, (Task("expt", "regression", "kcal/mol"),))
    (one,) = scores.tasks
    assert one.count == 3
    assert one.values["rmse"] == pytest.approx(np.sqrt(5 / 3))
    assert one.values["mae"] == pytest.approx(1)
    assert one.values["r2"] == pytest.approx(1 - 5 / 14)
    assert scores.figure("rmse") == one.values["rmse"]
    assert np.isnan(scores.figure("roc_auc"))
    assert scores.means == {}


def test_areas_under_curves_by_counting_pairs():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 2)) < 0.3).astype(float)
    labels[rng.random((60, 2)) < 0.2] = NAN
    predictions = np.round(rng.random((60, 2)), 1)  # with ties
    scores = score(predictions, labels, (Task("a", "classification"), Task("b", "classification")))
    for column, one in enumerate(scores.tasks):
        known = ~np.isnan(labels[:, column])
        true, said = labels[known, column], predictions[known, column]
        pairs = said[true == 1][:, None] - said[true == 0][None]
        assert one.values["roc_auc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
        assert one.count == known.sum()
    mean = np.mean([one.values["roc_auc"] for one in scores.tasks])
    assert scores.figure("roc_auc") == scores.means["roc_auc"] == pytest.approx(mean)


def test_one_class_constant_labels_and_no_label_are_said_and_left_out_of_means():
    labels = np.array([[1.0, 0, NAN], [1, 1, NAN], [1, 0, NAN]])
    tasks = tuple(Task(name, "classification") for name in "abc")
    scores = score(np.array([[0.1, 0.2, 0.3], [0.4, 0.9, 0.1], [0.3, 0.1, 0.2]]), labels, tasks)
    assert scores.notes == (
        "a: all 3 labels are 1: areas under curves need both classes",
        "c: no label is known",
    )
    assert scores.figure("roc_auc") == 1
    assert np.isnan(scores.tasks[0].values["pr_auc"])
    constant = score(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]]), (Task("y", "regression"),))
    assert constant.tasks[0].values["rmse"] == 1
    assert constant.notes == ("y: R2 needs labels that differ",)


def test_means_do_not_mix_units():
    labels = np.array([[1.0, 10.0], [2.0, 30.0]])
    tasks = (Task("a", "regression", "logD"), Task("b", "regression", "kcal/mol"))
    means = score(labels + 1, labels, tasks).means
    assert set(means) == {"r2"}
    same = (Task("a", "regression", "logD"), Task("b", "regression", "logD"))
    assert score(labels + 1, labels, same).means["rmse"] == pytest.approx(1)


def test_wrong_predictions_are_refused():
    task = (Task("y", "regression"),)
    with pytest.raises(ValueError, match=r"expected one shape \(n, 1\)"):
        score(np.zeros((2, 2)), np.zeros((2, 1)), task)
    with pytest.raises(ValueError, match="nan in row 1 of 'y'"):
        score(np.array([[0.0], [NAN]]), np.zeros((2, 1)), task)
    assert score(np.array([[0.0], [NAN]]), np.array([[1.0], [NAN]]), task).tasks[0].count == 1
