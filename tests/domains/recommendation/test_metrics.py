"""Ranks and what is read from them: by hand, by laws, and beside torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from mambakit.domains.recommendation.metrics import (
    hits,
    ndcg,
    recall,
    reciprocal_ranks,
    sample_negatives,
    sampled_name,
    target_ranks,
    top_items,
)


def ranks_of(scores, targets, seen=None):
    pairs = (
        None
        if seen is None
        else tuple(torch.tensor(one, dtype=torch.int64) for one in zip(*seen, strict=True))
    )
    both = target_ranks(torch.as_tensor(scores, dtype=torch.float32), torch.as_tensor(targets), pairs)
    return [one.tolist() for one in both]


def test_ranks_by_hand():
    scores = [[5.0, 3.0, 3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]]
    assert ranks_of(scores, [1, 4]) == [[3.0, 3.0], [3.0, 3.0]]  # one above, two tied: places 2, 3 and 4
    # item 0 above and item 2 beside it are seen, once twice; so is the target itself, which stays
    seen = [(0, 0), (0, 2), (0, 2), (0, 1), (1, 0)]
    assert ranks_of(scores, [1, 4], seen) == [[3.0, 3.0], [1.5, 2.5]]


def test_accuracies_by_hand():
    ranks = np.array([1.0, 3.0, 10.0, 10.5, 11.0])
    assert hits(ranks, 10).tolist() == [1, 1, 1, 1, 0]  # 10.5: two share places 10 and 11
    assert ndcg(ranks, 5).tolist() == [1, 0.5, 0, 0, 0]
    assert reciprocal_ranks(ranks, 10).tolist() == pytest.approx([1, 1 / 3, 0.1, 1 / 10.5, 0])
    several = np.array([[1.0, 4.0, 12.0, np.nan], [20.0, 3.0, np.nan, np.nan], [np.nan] * 4])
    assert recall(several, 10).tolist() == pytest.approx([2 / 3, 0.5, np.nan], nan_ok=True)


small = st.integers(1, 6).flatmap(
    lambda n_items: st.tuples(
        st.lists(st.lists(st.integers(-3, 3), min_size=n_items, max_size=n_items), min_size=1, max_size=4),
        st.integers(0, n_items - 1),
        st.integers(0, 2**16),
    )
)


@given(small)
@settings(max_examples=60, deadline=None)
def test_laws_of_ranks(drawn):
    rows, target, seed = drawn
    scores = torch.tensor(rows, dtype=torch.float32)
    n, n_items = scores.shape
    targets = torch.full((n,), target)
    rng = np.random.default_rng(seed)
    seen = torch.from_numpy(rng.random((n, n_items)) < 0.5).nonzero().T
    ranks, filtered = target_ranks(scores, targets, (seen[0], seen[1]))
    # the mean over all orders of the items that tie
    above = (scores > scores[:, [target]]).sum(1)
    tied = (scores == scores[:, [target]]).sum(1)
    assert ranks.tolist() == (above + (1 + tied) / 2).tolist()
    # a constant, and another order of the items, change nothing
    order = torch.from_numpy(rng.permutation(n_items))
    place = torch.argsort(order)
    moved = target_ranks(scores[:, order] + 7, place[targets], (seen[0], place[seen[1]]))
    assert [one.tolist() for one in moved] == [ranks.tolist(), filtered.tolist()]
    # leaving items out can only help, and as much as taking their columns away
    assert bool((filtered <= ranks).all())
    assert bool((filtered >= 1).all())
    for row in range(n):
        gone = set(seen[1][seen[0] == row].tolist()) - {target}
        kept = [item for item in range(n_items) if item not in gone]
        alone, _ = target_ranks(scores[[row]][:, kept], torch.tensor([kept.index(target)]))
        assert alone.item() == filtered[row].item()
    for terms in (hits, ndcg, reciprocal_ranks):
        by_k = np.stack([terms(ranks.numpy(), k) for k in range(1, n_items + 2)])
        assert (np.diff(by_k, axis=0) >= 0).all(), "more places find no less"
        assert ((by_k >= 0) & (by_k <= 1)).all()


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_top_items_are_the_first_of_a_stable_sort(row, k):
    scores = np.array([row, row[::-1]], dtype=np.float32)
    scores[scores == -2] = -np.inf  # never recommended
    expected = np.full((2, k), -1)
    for line, found in zip(scores, expected, strict=True):
        order = np.argsort(-line, kind="stable")
        order = order[np.isfinite(line[order])][:k]
        found[: len(order)] = order
    assert top_items(torch.from_numpy(scores), k).tolist() == expected.tolist()


def test_one_target_agrees_with_torchmetrics():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.permuted(np.tile(np.arange(30.0), (40, 1)), axis=1))
    targets = torch.from_numpy(rng.integers(0, 30, 40))
    ranks = target_ranks(scores, targets)[0].numpy()
    theirs = {
        hits: retrieval_hit_rate,
        ndcg: retrieval_normalized_dcg,
        reciprocal_ranks: retrieval_reciprocal_rank,
    }
    for k in (1, 5, 10):
        for ours, their in theirs.items():
            expected = [
                float(their(row, torch.arange(30) == target, top_k=k))
                for row, target in zip(scores, targets, strict=True)
            ]
            assert ours(ranks, k) == pytest.approx(expected, abs=1e-6)


def test_recall_of_several_agrees_with_torchmetrics():
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(rng.permutation(20.0 * np.arange(1, 21)))
    wanted = [3, 8, 15, 19]
    ranks = np.array([[target_ranks(scores[None], torch.tensor([one]))[0].item() for one in wanted]])
    for k in (1, 3, 10, 20):
        mask = torch.zeros(20, dtype=torch.bool)
        mask[wanted] = True
        assert recall(ranks, k)[0] == pytest.approx(float(retrieval_recall(scores, mask, top_k=k)))


def test_sampled_metrics_bear_their_name_and_draw_what_is_allowed():
    assert sampled_name("ndcg@10", 100, "uniform") == "sampled-ndcg@10/100-uniform"
    allowed = np.arange(50) % 2 == 0
    drawn = sample_negatives(allowed, 10, seed=[3, 4])
    assert len(set(drawn.tolist())) == 10
    assert (drawn % 2 == 0).all()
    assert drawn.tolist() == sample_negatives(allowed, 10, seed=[3, 4]).tolist()
    assert drawn.tolist() != sample_negatives(allowed, 10, seed=[3, 5]).tolist()
    assert sorted(sample_negatives(allowed, 99).tolist()) == list(range(0, 50, 2))
    weights = np.zeros(50)
    weights[[2, 3, 4]] = [1.0, 5.0, 9.0]
    assert sorted(sample_negatives(allowed, 10, weights=weights).tolist()) == [2, 4]
    first = [int(sample_negatives(allowed, 1, weights=weights, seed=i)[0]) for i in range(1000)]
    assert np.mean(np.array(first) == 4) == pytest.approx(0.9, abs=0.03)  # three standard errors
