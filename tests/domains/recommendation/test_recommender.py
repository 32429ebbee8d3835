"""The recommender: packed histories, losses, scores that equal live states, cold items, repeats."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.core.training import RunFolder
from mambakit.domains.recommendation.config import PRESET_TRAIN, LossConfig, ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.histories import NO_TARGET, Histories
from mambakit.domains.recommendation.interactions import Interactions, Split
from mambakit.domains.recommendation.live import LiveRecommender
from mambakit.domains.recommendation.losses import next_item_loss, popularity_odds
from mambakit.domains.recommendation.model import Catalogue, Recommender
from mambakit.domains.recommendation.recommending import Shown, on_catalogue, recommend
from mambakit.domains.recommendation.task import ranks_of
from mambakit.domains.recommendation.tokenizer import EventTokenizer, gap_bins
from mambakit.domains.recommendation.training import fit_repeat_shift, train_recommender

TINY = ModelConfig(
    d_model=16, n_layers=1, d_state=8, head_dim=8, dropout=0.0, embedding_dropout=0.0, time="both"
)


def shop(n_users: int = 40, n_items: int = 12, longest: int = 30, seed: int = 0) -> Interactions:
    """Users who mostly go from an item to the next one in a circle."""
    rng = np.random.default_rng(seed)
    user, item, time = [], [], []
    for u in range(n_users):
        x, now = int(rng.integers(n_items)), 1e9
        for _ in range(int(rng.integers(3, longest))):
            x = (x + 1) % n_items if rng.random() < 0.8 else int(rng.integers(n_items))
            now += float(rng.choice([0, 30, 4000, 9e5]))
            user.append(u)
            item.append(x)
            time.append(now)
    names = np.array([f"i{i}" for i in range(n_items)])
    features = pd.DataFrame(
        {"kind": [f"k{i % 3}" for i in range(n_items)], "price": np.arange(n_items) * 1.5}
    )
    return Interactions(
        np.array([f"u{u}" for u in range(n_users)]),
        names,
        np.array(user),
        np.array(item),
        np.array(time),
        features,
    )


def last_two(interactions: Interactions) -> Split:
    ends = interactions.offsets[1:]
    return Split(ends - 2, ends - 2, ends - 1)


def fresh(interactions: Interactions, config: ModelConfig = TINY) -> Recommender:
    torch.manual_seed(0)
    tokenizer = EventTokenizer.of(interactions, interactions.offsets[1:])
    model = Recommender(
        RecommenderConfig(interactions.n_items, len(tokenizer.item_words), 0, tokenizer.gap_unit, config)
    )
    model.tokenizer = tokenizer
    words = tokenizer.item_words.encode(interactions.item_features, interactions.n_items)
    model.item_words = torch.from_numpy(words)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() == 2 else None
    return model.eval()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 24), st.integers(0, 5))
def test_every_training_event_is_a_target_once(max_length: int, row_length: int, seed: int) -> None:
    interactions = shop(8, seed=seed)
    split = last_two(interactions)
    tokenizer = EventTokenizer.of(interactions, split.train_end)
    histories = Histories(
        interactions, split.train_end, tokenizer, max_length=max_length, row_length=row_length
    )
    torch.manual_seed(seed)
    found: list[int] = []
    bins = gap_bins(np.array([-1.0]))
    for batch in histories.loader(3):
        for values, target in zip(
            batch.tokens.split(batch.tokens.values), batch.tokens.split(batch.target), strict=True
        ):
            assert len(target) <= max_length
            assert torch.equal(values[1:, 0], target[:-1])  # what is foretold is read next
            found += target.tolist()
            if values[0, 0] == tokenizer.start and len(values) > 1:
                assert values[1, 1] == bins[0]
        assert (batch.target != NO_TARGET).sum() == batch.tokens.lengths.sum()
    trained = np.arange(len(interactions)) < np.repeat(split.train_end, np.diff(interactions.offsets))
    assert sorted(found) == sorted(interactions.item[trained].tolist())


def test_packing_changes_no_number() -> None:
    interactions = shop(6)
    model = fresh(interactions)
    histories = Histories(
        interactions, interactions.offsets[1:], model.tokenizer, max_length=50, row_length=64
    )
    pieces = histories.draw()
    catalogue = model.catalogue()
    together = histories.__getitems__(list(pieces))
    assert together.tokens.batch_size < len(pieces)
    hidden = together.tokens.split(model(together.tokens, catalogue)[0])
    for piece, found in zip(pieces, hidden, strict=True):
        alone = histories.__getitems__([piece])
        expected = model(alone.tokens, catalogue)[0][0, : len(found)]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("time", ["none", "gaps", "dt", "both"])
def test_a_live_state_says_what_the_whole_history_says(time: str) -> None:
    interactions = shop(5)
    model = fresh(interactions, dataclasses.replace(TINY, time=time))  # type: ignore[arg-type]
    model.repeat_shift.fill_(-0.7)
    live = LiveRecommender(model)
    first, last = interactions.offsets[3], interactions.offsets[4] - 1
    now, stored = None, None
    for event in range(first, last):
        name = str(interactions.items[interactions.item[event]])
        now = live.after(now, name, float(interactions.time[event]))
        past = None if stored is None else _record(stored)
        stored = live.moved(past, name, float(interactions.time[event]))
    assert now is not None
    assert stored is not None
    whole = model.scores(interactions, np.array([last]))[0]
    best = whole.topk(4)
    for user in (now, live.read(stored)):
        found = live.top(user, 4, filter_seen=False)
        assert [name for name, _ in found] == [str(interactions.items[i]) for i in best.indices]
        np.testing.assert_allclose([score for _, score in found], best.values, atol=2e-4)
    if time in ("gaps", "both"):  # times matter where they are read
        later = dataclasses.replace(interactions, time=interactions.time + np.arange(len(interactions)) * 1e5)
        assert (model.scores(later, np.array([last]))[0] - whole).abs().max() > 1e-3


def _record(state: bytes):  # type: ignore[no-untyped-def]
    from mambakit.domains.recommendation.store.records import Record

    return Record(state, 1, 0.0, ())


def test_live_users_without_times_and_with_unknown_items() -> None:
    interactions = shop(5)
    nothing = dataclasses.replace(interactions, time=np.full(len(interactions), np.nan))
    model = fresh(interactions)
    live = LiveRecommender(model)
    now = live.begin()
    for event in range(nothing.offsets[2], nothing.offsets[3] - 1):
        now = live.after(now, str(nothing.items[nothing.item[event]]))
        now = live.after(now, "of another shop")
    whole = model.scores(nothing, nothing.offsets[3:4] - 1)[0].topk(3)
    found = live.top(now, 3, filter_seen=False)
    np.testing.assert_allclose([score for _, score in found], whole.values, atol=2e-4)


def test_a_network_that_diverged_is_refused() -> None:
    interactions = shop(5)
    model = fresh(interactions)
    model.bias.data[3] = torch.nan
    with pytest.raises(UserError, match="no longer numbers"):
        ranks_of(model, interactions, last_two(interactions).validation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ["attention", "mlp"]}, "time: both drives dt"),
        ({"blocks": ["attention"], "d_model": 48, "time": "none", "head_dim": 7}, ""),
        ({"blocks": ["no such block"]}, "model: kind: no block"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, object], message: str) -> None:
    if message:
        with pytest.raises(UsageError, match=message):
            fresh(shop(5), dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]
    else:
        fresh(shop(5), dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]


def test_an_event_before_the_last_is_refused() -> None:
    live = LiveRecommender(fresh(shop(5)))
    with pytest.raises(UsageError, match="expected the seconds of the event of item 'i1', or NaN, got inf"):
        live.after(None, "i1", np.inf)
    with pytest.raises(DataError, match="send events in the order of time"):
        live.after(live.after(None, "i1", 100.0), "i2", 99.0)


def test_a_store_never_marks_the_event_of_an_unknown_item() -> None:
    with pytest.raises(DataError, match="item: 'of another shop' is not in the catalogue of 12 items"):
        LiveRecommender(fresh(shop(5))).moved(None, "of another shop", 5.0)


def test_only_features_tell_items_whose_ids_are_hidden() -> None:
    model = fresh(shop())
    hidden = torch.ones(12, dtype=torch.bool)
    vectors = model.catalogue(hidden).vectors
    words = model.item_words
    for i in range(12):
        for j in range(12):
            same = words[i].sort().values.equal(words[j].sort().values)
            assert same == torch.allclose(vectors[i], vectors[j])


def test_saved_models_score_alike(tmp_path: Path) -> None:
    interactions = shop()
    model = fresh(interactions)
    model.save_pretrained(tmp_path)
    again = Recommender.from_pretrained(tmp_path)
    events = last_two(interactions).test
    assert torch.equal(again.scores(interactions, events), model.scores(interactions, events))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("tokenizer.json", Path.unlink, "no saved tokenizer: .*tokenizer.json does not exist"),
        ("tokenizer.json", cut, "tokenizer.json is not a saved tokenizer"),
        ("model.safetensors", Path.unlink, "is no saved model: model.safetensors is missing"),
        ("model.safetensors", cut, "model.safetensors is damaged or no safetensors file"),
        ("config.json", Path.unlink, "is no saved model: config.json is missing"),
        ("config.json", cut, "config.json is not valid JSON"),
    ],
)
def test_damaged_folders_are_told(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    fresh(shop(5)).save_pretrained(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(DataError, match=message):
        Recommender.from_pretrained(tmp_path)


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    fresh(shop(5)).save_pretrained(tmp_path)
    fresh(shop(5, n_items=9)).tokenizer.save(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer.json is another model's: it has 9 items.*are for 12"):
        Recommender.from_pretrained(tmp_path)


def test_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = 0.5 * torch.randn(50, 8, generator=generator)
    catalogue = Catalogue(torch.randn(30, 8, generator=generator), torch.randn(30, generator=generator))
    target = torch.randint(30, (50,), generator=generator)
    logits = hidden @ catalogue.vectors.T + catalogue.bias
    full = F.cross_entropy(logits, target)
    torch.testing.assert_close(next_item_loss(hidden, target, catalogue, LossConfig()), full)
    odds = popularity_odds(torch.arange(30).repeat_interleave(torch.arange(30)), 30, 0.5)
    many = LossConfig(loss="sampled-softmax", n_negatives=200_000)
    torch.manual_seed(0)
    sampled = next_item_loss(hidden, target, catalogue, many, odds)
    # the right one stands in for its own share of those drawn
    torch.testing.assert_close(sampled, full, atol=0.03, rtol=0.0)
    torch.manual_seed(1)
    drawn = torch.multinomial(torch.full((30,), 1 / 30), 7, replacement=True)
    wrong, right = logits[:, drawn], logits.gather(1, target[:, None])[:, 0]
    against = torch.where(drawn == target[:, None], 0.0, -torch.log1p(-wrong.sigmoid()))
    for loss, t in (("bce", 0.0), ("gbce", 0.75)):
        alpha = 7 / 29
        beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
        torch.manual_seed(1)
        found = next_item_loss(hidden, target, catalogue, LossConfig(loss=loss, n_negatives=7))  # type: ignore[arg-type]
        expected = (-beta * right.sigmoid().log() + against.sum(1)).mean()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["sampled-softmax", "gbce", "bce"])
def test_sampled_losses_are_the_same_beside_cold_items(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, vectors = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    target = torch.randint(20, (50,), generator=generator)
    bias = torch.zeros(30).index_fill(0, torch.arange(20, 30), -torch.inf)
    config = LossConfig(loss=loss, n_negatives=100_000)  # type: ignore[arg-type]
    odds = popularity_odds(torch.arange(20).repeat(3), 30, 0.5)
    assert not odds[20:].any()
    torch.testing.assert_close(odds[:20], torch.full((20,), 1 / 20))
    found = []
    for n, own in ((20, None), (30, None), (30, odds)):
        torch.manual_seed(0)
        found.append(next_item_loss(hidden, target, Catalogue(vectors[:n], bias[:n]), config, own))
    torch.testing.assert_close(found[1], found[0], rtol=0.01, atol=0.0)
    torch.testing.assert_close(found[2], found[1])


@pytest.mark.parametrize("repeats", [True, False])
def test_repeat_shift_follows_how_often_users_repeat(repeats: bool) -> None:
    n_items, rows = 20, []
    for u in range(60):
        own = np.random.default_rng(u).permutation(n_items)[:8]
        rows.append(np.tile(own[:4], 2) if repeats else own)
    item = np.concatenate(rows)
    user = np.repeat(np.arange(60), 8)
    interactions = Interactions(
        np.arange(60).astype(str), np.arange(n_items).astype(str), user, item, np.full(len(item), np.nan)
    )
    model = fresh(interactions)
    events = interactions.offsets[1:] - 1
    fit_repeat_shift(model, interactions, events)
    share = model.scores(interactions, events).softmax(1)
    seen = torch.zeros_like(share, dtype=torch.bool)
    for row, u in enumerate(range(60)):
        seen[row, item[8 * u : 8 * u + 7]] = True
    # what is expected is what was observed, but for half an event
    expected = (share * seen).sum()
    assert expected == pytest.approx((60 if repeats else 0) * 60 / 61 + 0.5 * 60 / 61, abs=0.05)


def test_recommends_what_may_be_shown() -> None:
    interactions = shop()
    model = fresh(interactions)
    model.popularity += torch.arange(12)
    table = recommend(model, interactions, 3)
    assert (table.groupby("user")["rank"].max() <= 3).all()
    merged = table.merge(
        pd.DataFrame(
            {"user": interactions.users[interactions.user], "item": interactions.items[interactions.item]}
        )
    )
    assert merged.empty  # nobody is shown what they have had
    only = recommend(model, interactions, 2, users=["u3"], shown=Shown(False, ["i1", "i2", "i3"], ["i2"]))
    assert set(only["item"]) == {"i1", "i3"}
    popular = recommend(model, interactions, 2, shown=Shown(False, min_popularity=10))
    assert set(popular["item"]) == {"i10", "i11"}
    for wrong, message in (
        ({"k": 13}, "k: expected 1 to 12"),
        ({"shown": Shown(allow=["nothing"])}, "allow: item 'nothing' is not in the catalogue"),
        ({"shown": Shown(min_popularity=99)}, "the catalogue is empty"),
        ({"users": ["nobody"]}, "users: 'nobody' has no events"),
    ):
        with pytest.raises(UsageError, match=message):
            recommend(model, interactions, **{"k": 2, **wrong})  # type: ignore[arg-type]


def test_other_tables_are_put_on_the_catalogue() -> None:
    model = fresh(shop())
    other = Interactions(
        np.array(["new"]), np.array(["i5", "strange"]), np.zeros(3, int), np.array([0, 1, 0]), np.arange(3.0)
    )
    known, left_out = on_catalogue(model, other)
    assert left_out == 1
    assert known.items[known.item].tolist() == ["i5", "i5"]
    assert len(recommend(model, known, 4)) == 4


def test_learns_the_circle(tmp_path: Path) -> None:
    interactions = shop(120)
    split = last_two(interactions)
    model, result = train_recommender(
        interactions,
        split,
        RunFolder(tmp_path / "run"),
        model_config=dataclasses.replace(TINY, d_model=32),
        loss_config=LossConfig(max_length=20, row_length=64),
        train_config=dataclasses.replace(
            PRESET_TRAIN, max_epochs=8, lr=1e-2, batch_size=32, ema_decay=0.9, device="cpu"
        ),
    )
    right = interactions.item[split.test]
    before = interactions.item[split.test - 1]
    on_the_circle = right == (before + 1) % 12
    found = model.scores(interactions, split.test).argmax(1).numpy()
    assert (found == (before + 1) % 12).mean() > 0.9
    assert (found == right).mean() > 0.9 * on_the_circle.mean()
    assert result.best_score > 0.7
    learned = np.arange(len(interactions)) < np.repeat(split.train_end, np.diff(interactions.offsets))
    assert model.popularity.tolist() == np.bincount(interactions.item[learned], minlength=12).tolist()
