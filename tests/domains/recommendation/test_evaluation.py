"""The evaluation of scorers whose answers are known: both columns, parts of the cases, what is left out."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import Report
from mambakit.domains.recommendation import plots, report
from mambakit.domains.recommendation.baselines import Bigram, ItemKNN, Popularity
from mambakit.domains.recommendation.evaluation import evaluate
from mambakit.domains.recommendation.interactions import Split

HISTORIES = [[0, 1, 2, 3], [4, 4, 0, 4], [1, 2, 3, 5]]
# item 5 is in no training event; users 0 and 1 have times, the last pair of the first is tied
TIMES = [[0, 5, 9, 9], [1, 2, 3, 4], [np.nan] * 4]
SCORES = np.array([[9, 8, 7, 6, 0, 0], [5, 0, 0, 0, 1, 0], [3, 2, 1, 0, 0, 0]], dtype=np.float32)


@pytest.fixture
def small(interactions_of, last_out):
    interactions = interactions_of(HISTORIES, n_items=6, times=TIMES)
    return interactions, last_out(interactions)


def test_both_columns_by_hand(small, table_scorer):
    found = evaluate({"ours": table_scorer(SCORES)}, *small, ks=(1, 2), list_length=2)
    assert found.ranks["ours", "unfiltered"].tolist() == [4, 2, 5]  # the last: places 4, 5 and 6
    # user 1 had the target before: it stays rankable, and item 0 above it goes
    assert found.ranks["ours", "filtered"].tolist() == [1, 1, 2.5]
    unfiltered, filtered = found.rows
    assert (unfiltered["hr@1"], unfiltered["hr@2"], filtered["hr@1"], filtered["hr@2"]) == (
        0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1,
    )  # fmt: skip
    assert filtered["ndcg@2"] == pytest.approx((2 + 1 / np.log2(3.5)) / 3)
    assert filtered["mrr@2"] == pytest.approx(2.4 / 3)
    spread = np.std([1, 1, 0], ddof=1) / np.sqrt(3) * 1.959964
    assert filtered["hr@1-hi"] - filtered["hr@1"] == pytest.approx(spread)
    # lists of all items are 0 1, 0 4, 0 1; of unseen ones 3 4, 4 1, 0 4
    assert unfiltered["coverage@2"] == 0.5
    assert filtered["coverage@2"] == pytest.approx(4 / 6)
    # training events: 0 and 2 of items 0 1 2 3 4: 0 once, 1 twice, 2 once, 4 twice
    counts = np.array([1, 2, 1, 0, 2, 0])
    assert unfiltered["popularity@2"] == pytest.approx(np.mean(counts[[0, 1, 0, 4, 0, 1]]))
    assert unfiltered["popularity-ratio@2"] == pytest.approx(1.5 / np.mean(counts[[3, 4, 5]]))
    assert unfiltered["novelty@2"] == pytest.approx(np.mean(np.log2(3 / np.array([1, 2, 1, 1, 1, 2]))))


def test_parts_of_the_cases(small, table_scorer):
    found = evaluate({"ours": table_scorer(SCORES)}, *small, ks=(2,), list_length=2)
    groups = found.groups[found.groups["filter"] == "unfiltered"].set_index(["by", "group"])
    assert groups["hr@2"].to_dict() == {
        ("gap", "tied"): 0, ("gap", "untied"): 1, ("gap", "unknown"): 0,
        ("target", "warm"): 1, ("target", "cold"): 0, ("history", "0-4"): pytest.approx(1 / 3),
    }  # fmt: skip
    assert groups.cases.to_dict()["target", "cold"] == 2  # items 3 and 5
    assert found.cases.gap.tolist() == ["tied", "untied", "unknown"]


def test_validation_events_see_what_is_before_them(small, table_scorer):
    found = evaluate({"ours": table_scorer(SCORES)}, *small, which="validation", ks=(2,), list_length=2)
    assert found.cases.item.tolist() == [2, 0, 3]
    assert found.ranks["ours", "filtered"].tolist() == [1, 1, 3]  # the last: 0 above, 4 and 5 beside it


def test_what_the_catalogue_lacks_is_neither_ranked_nor_recommended(small, table_scorer):
    catalogue = np.array([True, False, True, True, True, False])
    found = evaluate({"ours": table_scorer(SCORES)}, *small, ks=(1,), list_length=9, catalogue=catalogue)
    assert found.left_out == {"the target is not in the catalogue": 1}
    assert found.cases.event.tolist() == [3, 7]
    assert found.ranks["ours", "unfiltered"].tolist() == [3, 2]
    assert found.rows[0]["coverage@9"] == 1
    assert found.n_items == 4
    with pytest.raises(DataError, match="no test event to be foretold of 3: their targets are not"):
        evaluate({"ours": table_scorer(SCORES)}, *small, catalogue=np.zeros(6, dtype=bool))


def test_cases_without_a_past_and_users_with_several(interactions_of, table_scorer):
    interactions = interactions_of([[0, 1, 2], [3]], n_items=4, times=[[0, 1, 1], [5]])
    split = Split(np.array([1, 3]), np.empty(0, dtype=np.int64), np.array([3, 2, 1]))
    scorer = table_scorer(np.array([[0, 3, 2, 1], [0, 3, 2, 1]]))
    found = evaluate({"ours": scorer}, interactions, split, ks=(1,))
    assert found.cases.event.tolist() == [1, 2, 3]
    assert found.cases.gap.tolist() == ["untied", "tied", "untied"]
    assert found.ranks["ours", "filtered"].tolist() == [1, 1, 3]
    assert found.to_dict()["users"] == 2


@pytest.fixture(scope="module")
def larger(interactions_of, last_out):
    rng = np.random.default_rng(0)
    histories = [np.minimum(rng.geometric(0.05, rng.integers(3, 40)), 60) - 1 for _ in range(80)]
    times = [np.cumsum(rng.integers(0, 2, len(one))) for one in histories]
    features = pd.DataFrame({"genre": [f"g{i % 7}" for i in range(60)]})
    interactions = interactions_of(histories, n_items=60, times=times, features=features)
    return interactions, last_out(interactions)


def three(interactions, split):
    return {
        "popularity": Popularity(interactions, split),
        "bigram": Bigram(interactions, split),
        "item-knn": ItemKNN(interactions, split),
    }


def test_the_full_ranking_agrees_with_a_sort(larger):
    interactions, split = larger
    scorers = three(*larger)
    found = evaluate(scorers, interactions, split, ks=(10,))
    for name, scorer in scorers.items():
        scores = scorer.scores(interactions, split.test).numpy().astype(np.float64)
        for row, event in zip(scores, split.test, strict=True):
            user, target = interactions.user[event], interactions.item[event]
            for column in ("unfiltered", "filtered"):
                own = pd.Series(row)
                if column == "filtered":
                    seen = set(interactions.item[interactions.offsets[user] : event]) - {target}
                    own = own.drop(list(seen))
                rank = found.ranks[name, column][found.cases.event == event][0]
                assert rank == own.rank(ascending=False, method="average")[target]


def test_chunks_and_drawn_users_change_nothing_of_a_case(larger, monkeypatch):
    interactions, split = larger
    options = {"sampled": [(20, "uniform"), (20, "popularity")]}
    whole = evaluate(three(*larger), interactions, split, **options)
    monkeypatch.setattr("mambakit.domains.recommendation.ranking._MOST_CASES", 7)
    pieces = evaluate(three(*larger), interactions, split, **options)
    assert whole.rows == pieces.rows
    some, again, other = (
        evaluate(three(*larger), interactions, split, most=30, seed=seed) for seed in (1, 1, 2)
    )
    assert some.cases.event.tolist() == again.cases.event.tolist() != other.cases.event.tolist()
    assert some.left_out == {"the user was not drawn": 50}
    kept = whole.cases.event.isin(some.cases.event).to_numpy()
    for key, ranks in some.ranks.items():
        assert ranks.tolist() == whole.ranks[key][kept].tolist()


def test_large_catalogues_are_asked_for_in_small_chunks(interactions_of, last_out):
    class Wide:
        def __init__(self):
            self.most = 0

        def scores(self, interactions, events):
            self.most = max(self.most, len(events) * interactions.n_items)
            return torch.zeros(len(events), interactions.n_items)

    interactions = interactions_of([[0, 1, 2]] * 30, n_items=400_000)
    wide = Wide()
    found = evaluate({"wide": wide}, interactions, last_out(interactions), ks=(1,))
    assert wide.most <= 8_000_000
    assert (found.ranks["wide", "unfiltered"] == 200_000.5).all()
    assert (found.ranks["wide", "filtered"] == 199_999.5).all()


def test_sampled_metrics_stand_under_their_own_names(larger):
    interactions, split = larger
    names = [(5, "uniform"), (1000, "uniform"), (5, "popularity")]
    found = evaluate(three(*larger), interactions, split, ks=(2,), sampled=names)
    for row in found.rows:
        assert row["sampled-hr@2/1000-uniform"] == row["hr@2"], "all items are the full ranking"
        assert row["sampled-ndcg@2/5-uniform"] > row["ndcg@2"]
        assert row["sampled-hr@2/5-uniform-lo"] < row["sampled-hr@2/5-uniform"]
    popular = found.frame().set_index(["scorer", "filter"]).loc[("popularity", "unfiltered")]
    assert popular["sampled-hr@2/5-popularity"] < popular["sampled-hr@2/5-uniform"]


def test_differences_are_paired(larger):
    found = evaluate(three(*larger), *larger)
    made = found.difference("bigram", "popularity", "hr@10", "filtered")
    rows = found.frame().set_index(["scorer", "filter"])["hr@10"]
    assert made["value"] == pytest.approx(rows["bigram", "filtered"] - rows["popularity", "filtered"])
    assert made["low"] < made["value"] < made["high"]
    same = found.difference("bigram", "bigram")
    assert (same["low"], same["high"]) == (0, 0)
    with pytest.raises(UsageError, match="hr, ndcg or mrr at a number, such as ndcg@10, got 'map@1'"):
        found.difference("bigram", "popularity", "map@1")
    with pytest.raises(UsageError, match="got bigrams unfiltered"):
        found.difference("bigrams", "popularity")


def test_json_text_and_report(larger, tmp_path):
    found = evaluate(three(*larger), *larger, sampled=[(9, "uniform")], most=50)
    said = json.loads(json.dumps(found.to_dict()))
    assert [(row["scorer"], row["filter"]) for row in said["results"]][:2] == [
        ("popularity", "unfiltered"),
        ("popularity", "filtered"),
    ]
    assert said["results"][0]["hr@10"] == found.rows[0]["hr@10"]
    assert (said["cases"], said["items"], said["left_out"]) == (50, 60, {"the user was not drawn": 30})
    row = found.rows[0]
    half = (row["ndcg@10-hi"] - row["ndcg@10-lo"]) / 2
    assert f"{row['ndcg@10']:.4f} ±{half:.4f}" in found.text().splitlines()[2]
    assert "ndcg@5" not in found.text()
    page = Report("Three <counters>")
    report.add_evaluation(page, found)
    html = page.write(tmp_path / "report.html").read_text("utf-8")
    assert html.count("data:image/png") == 3
    for words in ("Three &lt;counters&gt;", "feature-diversity@10", "Krichene", "left out: 30 events"):
        assert words in html
    with pytest.raises(UsageError, match="expected one of gap, target, history, got 'age'"):
        plots.groups_figure(found, "age")
    with pytest.raises(UsageError, match="such as ndcg@10, got 'ndcg@7'"):
        plots.groups_figure(found, metric="ndcg@7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": ()}, "ks: expected at least one length"),
        ({"ks": (5, 0)}, "ks: expected at least 1, got 0"),
        ({"list_length": 0}, "list_length: expected at least 1, got 0"),
        ({"most": 0}, "most: expected at least 1, got 0"),
        ({"level": 95}, "level: expected a share between 0 and 1, such as 0.95, got 95"),
        ({"sampled": [(10, "hard")]}, "sampled: expected uniform or popularity negatives, got 'hard'"),
    ],
)
def test_what_cannot_be_is_said(small, table_scorer, options, message):
    with pytest.raises(UsageError, match=message):
        evaluate({"ours": table_scorer(SCORES)}, *small, **options)
    with pytest.raises(UsageError, match="scorers: expected at least one, got none"):
        evaluate({}, *small)


def test_scores_that_are_no_ranking_are_said(small, table_scorer):
    broken = SCORES.copy()
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match="broken: a score of user 'u1' is NaN"):
        evaluate({"broken": table_scorer(broken)}, *small)
    with pytest.raises(DataError, match=r"short: expected scores of shape \(3, 6\), got \(3, 5\)"):
        evaluate({"short": table_scorer(SCORES[:, :5])}, *small)
