"""Whom a recommender serves worse: groups, gaps and exposure, by hand and against a plain bootstrap."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mambakit.core.errors import UsageError
from mambakit.core.training import Report
from mambakit.domains.recommendation import report
from mambakit.domains.recommendation.evaluation import evaluate
from mambakit.domains.recommendation.slices import exposure, item_parts, slices_of

# users 0 to 2 have two training events, user 3 has six; the last event is foretold
HISTORIES = [[0, 1, 2, 3], [4, 4, 0, 4], [1, 2, 3, 5], [0, 0, 0, 0, 0, 0, 1, 0]]
SCORES = np.array(
    [[9, 8, 7, 6, 0, 0], [5, 0, 0, 0, 1, 0], [3, 2, 1, 0, 0, 0], [9, 1, 0, 0, 0, 0]], np.float32
)
FEATURES = {"gender": ["F", "M", "F", None], "age": [1.0, 2, 3, 4], "shoe": ["a", "b", "c", "d"]}


@pytest.fixture
def measured(interactions_of, last_out, table_scorer):
    interactions = interactions_of(HISTORIES, n_items=6)
    interactions = dataclasses.replace(interactions, user_features=pd.DataFrame(FEATURES))
    split = last_out(interactions)
    return evaluate({"ours": table_scorer(SCORES)}, interactions, split, list_length=2), interactions, split


def test_groups_by_hand(measured):
    found = slices_of(*measured, ["activity", "popularity", "gender"], k=3).rows
    here = found[found["filter"] == "unfiltered"].set_index(["slice", "group"])
    # ranks 4, 2, 5, 1; training events of items 0 to 4: 7, 2, 1, 0, 2
    assert here["hr@3"].to_dict() == {
        ("activity", "2 events"): pytest.approx(1 / 3),
        ("activity", "6 events"): 1.0,
        ("popularity", "head"): 1.0,
        ("popularity", "between"): 1.0,
        ("popularity", "long tail"): 0.0,
        ("gender", "F"): 0.0,
        ("gender", "M"): 1.0,
        ("gender", "unknown"): 1.0,
    }
    assert here["users"].tolist() == [3, 1, 1, 1, 2, 2, 1, 1]
    assert here["cases"].sum() == 3 * 4
    # lists of user 2 are 0 1, of user 0 too: none of them is of the long tail, which is items 2, 3 and 5
    assert here["long-tail@2"]["gender", "F"] == 0


def test_a_gap_is_between_the_best_and_the_worst_group(measured):
    found = slices_of(*measured, ["gender"], k=3)
    gap = found.gaps[(found.gaps["filter"] == "unfiltered") & (found.gaps.metric == "hr@3")].iloc[0]
    assert (gap.best, gap.worst, gap.gap) == ("M", "F", 1.0)
    assert gap["gap-lo"] <= gap.gap <= gap["gap-hi"]


def test_intervals_are_those_of_a_plain_bootstrap(measured, table_scorer, interactions_of, last_out):
    rng = np.random.default_rng(0)
    histories = [list(rng.integers(0, 20, int(n))) for n in rng.integers(4, 12, 120)]
    interactions = interactions_of(histories, n_items=20)
    split = last_out(interactions)
    evaluation = evaluate({"ours": table_scorer(rng.random((120, 20), np.float32))}, interactions, split)
    found = slices_of(evaluation, interactions, split, ["activity"], resamples=4000).rows
    row = found[found["filter"] == "unfiltered"].iloc[0]
    known = np.array([len(history) - 2 for history in histories])
    low, high = (float(end) for end in row.group.removesuffix(" events").split("-"))
    inside = (known >= low) & (known <= high)
    hits = (evaluation.ranks["ours", "unfiltered"] <= 10).astype(float)
    drawn = rng.integers(0, 120, (4000, 120))
    means = (hits[drawn] * inside[drawn]).sum(1) / inside[drawn].sum(1)
    assert row["hr@10"] == pytest.approx(hits[inside].mean())
    spread = means.std()
    for end, share in (("hr@10-lo", 0.025), ("hr@10-hi", 0.975)):
        assert row[end] == pytest.approx(np.quantile(means, share), abs=0.3 * spread)
    again = slices_of(evaluation, interactions, split, ["activity"], resamples=4000).rows
    pd.testing.assert_frame_equal(found, again)


def test_parts_of_the_catalogue_and_their_exposure():
    counts = np.array([40, 30, 10, 10, 5, 5, 0])
    assert item_parts(counts).tolist() == [0, 1, 1, 1, 2, 2, 2]  # 10 of 100 events: two more tens would be 30
    assert exposure(np.array([[0, 4], [6, -1]]), item_parts(counts) == 2) == pytest.approx(2 / 3)
    assert np.isnan(exposure(np.array([[-1]]), np.ones(3, dtype=bool)))


def test_numbers_are_cut_into_quarters_and_odd_names_refused(measured):
    evaluation, interactions, split = measured
    ages = pd.DataFrame({"age": np.arange(4.0), "id": [f"x{i}" for i in range(4)]})
    found = slices_of(evaluation, dataclasses.replace(interactions, user_features=ages), split, ["age"]).rows
    assert found.group.unique().tolist() == ["0", "1", "2", "3"]  # few values are categories
    with pytest.raises(UsageError, match="no column 'sex' of users; slices: activity, popularity, gender"):
        slices_of(evaluation, interactions, split, ["sex"])


def test_report_and_text_show_them(measured):
    found = slices_of(*measured, ["activity", "gender"])
    page = Report("t")
    report.add_slices(page, found)
    assert "By slice" in page.render()
    assert "unknown" in page.render()
    text = found.text("ours")
    assert "2 events" in text
    assert "ndcg@10" in text
