"""The simulated shop: its best recommender is right, and worth reaching for."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

from mambakit.core.errors import DataError
from mambakit.domains.recommendation.cards import load_interactions
from mambakit.domains.recommendation.data import leave_one_out, tied
from mambakit.domains.recommendation.embedded import Shop, load, make_shop
from mambakit.domains.recommendation.interactions import Interactions


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop()


@pytest.fixture(scope="module")
def clicks() -> Interactions:
    return load_interactions("simulated-shop")


def test_is_the_same_every_time(clicks: Interactions):
    again = load("mambakit.simulated_shop")
    assert np.array_equal(clicks.items[clicks.item], again.items[again.item])
    assert np.array_equal(clicks.time, again.time)
    assert clicks.items[clicks.item[:5]].tolist() == ["i338", "i057", "i043", "i344", "i335"]
    assert clicks.time[:3].tolist() == [1701884077, 1701884801, 1701884822]
    assert not np.array_equal(again.item[:100], make_shop().simulate(2000, seed=2).item[:100])


def test_what_comes_next_equals_the_sum_over_all_tastes(shop: Shop):
    """Every path of tastes through a short history, enumerated."""
    tiny = make_shop(n_items=12, n_clusters=2, n_tastes=3, seed=5)
    clicks = tiny.simulate(200, seed=3)
    short = np.flatnonzero(np.diff(clicks.offsets) <= 6)[:8]
    assert len(short) == 8
    for user in short.tolist():
        start, stop = int(clicks.offsets[user]), int(clicks.offsets[user + 1])
        found = tiny.probabilities(clicks, np.arange(start, stop))
        item = clicks.item[start:stop]
        begins = np.diff(clicks.time[start:stop], prepend=-np.inf) > 3600
        for n in range(stop - start):
            total = np.zeros(12)
            for path in itertools.product(range(3), repeat=n):
                weight = 1 / 3 if n else 1.0
                for step, taste in enumerate(path):
                    drawn = tiny.draws[taste, item[step]]
                    if step and begins[step]:
                        weight *= tiny.drift[path[step - 1], taste] * drawn
                    elif step:
                        stays = float(path[step - 1] == taste)
                        follow = tiny.follow[item[step - 1], item[step]]
                        weight *= stays * (tiny.follows * follow + (1 - tiny.follows) * drawn)
                    else:
                        weight *= drawn
                if not n:
                    total += tiny.draws.mean(axis=0)
                    continue
                fresh = tiny.drift[path[-1]] @ tiny.draws
                stay = (1 - tiny.follows) * tiny.draws[path[-1]] + tiny.follows * tiny.follow[item[n - 1]]
                total += weight * (tiny.ends * fresh + (1 - tiny.ends) * stay)
            np.testing.assert_allclose(found[n], total / total.sum(), rtol=1e-9)


def test_probabilities_are_those_of_the_events(shop: Shop, clicks: Interactions):
    """Where the shop says p, the item comes in a share p of the cases, within five standard errors."""
    chosen = np.random.default_rng(0).choice(len(clicks), 4000, replace=False)
    p = shop.probabilities(clicks, chosen)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-9)
    came = np.zeros_like(p, dtype=bool)
    came[np.arange(len(chosen)), clicks.item[chosen]] = True
    bounds = [0, 1e-3, 1e-2, 0.05, 0.1, 0.2, 1]
    for low, high in itertools.pairwise(bounds):
        inside = (p > low) & (p <= high)
        expected, variance = p[inside].sum(), (p[inside] * (1 - p[inside])).sum()
        assert variance > 10
        assert abs(came[inside].sum() - expected) < 5 * np.sqrt(variance)


def test_long_histories_are_worth_reading(shop: Shop, clicks: Interactions):
    """The best recommender is far above popularity and above counting pairs: there is something to learn."""
    test = leave_one_out(clicks).test
    known = np.ones(len(clicks), dtype=bool)
    known[test] = False
    popular = np.bincount(clicks.item[known], minlength=500).astype(float)
    pairs = np.zeros((500, 500))
    later = np.flatnonzero(known[1:] & (clicks.user[1:] == clicks.user[:-1])) + 1
    np.add.at(pairs, (clicks.item[later - 1], clicks.item[later]), 1)
    scores = {
        "best": shop.scores(clicks, test).numpy(),
        "pairs": pairs[clicks.item[test - 1]] + 1e-6 * popular,
        "popular": np.tile(popular, (len(test), 1)),
    }
    ndcg = {}
    for name, own in scores.items():
        rank = (own > own[np.arange(len(test)), clicks.item[test]][:, None]).sum(axis=1)
        ndcg[name] = float(np.where(rank < 10, 1 / np.log2(rank + 2.0), 0).mean())
    assert ndcg["best"] == pytest.approx(0.397, abs=0.001)
    assert ndcg["best"] > ndcg["pairs"] + 0.04 > ndcg["popular"] + 0.2


def test_only_what_came_before_counts(shop: Shop, clicks: Interactions):
    events = leave_one_out(clicks).validation[:50]
    changed = dataclasses.replace(clicks, item=clicks.item.copy())
    changed.item[events] = 0
    changed.item[events + 1] = 1
    assert np.array_equal(shop.probabilities(changed, events), shop.probabilities(clicks, events))


def test_times_tell_sessions_and_never_tie(clicks: Interactions):
    gap = np.diff(clicks.time)[clicks.user[1:] == clicks.user[:-1]]
    assert ((gap <= 1800) | (gap >= 4 * 3600)).all()
    assert 0.19 < (gap > 3600).mean() < 0.21
    assert not tied(clicks, np.arange(len(clicks))).any()
    assert np.array_equal(clicks.time, np.round(clicks.time))


def test_features_tell_the_cluster(shop: Shop, clicks: Interactions):
    features = clicks.item_features
    assert features is not None
    cluster = shop.cluster[pd.Index(shop.names).get_indexer(clicks.items.tolist())]
    assert (pd.DataFrame({"c": cluster, "f": features["category"]}).groupby("c")["f"].nunique() == 1).all()
    assert features["category"].nunique() == 10
    words = features["title"].str.split().str[-1]
    assert pd.crosstab(words, features["category"]).gt(0).sum(axis=1).eq(1).all()
    assert np.corrcoef(np.log(features["price"]), cluster)[0, 1] > 0.9


def test_strangers_are_refused(shop: Shop, clicks: Interactions):
    names = clicks.items.astype("<U5")
    names[3] = "other"
    with pytest.raises(DataError, match="the simulated shop has no item 'other'"):
        shop.probabilities(dataclasses.replace(clicks, items=names), np.array([0]))
    with pytest.raises(DataError, match=r"there is: mambakit\.simulated_shop"):
        load("mambakit.other")
    with pytest.raises(ValueError, match="n_items: expected at least 5 a cluster, 50, got 20"):
        make_shop(n_items=20)
