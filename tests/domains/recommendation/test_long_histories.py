"""Histories of thousands of events: many events foretold in one pass, and all of a history read at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.domains.recommendation.config import PRESET_TRAIN, LossConfig, ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.evaluation import evaluate
from mambakit.domains.recommendation.histories import Histories
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.recommending import recommend
from mambakit.domains.recommendation.task import RecommenderTask
from mambakit.domains.recommendation.tokenizer import EventTokenizer

TINY = ModelConfig(
    d_model=16, n_layers=1, d_state=8, head_dim=8, dropout=0.0, embedding_dropout=0.0, time="both"
)


def users_with(*lengths: int, n_items: int = 12) -> Interactions:
    rng = np.random.default_rng(0)
    n = sum(lengths)
    return Interactions(
        np.array([f"u{i}" for i in range(len(lengths))]),
        np.array([f"i{i}" for i in range(n_items)]),
        np.repeat(np.arange(len(lengths)), lengths),
        rng.integers(n_items, size=n),
        np.concatenate([1e9 + np.cumsum(rng.choice([0, 30, 4000, 9e5], size=one)) for one in lengths]),
    )


def fresh(interactions: Interactions, config: ModelConfig = TINY) -> Recommender:
    torch.manual_seed(0)
    tokenizer = EventTokenizer.of(interactions, interactions.offsets[1:])
    model = Recommender(RecommenderConfig(interactions.n_items, gap_unit=tokenizer.gap_unit, model=config))
    model.tokenizer = tokenizer
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() == 2 else None
    return model.eval()


MANY = users_with(700, 3, 41, 1, 260)
MODELS = [
    fresh(MANY),
    fresh(MANY, dataclasses.replace(TINY, blocks=["attention", "mlp"], time="gaps")),
]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1), st.lists(st.integers(0, len(MANY) - 1), min_size=1, max_size=12))
def test_all_events_of_a_user_in_one_pass_score_as_one_by_one(which: int, events: list[int]) -> None:
    model = MODELS[which]
    together = model.scores(MANY, np.array(events))
    alone = torch.cat([model.scores(MANY, np.array([event])) for event in events])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_history_is_read_once_for_all_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = MODELS[0], []
    forward = model.backbone.forward

    def counted(x: torch.Tensor, *args: object, **options: object) -> object:
        read.append(x.shape[0] * x.shape[1])
        return forward(x, *args, **options)

    monkeypatch.setattr(model.backbone, "forward", counted)
    model.scores(MANY, np.arange(200, 700))
    assert sum(read) == 700  # START and 699 events


def test_ten_thousand_events_in_one_piece() -> None:
    n = 10_000
    interactions = users_with(n + 2, 3)
    split = Split(interactions.offsets[1:] - 2, interactions.offsets[1:] - 2, interactions.offsets[1:] - 1)
    model = fresh(interactions, dataclasses.replace(TINY, time="gaps"))
    loss = LossConfig(max_length=n)
    histories = Histories(
        interactions, split.train_end, model.tokenizer, max_length=n, row_length=loss.row_length
    )
    [batch] = histories.loader(2)
    assert sorted(batch.tokens.spans[:, 2].tolist()) == [1, n]
    task = RecommenderTask(model.train(), interactions, interactions.item, split.test, PRESET_TRAIN, loss)
    task.log = lambda *args, **options: None  # type: ignore[assignment, method-assign]
    task.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model.gaps is not None
    assert model.gaps.weight.grad is not None
    assert model.gaps.weight.grad.abs().sum() > 0

    model.eval()
    read = model.scores(interactions, split.test[:1])
    other = dataclasses.replace(interactions, item=interactions.item.copy())
    other.item[: n - 60] = 5  # far behind, and yet read
    assert (model.scores(other, split.test[:1]) - read).abs().max() > 1e-7
    torch.testing.assert_close(
        model.scores(other, split.test[:1], history=50),
        model.scores(interactions, split.test[:1], history=50),
    )
    found = evaluate({"ours": model}, interactions, split)
    assert found.cases["history"].tolist() == ["1000+", "0-4"]
    assert len(recommend(model, interactions, 2, users=["u1"])) == 2
    assert recommend(model, interactions, 2, users=["u0"]).empty  # who has had everything
