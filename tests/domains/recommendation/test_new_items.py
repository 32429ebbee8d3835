"""Items that training never saw: known by their features alone, and by nothing else."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mambakit.core.errors import UsageError
from mambakit.core.training import RunFolder
from mambakit.domains.recommendation.baselines import Popularity
from mambakit.domains.recommendation.config import PRESET_TRAIN, LossConfig, ModelConfig
from mambakit.domains.recommendation.data import leave_one_out
from mambakit.domains.recommendation.embedded import Shop, make_shop
from mambakit.domains.recommendation.features import Features
from mambakit.domains.recommendation.histories import Histories
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.live import LiveRecommender
from mambakit.domains.recommendation.model import Recommender, seen_before
from mambakit.domains.recommendation.new_items import add_items, read_new_items, with_new_items
from mambakit.domains.recommendation.recommending import Shown, on_catalogue, recommend
from mambakit.domains.recommendation.store.records import Record
from mambakit.domains.recommendation.task import RecommenderTask
from mambakit.domains.recommendation.training import fit_cold_shift, train_recommender

TINY = ModelConfig(d_model=32, n_layers=1, d_state=8, head_dim=8, dropout=0.0, embedding_dropout=0.0)
NEW = 10  # every tenth item of the shop comes after training


def features_of(shop: Shop, interactions: Interactions, items: np.ndarray) -> pd.DataFrame:
    assert interactions.item_features is not None
    return interactions.item_features.iloc[items].assign(item=[shop.names[i] for i in items])


def without(interactions: Interactions, items: np.ndarray) -> Interactions:
    """As if these items had never been: neither in events nor in the catalogue."""
    kept = ~np.isin(interactions.item, items)
    left = np.setdiff1d(np.arange(interactions.n_items), items)
    assert interactions.item_features is not None
    return dataclasses.replace(
        interactions,
        items=interactions.items[left],
        user=interactions.user[kept],
        item=np.searchsorted(left, interactions.item[kept]),
        time=interactions.time[kept],
        item_features=interactions.item_features.iloc[left].reset_index(drop=True),
    )


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop(n_items=100, n_clusters=5, n_tastes=4)


@pytest.fixture(scope="module")
def whole(shop: Shop) -> Interactions:
    return shop.simulate(n_users=200, seed=1)


@pytest.fixture(scope="module")
def model(shop: Shop, whole: Interactions, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    old = without(whole, np.arange(0, 100, NEW))
    found, _ = train_recommender(
        old,
        leave_one_out(old),
        RunFolder(tmp_path_factory.mktemp("run") / "run"),
        model_config=TINY,
        loss_config=LossConfig(id_dropout=0.2),
        train_config=dataclasses.replace(
            PRESET_TRAIN, max_epochs=3, lr=1e-2, batch_size=32, ema_decay=0.9, device="cpu"
        ),
    )
    return found


def test_new_items_of_a_known_category_are_ranked_above_chance(
    shop: Shop, whole: Interactions, model: Recommender
) -> None:
    new = np.arange(0, 100, NEW)
    longer, given, said = with_new_items(model, whole)
    assert longer.config.n_items == 100
    assert "10 items that came after training are known by their features alone" in said
    assert given.item_features is not None
    assert given.item_features["title"].tolist()[-10:] == features_of(shop, whole, new)["title"].tolist()
    events = np.flatnonzero((given.item >= 90) & (np.arange(len(given)) > given.offsets[given.user]))
    scores = longer.scores(given, events)
    own = scores.gather(1, torch.from_numpy(given.item[events])[:, None])
    among_new = (scores[:, 90:] > own).sum(1)
    assert (among_new < 2).float().mean() > 0.4  # 0.2 by chance
    among_all = (scores > own).sum(1)
    assert (among_all < 10).float().mean() > 0.13  # 0.1 by chance
    counts = Popularity(given, dataclasses.replace(leave_one_out(given), train_end=given.offsets[:-1]))
    assert counts.scores(given, events).max() == 0  # nothing else knows them


def test_known_items_score_as_before_and_new_ones_are_read(
    shop: Shop, whole: Interactions, model: Recommender
) -> None:
    new = np.arange(0, 100, NEW)
    items = read_new_items(features_of(shop, whole, new))
    longer = add_items(model, items).model
    old = without(whole, new)
    events = old.offsets[1:] - 1
    torch.testing.assert_close(
        longer.scores(on_catalogue(longer, old)[0], events)[:, :90], model.scores(old, events)
    )
    given, lost = on_catalogue(longer, whole)
    assert lost == 0
    assert (longer.scores(given, given.offsets[1:] - 1)[:, :90] - model.scores(old, events)).abs().max() > 0.1
    top = recommend(longer, given, 3, shown=Shown(allow=[shop.names[i] for i in new]))
    assert set(top["item"]) <= {shop.names[i] for i in new}
    assert on_catalogue(model, whole)[1] > 0  # and without them their events are left out


def test_states_outlive_lists_of_new_items(shop: Shop, whole: Interactions, model: Recommender) -> None:
    new = np.arange(0, 100, NEW)
    items = [read_new_items(features_of(shop, whole, these)) for these in (new, new[[7, 2, 5, 0]])]
    live, other = (LiveRecommender(model, one) for one in items)
    assert live.fingerprint == other.fingerprint == LiveRecommender(model).fingerprint
    history = ["i000", "i003", "i020", "i003", "i050"]
    stored = None
    for step, item in enumerate(history):
        past = None if stored is None else Record(stored, step, 0.0, ())
        stored = (live, other)[step % 2].moved(past, item, 100.0 * step)
    assert stored is not None
    longer = add_items(model, items[0]).model
    given = Interactions(
        np.array(["u"]),
        np.array(longer.tokenizer.items),
        np.zeros(5, int),
        np.array([longer.tokenizer.index[item] for item in history]),
        np.arange(5) * 100.0,
    )
    for seen in (True, False):
        whole_history = recommend(longer, given, 8, shown=Shown(filter_seen=seen))
        found = live.top(live.read(stored), 8, filter_seen=seen)
        assert [name for name, _ in found] == whole_history["item"].tolist()
        np.testing.assert_allclose([score for _, score in found], whole_history["score"], atol=2e-4)


def test_what_is_known_of_nothing_is_left_out_and_told(model: Recommender, tmp_path: Path) -> None:
    table = pd.DataFrame({"item": ["i001", "new", "odd"], "category": ["books", "books", "of no kind"]})
    table.to_csv(tmp_path / "items.csv", index=False)
    added = add_items(model, read_new_items(tmp_path / "items.csv"))
    assert added.items == ["new"]
    assert any("1 items are in the model's catalogue and keep" in note for note in added.notes)
    assert any("1 items have no feature" in note and note.endswith("left out: odd") for note in added.notes)
    again = add_items(added.model, read_new_items(tmp_path / "items.csv"))
    assert again.model is added.model
    added.model.save_pretrained(tmp_path / "kept")
    kept = Recommender.from_pretrained(tmp_path / "kept")
    assert kept.tokenizer.items[-1] == "new"
    assert torch.equal(kept.catalogue().vectors, added.model.catalogue().vectors)


def test_an_item_without_training_events_is_not_known_by_its_id(
    model: Recommender, whole: Interactions
) -> None:
    longer, given, _ = with_new_items(model, whole)
    events = given.offsets[1:20] - 1
    before = longer.scores(given, events)
    longer.ids.weight.data[90:100] = 5.0
    longer.bias.data[90:] = 9.0
    assert torch.equal(longer.scores(given, events), before)
    longer.item_words[95] = 0  # nor by anything else
    assert longer.scores(given, events)[:, 95].isneginf().all()
    with pytest.raises(UsageError, match="k: expected 1 to 99"):
        recommend(longer, given, 100, shown=Shown(filter_seen=False))


def test_items_in_another_order_are_not_new(whole: Interactions, model: Recommender) -> None:
    old = without(whole, np.arange(0, 100, NEW))
    order = np.random.default_rng(0).permutation(90)
    assert old.item_features is not None
    features = old.item_features.iloc[order].reset_index(drop=True)
    shuffled = dataclasses.replace(old, items=old.items[order], item=np.argsort(order)[old.item])
    events = old.offsets[1:] - 1
    for known in (None, features):
        found, given, said = with_new_items(model, dataclasses.replace(shuffled, item_features=known))
        assert (found, said) == (model, "")
        assert torch.equal(found.scores(given, events), model.scores(old, events))
    assert add_items(model, Features("none", [], features[:0], "items")).model is model


def test_items_without_features_are_never_taken_for_new_ones(whole: Interactions, model: Recommender) -> None:
    old = without(whole, np.arange(0, 100, NEW))
    model = copy.deepcopy(model)
    model.item_words[::2] = 0
    task = RecommenderTask(
        model, old, old.item, old.offsets[1:] - 1, PRESET_TRAIN, LossConfig(id_dropout=1.0)
    )
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    histories = Histories(old, old.offsets[1:] - 1, model.tokenizer, max_length=200, row_length=200)
    task.training_step(next(iter(histories.loader(200))), 0).backward()
    learned = model.ids.weight.grad[:90].abs().sum(1) > 0
    assert torch.equal(learned, ~model.described & ~model.cold)
    # half of the items have no word; of the others a fifth is drawn
    events = old.offsets[1:] - 2
    fit_cold_shift(model, old, events, seed=3)
    taken = (np.random.default_rng(3).random(90) < 0.2) & model.described.numpy() & ~model.cold.numpy()
    odds = expected_of(model, old, events, taken)
    came = int(taken[old.item[events]].sum())
    assert odds == pytest.approx((came + 0.5) * len(events) / (len(events) + 1), abs=1e-2)


def test_models_and_data_without_features_refuse_new_items(whole: Interactions, model: Recommender) -> None:
    with pytest.raises(UsageError, match=r"another catalogue .100 items, 10 of them new"):
        with_new_items(model, dataclasses.replace(whole, item_features=None))
    plain = Recommender(dataclasses.replace(model.config, n_item_words=0))
    plain.tokenizer = model.tokenizer
    with pytest.raises(UsageError, match="trained without features of items"):
        add_items(plain, read_new_items(pd.DataFrame({"item": ["x"], "category": ["books"]})))


def expected_of(model: Recommender, old: Interactions, events: np.ndarray, taken: np.ndarray) -> float:
    """Of how many events some items are expected, known by their features and shifted as new ones are."""
    hidden = model.hidden(old, old.user[events], events, model.catalogue())
    as_new = model.catalogue(torch.from_numpy(taken))
    score = model.score(hidden, as_new, seen_before(old, old.user[events], events)).detach()
    score[:, model.cold] = -torch.inf
    score[:, taken] += model.cold_shift
    return float(score.softmax(1)[:, taken].sum())


def test_as_many_new_items_are_expected_as_come(whole: Interactions, model: Recommender) -> None:
    old = without(whole, np.arange(0, 100, NEW))
    events = old.offsets[1:] - 2
    fit_cold_shift(model, old, events, seed=3)
    taken = (np.random.default_rng(3).random(90) < 0.2) & ~model.cold.numpy()  # taken for new ones
    came = int(taken[old.item[events]].sum())
    n = len(events)
    assert expected_of(model, old, events, taken) == pytest.approx((came + 0.5) * n / (n + 1), abs=1e-2)
