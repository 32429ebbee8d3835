"""Explanations: what contributions mean, what they must not depend on, and what cannot be explained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.explaining import METHODS, Method, explain
from mambakit.domains.recommendation.explanation_figure import explanation_figure
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.recommending import Shown, recommend
from mambakit.domains.recommendation.tokenizer import EventTokenizer, Words

N_ITEMS = 9
HISTORY = [3, 1, 4, 1, 5]
TIMES = [0.0, 10.0, 10.0, 4000.0, 90000.0]


def recommender(blocks: Sequence[str] = ("mamba2", "mlp"), time: str = "both", seed: int = 0) -> Recommender:
    torch.manual_seed(seed)
    config = ModelConfig(
        d_model=16, n_layers=2, d_state=4, head_dim=8, dropout=0.1, blocks=list(blocks), time=time
    )
    model = Recommender(RecommenderConfig(N_ITEMS, model=config))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.tokenizer = EventTokenizer([f"i{i}" for i in range(N_ITEMS)])
    model.popularity += torch.arange(N_ITEMS)
    model.repeat_shift.fill_(-1.5)
    return model.double()


def one_user(history: list[int]) -> Interactions:
    return Interactions(
        users=np.array(["u0"]),
        items=np.array([f"i{i}" for i in range(N_ITEMS)]),
        user=np.zeros(len(history), dtype=np.int64),
        item=np.array(history),
        time=np.arange(len(history)) * 100.0,
    )


@pytest.mark.parametrize("method", METHODS)
def test_ranks_and_scores_are_those_of_recommend(
    method: Method, interactions_of: Callable[..., Interactions]
) -> None:
    model = recommender()
    events = interactions_of([[2], HISTORY], N_ITEMS, times=[[5.0], TIMES])
    found = explain(model, events, "u1", k=3, method=method)
    top = recommend(model, events, 3, users=["u1"])
    assert found.items == top["item"].tolist()
    np.testing.assert_allclose(found.score, top["score"], rtol=1e-5)
    whole = explain(model, events, "u1", items=["i1", found.items[2]], method=method, filter_seen=False)
    assert whole.past == ["i3", "i1", "i4", "i1", "i5"]
    assert list(whole.contribution.shape) == [2, 5]
    np.testing.assert_allclose(whole.contribution[1], found.contribution[2], rtol=1e-5, atol=1e-9)
    table = found.table({"i4": "four"})
    items = table.groupby("item")
    np.testing.assert_allclose(items["contribution"].sum() + items["rest"].first(), items["lift"].first())
    assert table["title"].tolist()[:5] == ["", "", "four", "", ""]
    assert table["time"].tolist()[3] == "1970-01-01T01:06:40Z"


def test_items_that_are_seen_or_of_which_nothing_is_known_are_not_shown() -> None:
    model = recommender()
    model.cold[[0, 2]] = True  # without features
    events = one_user(HISTORY)
    found = explain(model, events, "u0", k=3, method="leave-one-out")
    assert sorted(found.items) == ["i6", "i7", "i8"]
    with pytest.raises(UsageError, match="k: expected 1 to 3, the items that may be shown, got 4"):
        explain(model, events, "u0", k=4)
    assert len(explain(model, events, "u0", k=7, method="leave-one-out", filter_seen=False).items) == 7
    for method in METHODS:
        with pytest.raises(UsageError, match="item: 'i2' has no training event and no feature"):
            explain(model, events, "u0", items=["i6", "i2"], method=method)


@pytest.mark.parametrize("lost", range(5))
def test_leaving_one_out_is_as_if_it_had_not_happened(
    lost: int, interactions_of: Callable[..., Interactions]
) -> None:
    model = recommender()
    less, when = ([one for i, one in enumerate(all_) if i != lost] for all_ in (HISTORY, TIMES))
    lifts = []
    for history, times in ((HISTORY, TIMES), (less, when)):
        scores = recommend(
            model, interactions_of([history], N_ITEMS, times=[times]), N_ITEMS, shown=Shown(filter_seen=False)
        ).set_index("item")["score"]
        scores[[f"i{i}" for i in set(history)]] += 1.5  # the repeat shift
        lifts.append(scores["i2"] - scores.mean())
    events = interactions_of([HISTORY], N_ITEMS, times=[TIMES])
    found = explain(model, events, "u0", items=["i2"], method="leave-one-out")
    np.testing.assert_allclose(found.contribution[0, lost], lifts[0] - lifts[1], rtol=1e-4, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(
    history=st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=12),
    blocks=st.sampled_from([("mamba2", "mlp"), ("mamba1",), ("attention", "mlp")]),
)
def test_hidden_attention_leaves_only_start_and_biases(history: list[int], blocks: tuple[str, ...]) -> None:
    """Biases out of the way, START is all that is left: its own share is the rest."""
    model = recommender(blocks, time="gaps")
    for name, parameter in model.named_parameters():
        if name == "bias" or name.endswith("conv_bias"):
            parameter.data.zero_()
    model.ids.weight.data[N_ITEMS] = 0.0  # START
    model.gaps.weight.data[0] = 0.0  # and its gap
    events = one_user(history)
    found = explain(model, events, "u0", items=["i0", "i8"], filter_seen=False)
    shift = np.array([-1.5 * (i in history) for i in (0, 8)])
    np.testing.assert_allclose(found.rest, shift, atol=1e-4 * np.abs(found.contribution).max() + 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_moves_all_items_alike_is_nothing(
    method: Method, interactions_of: Callable[..., Interactions]
) -> None:
    model = recommender()
    events = interactions_of([HISTORY], N_ITEMS, times=[TIMES])
    before = explain(model, events, "u0", items=["i2"], method=method)
    model.bias.data += 7.0
    after = explain(model, events, "u0", items=["i2"], method=method)
    np.testing.assert_allclose(after.contribution, before.contribution, atol=1e-5)
    np.testing.assert_allclose(after.rest, before.rest, atol=1e-5)
    np.testing.assert_allclose(after.score, before.score + 7.0, rtol=1e-6)


def test_gradients_begin_at_average_items(interactions_of: Callable[..., Interactions]) -> None:
    model = recommender()
    model.popularity.zero_()
    model.popularity[4] = 10  # so that item 4 is the average one
    events = interactions_of([[4, 3, 4]], N_ITEMS, times=[[0.0, 5.0, 9.0]])
    average = interactions_of([[4, 4, 4]], N_ITEMS, times=[[0.0, 5.0, 9.0]])
    found = explain(model, events, "u0", items=["i2"], method="gradients")
    nothing = explain(model, average, "u0", items=["i2"], method="gradients")
    np.testing.assert_allclose(nothing.contribution, 0, atol=1e-9)
    np.testing.assert_allclose(found.contribution[0, [0, 2]], 0, atol=1e-9)
    moved = (found.score - found.average) - (nothing.score - nothing.average)
    np.testing.assert_allclose(found.contribution.sum(1), moved, rtol=0.011)


def test_features_of_users_are_no_events(interactions_of: Callable[..., Interactions]) -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, n_layers=1, d_state=4, head_dim=8)
    model = Recommender(RecommenderConfig(N_ITEMS, n_user_words=2, model=config))
    features = pd.DataFrame({"kind": ["a", "b", "a", "b"]})
    model.tokenizer = EventTokenizer([f"i{i}" for i in range(N_ITEMS)], user_words=Words().fit(features))
    model.user_table.weight.data *= 50
    events = interactions_of([[1, 2], [1, 2], [1, 2], [1, 2]], N_ITEMS)
    events = dataclasses.replace(events, user_features=features)
    for method in METHODS:
        a, b, c = (explain(model, events, user, items=["i5"], method=method) for user in ("u0", "u1", "u2"))
        assert not np.allclose(a.rest, b.rest)
        np.testing.assert_allclose(a.contribution, c.contribution, rtol=1e-5)


@pytest.mark.parametrize(
    ("user", "options", "error", "message"),
    [
        ("who", {}, UsageError, "user: 'who' is not among the 3 users of the input"),
        ("u0", {"items": ["i99"]}, UsageError, "item: 'i99' is not in the model's catalogue of 9 items"),
        ("u0", {"k": 7}, UsageError, "k: expected 1 to 6, the items that may be shown, got 7"),
        ("u0", {"k": 0}, UsageError, "k: expected 1 to 6"),
        ("u0", {"method": "guess"}, UsageError, "method: expected one of hidden-attention, gradients"),
        ("u2", {}, UsageError, "filter_seen: the user has had all 9 items, so none is left"),
        ("u1", {}, DataError, "user 'u1' has no event with an item of the catalogue of 9 items"),
    ],
)
def test_what_cannot_be_explained_is_said(
    user: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    interactions_of: Callable[..., Interactions],
) -> None:
    events = interactions_of([[1, 2, 3, 2], [], list(range(N_ITEMS))], N_ITEMS)
    with pytest.raises(error, match=message):
        explain(recommender(), events, user, **options)


def test_a_network_without_hidden_attention_is_named(interactions_of: Callable[..., Interactions]) -> None:
    model = recommender(("mamba2", "moe"))
    events = interactions_of([HISTORY], N_ITEMS, times=[TIMES])
    with pytest.raises(UsageError, match=r"layer 1 MoE.*gradients and leave-one-out explain any"):
        explain(model, events, "u0")
    for method in ("gradients", "leave-one-out"):
        assert np.isfinite(explain(model, events, "u0", k=1, method=method).contribution).all()


def test_the_picture_shows_what_counts(interactions_of: Callable[..., Interactions]) -> None:
    history = [i % N_ITEMS for i in range(40)]
    found = explain(recommender(), interactions_of([history], N_ITEMS), "u0", items=["i2", "i3"])
    figure = explanation_figure(
        found, {"i2": "a title that is far too long for the head of a panel", "i5": "$5"}
    )
    first, second = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names[-2:] == ["16 other events", "rest (no event's)"]
    assert "$5" in names
    for axis, own, lift in zip((first, second), found.contribution, found.score - found.average, strict=True):
        widths = [bar.get_width() for bar in axis.patches]
        assert len(widths) == 26
        np.testing.assert_allclose(sum(widths), lift)
        strongest = int(np.abs(own).argmax())
        assert any(np.isclose(width, own[strongest]) for width in widths)
