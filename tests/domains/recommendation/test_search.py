"""Approximate search: what it shows obeys every filter, and equals exact search where it reads all cells."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import UsageError, UserError
from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.recommending import Shown, recommend
from mambakit.domains.recommendation.search import ApproximateSearch, Asked, ExactSearch
from mambakit.domains.recommendation.tokenizer import EventTokenizer

pytest.importorskip("faiss")

SHAPE = ModelConfig(d_model=8, n_layers=1, d_state=4, head_dim=4, dropout=0.0, embedding_dropout=0.0)


def untrained(n_items: int, shift: float = 0.0) -> Recommender:
    torch.manual_seed(0)
    model = Recommender(RecommenderConfig(n_items, model=SHAPE)).eval()
    model.tokenizer = EventTokenizer([f"i{i}" for i in range(n_items)])
    torch.nn.init.normal_(model.ids.weight)
    torch.nn.init.normal_(model.bias, std=2.0)
    model.popularity += torch.arange(n_items) % 7
    model.repeat_shift.fill_(shift)
    return model


def asked_of(n_users: int, n_items: int, n_seen: int, seed: int = 0) -> Asked:
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(n_users), n_seen)
    return Asked(torch.randn(n_users, 8), row, rng.integers(n_items, size=len(row)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    n_items=st.integers(1, 400),
    n_seen=st.integers(0, 300),
    k=st.integers(1, 12),
    shift=st.sampled_from([0.0, -5.0, 3.0]),
    filter_seen=st.booleans(),
    every=st.integers(1, 5),
)
def test_reading_all_cells_is_exact_search(
    n_items: int, n_seen: int, k: int, shift: float, filter_seen: bool, every: int
) -> None:
    """Whatever users have had, up to the whole catalogue, and whatever may be shown."""
    model = untrained(n_items, shift)
    kept = np.arange(n_items) % every == 0
    k = min(k, int(kept.sum()))
    exact = ExactSearch(model, model.catalogue(), kept, filter_seen=filter_seen)
    approximate = ApproximateSearch(exact)
    approximate.probes = approximate.n_cells
    asked = asked_of(5, n_items, n_seen)
    with torch.no_grad():
        found, truth = approximate.top(asked, k), exact.top(asked, k)
    there = np.isfinite(truth.score)
    np.testing.assert_array_equal(np.isfinite(found.score), there)
    np.testing.assert_allclose(found.score[there], truth.score[there], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.item[there], truth.item[there])


@pytest.mark.parametrize("n_seen", [5, 60, 1500])
def test_few_cells_obey_the_filters_and_fill_up(n_seen: int) -> None:
    """With one cell read of 45, of users who have had most of it too."""
    n_items, k = 2000, 10
    model = untrained(n_items)
    kept = np.random.default_rng(1).random(n_items) < 0.9
    exact = ExactSearch(model, model.catalogue(), kept, filter_seen=True)
    approximate = ApproximateSearch(exact)
    approximate.probes = 1
    asked = asked_of(50, n_items, n_seen)
    with torch.no_grad():
        found, truth = approximate.top(asked, k), exact.top(asked, k)
    assert np.isfinite(found.score).all()
    assert kept[found.item].all()
    for row in range(50):
        assert len(set(found.item[row])) == k
        assert not set(found.item[row]) & set(asked.item[asked.row == row])
        assert (np.diff(found.score[row]) <= 0).all()
    assert (found.score <= truth.score + 1e-4).all()
    assert (approximate.n_exact > 0) == (n_seen >= 1500)


def test_recall_is_what_was_asked_for_and_is_said() -> None:
    n_items, n_users = 3000, 300
    model = untrained(n_items)
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(n_users), 4)
    given = Interactions(
        np.array([f"u{i}" for i in range(n_users)]),
        np.array(model.tokenizer.items),
        user,
        rng.integers(n_items, size=len(user)),
        np.full(len(user), np.nan),
    )
    shown = Shown(deny=("i3", "i4"), min_popularity=2)
    exact = recommend(model, given, 10, shown=shown)
    assert exact.attrs == {"search": "exact"}
    said = {}
    for least in (0.3, 0.9, 1.0):
        frame = recommend(model, given, 10, shown=shown, search="approximate", min_recall=least)
        said[least] = frame.attrs
        pairs = set(zip(frame["user"], frame["item"], strict=True))
        found = len(pairs & set(zip(exact["user"], exact["item"], strict=True))) / len(exact)
        assert found > least - 0.05
        # the recall of 128 users for that of 300: three standard errors of a share
        assert abs(frame.attrs["recall"] - found) < 3 * (0.25 / 1280) ** 0.5
        assert frame.attrs["recall_users"] <= 128
    assert said[0.3]["cells_read"] < said[0.9]["cells_read"] <= said[1.0]["cells_read"]


def test_without_faiss_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    model = untrained(20)
    exact = ExactSearch(model, model.catalogue(), np.ones(20, dtype=bool), filter_seen=True)
    with pytest.raises(UserError, match=r"approximate search needs FAISS: pip install \"mambakit\[ann\]\""):
        ApproximateSearch(exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "fast"}, "search: expected exact or approximate, got 'fast'"),
        ({"min_recall": 0.0}, "min_recall: expected a share above 0 and at most 1, got 0.0"),
    ],
)
def test_refuses_other_searches(options: dict[str, Any], message: str) -> None:
    model = untrained(5)
    given = Interactions(
        np.array(["u"]),
        np.array(model.tokenizer.items),
        np.zeros(1, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        np.zeros(1),
    )
    with pytest.raises(UsageError, match=message):
        recommend(model, given, 1, **options)
