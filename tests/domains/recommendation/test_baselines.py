"""The counting baselines: by hand, and beside the slow way of counting."""

from __future__ import annotations

import dataclasses
import resource
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.baselines import Bigram, ItemKNN, Popularity
from mambakit.domains.recommendation.cases import cases_of
from mambakit.domains.recommendation.counting import transitions
from mambakit.domains.recommendation.interactions import Interactions, Split


def order_of(scores) -> list[list[int]]:
    """Items by score, the first of tied ones first."""
    return np.argsort(-scores.numpy(), axis=1, kind="stable").tolist()


def test_popularity_counts_training_events_only(interactions_of, last_out):
    interactions = interactions_of([[0, 1, 1, 2, 2], [1, 3, 2, 2]], n_items=5)
    split = last_out(interactions)
    scores = Popularity(interactions, split).scores(interactions, split.test)
    assert scores.tolist() == [[1, 3, 0, 1, 0]] * 2


def test_bigram_follows_the_last_event_and_then_popularity(interactions_of):
    # after 0 came 1 twice, 2 and 3 once each, and 3 is more popular than 2
    interactions = interactions_of([[0, 1, 0, 1, 0, 2], [0, 3, 3, 3, 4], [4, 0]], n_items=6)
    ends = interactions.offsets[1:]
    split = Split(train_end=ends.copy(), validation=ends[:0], test=ends - 1)
    split.train_end[2] = ends[2] - 2
    model = Bigram(interactions, split)
    asked = np.array([5, 11, 12])  # after 0; first event of the last user; after the last user's 4
    found = order_of(model.scores(interactions, asked))
    assert found[0] == [1, 3, 2, 0, 4, 5]
    assert found[1] == found[2] == [0, 3, 1, 2, 4, 5]  # nothing came before, and nothing ever after 4


def test_bigram_keeps_popularity_apart_beside_large_counts(interactions_of):
    # one pair a hundred thousand times, and popularities that differ by one
    long = [0, 1] * 100_000
    interactions = interactions_of([long, [2, 3, 2, 3, 2], [0, 2], [0, 3], [0, 4, 9]], n_items=10)
    ends = interactions.offsets[1:]
    split = Split(train_end=ends, validation=ends[:0], test=ends[:0])
    (row,) = order_of(Bigram(interactions, split).scores(interactions, np.array([1])))
    assert row[:5] == [1, 2, 3, 4, 0]


def test_events_of_new_items_are_not_counted(interactions_of):
    histories = [[0, 5, 1, 2, 0], [2, 1, 5, 5, 0], [5, 0, 1, 0, 1]]
    whole = interactions_of(histories, n_items=6)
    split = Split(whole.offsets[1:] - 1, whole.offsets[:0], whole.offsets[1:] - 1, new=np.arange(6) == 5)
    old = interactions_of([[item for item in one if item != 5] for one in histories], n_items=6)
    known = Split(old.offsets[1:] - 1, old.offsets[:0], old.offsets[1:] - 1)
    for kind in (Popularity, ItemKNN):
        scores = [kind(*one).scores(one[0], one[1].test) for one in ((whole, split), (old, known))]
        if kind is Popularity:
            assert scores[0].tolist() == scores[1].tolist()
        else:
            assert (kind(whole, split).similarity != kind(old, known).similarity).nnz == 0
    assert transitions(whole, split).toarray().sum() == 4  # none over an item that is not known
    targets = cases_of(whole, dataclasses.replace(split, test=np.arange(15))).target_kind
    assert [kind == "cold" for kind in targets] == (whole.item == 5).tolist()


def slow_bigram(interactions: Interactions, split: Split, event: int) -> np.ndarray:
    counts = np.zeros((2, interactions.n_items))
    last = interactions.item[event - 1]
    for user in range(interactions.n_users):
        own = interactions.item[interactions.offsets[user] : split.train_end[user]]
        for before, after in pairwise(own):
            counts[0, after] += before == last
        for item in own:
            counts[1, item] += 1
    return counts[0] + counts[1] / 1000


def slow_knn(
    interactions: Interactions, split: Split, event: int, *, last: int, decay: float, neighbours: int | None
) -> np.ndarray:
    had = np.zeros((interactions.n_users, interactions.n_items))
    for user in range(interactions.n_users):
        had[user, interactions.item[interactions.offsets[user] : split.train_end[user]]] = 1
    length = np.linalg.norm(had, axis=0)
    unit = had / np.where(length > 0, length, 1)
    similarity = unit.T @ unit
    np.fill_diagonal(similarity, 0)
    if neighbours is not None:
        for row in similarity:
            row[np.argsort(-row, kind="stable")[neighbours:]] = 0
    history = interactions.item[interactions.offsets[interactions.user[event]] : event][-last:]
    return sum(decay**back * similarity[item] for back, item in enumerate(history[::-1]))


@given(st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_baselines_agree_with_the_slow_way(interactions_of, last_out, seed):
    rng = np.random.default_rng(seed)
    n_items = int(rng.integers(3, 9))
    histories = [rng.integers(0, n_items, rng.integers(3, 12)).tolist() for _ in range(6)]
    interactions = interactions_of(histories, n_items=n_items)
    split = last_out(interactions)
    bigram = Bigram(interactions, split).scores(interactions, split.test)
    for row, event in zip(bigram.numpy(), split.test, strict=True):
        expected = slow_bigram(interactions, split, event)
        assert np.array_equal(row[:, None] > row, expected[:, None] > expected + 1e-9)
    options = {"last": 3, "decay": 0.7, "neighbours": [None, 2][seed % 2]}
    knn = ItemKNN(interactions, split, **options).scores(interactions, split.test)
    if options["neighbours"] is None:
        expected = [slow_knn(interactions, split, event, **options) for event in split.test]
        assert knn.numpy() == pytest.approx(np.stack(expected), abs=1e-5)


def test_only_so_many_neighbours_are_kept(interactions_of):
    # similarity to item 0: item 1 has both of its users, item 2 one of them, item 3 one and another
    interactions = interactions_of([[0, 1, 2], [0, 1, 3], [3], [0]], n_items=4)
    ends = interactions.offsets[1:]
    split = Split(train_end=ends.copy(), validation=ends[:0], test=ends[-1:])
    user, item = np.r_[interactions.user, 3], np.r_[interactions.item, 1]
    longer = dataclasses.replace(interactions, user=user, item=item, time=np.full(len(item), np.nan))
    every, one = (ItemKNN(interactions, split, neighbours=n).scores(longer, np.array([8])) for n in (None, 1))
    cosine = [0, 2 / np.sqrt(3 * 2), 1 / np.sqrt(3), 1 / np.sqrt(3 * 2)]
    assert every[0].tolist() == pytest.approx(cosine)
    assert one[0].tolist() == pytest.approx([0, cosine[1], 0, 0])


def test_what_is_foretold_and_comes_later_does_not_matter(interactions_of, last_out):
    rng = np.random.default_rng(0)
    interactions = interactions_of([rng.integers(0, 8, 9).tolist() for _ in range(5)], n_items=8)
    split = last_out(interactions)
    for make in (Popularity, Bigram, ItemKNN):
        for asked, free in ((split.validation, [split.validation, split.test]), (split.test, [split.test])):
            other = interactions.item.copy()
            other[np.concatenate(free)] = rng.integers(0, 8, sum(map(len, free)))
            changed = dataclasses.replace(interactions, item=other)
            first, second = (make(one, split).scores(one, asked) for one in (interactions, changed))
            assert first.equal(second), make


def test_a_catalogue_of_a_hundred_thousand_items_stays_sparse(last_out):
    rng = np.random.default_rng(0)
    n_users, n_items, length = 3000, 100_000, 12
    item = np.minimum((rng.pareto(0.6, (n_users, length)) * 50).astype(np.int64), n_items - 1)
    interactions = Interactions(
        users=np.arange(n_users).astype(str),
        items=np.arange(n_items).astype(str),
        user=np.repeat(np.arange(n_users), length),
        item=item.ravel(),
        time=np.full(n_users * length, np.nan),
    )
    split = last_out(interactions)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for make in (Popularity, Bigram, ItemKNN):
        scores = make(interactions, split).scores(interactions, split.test[:8])
        assert scores.shape == (8, n_items)
        assert (scores.amax(1) > 0).all()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000, "KiB; all pairs would be 40 GB"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 0}, "last: expected at least 1, got 0"),
        ({"neighbours": 0}, "neighbours: expected at least 1, got 0"),
        ({"decay": 1.5}, "decay: expected above 0 and at most 1, got 1.5"),
    ],
)
def test_what_cannot_be_is_said(interactions_of, last_out, options, message):
    interactions = interactions_of([[0, 1, 2]], n_items=3)
    with pytest.raises(UsageError, match=message):
        ItemKNN(interactions, last_out(interactions), **options)
