"""Tables of events in bulk: they leave what the whole history says; bad rows; a run that is killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambakit.domains.recommendation import updating
from mambakit.domains.recommendation.config import ModelConfig, RecommenderConfig
from mambakit.domains.recommendation.incoming import read_incoming
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.live import LiveRecommender
from mambakit.domains.recommendation.model import Recommender
from mambakit.domains.recommendation.store import Store, open_store
from mambakit.domains.recommendation.tokenizer import EventTokenizer
from mambakit.domains.recommendation.updating import update_all

N_ITEMS = 9
TINY = ModelConfig(d_model=16, n_layers=1, d_state=8, head_dim=8, time="both")


def shop(n_users: int = 7, seed: int = 0) -> Interactions:
    """Users of whom something is known, and their events."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n_users)
    user = np.repeat(np.arange(n_users), lengths)
    gaps = rng.choice([0.0, 30.0, 4000.0, 9e5], len(user))
    return Interactions(
        users=np.array([f"u{i}" for i in range(n_users)]),
        items=np.array([f"i{i}" for i in range(N_ITEMS)]),
        user=user,
        item=rng.integers(N_ITEMS, size=len(user)),
        time=1e9 + gaps.cumsum(),
        user_features=pd.DataFrame(
            {"plan": [f"p{i % 2}" for i in range(n_users)], "age": 20.0 + np.arange(n_users) % 3}
        ),
    )


def table(interactions: Interactions) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user": interactions.users[interactions.user],
            "item": interactions.items[interactions.item],
            "timestamp": interactions.time,
        }
    )


@pytest.fixture(scope="module")
def model() -> Recommender:
    interactions = shop(20)
    torch.manual_seed(0)
    tokenizer = EventTokenizer.of(interactions, interactions.offsets[1:])
    words = len(tokenizer.user_words)
    model = Recommender(RecommenderConfig(N_ITEMS, 0, words, tokenizer.gap_unit, TINY))
    model.tokenizer = tokenizer
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() == 2 else None
    model.repeat_shift.fill_(-0.7)
    return model.eval()


@pytest.fixture(scope="module")
def live(model: Recommender) -> LiveRecommender:
    return LiveRecommender(model)


@pytest.fixture
def store(live: LiveRecommender, tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "state.db", live.fingerprint, durable=False) as one:
        yield one


def whole_scores(model: Recommender, interactions: Interactions) -> torch.Tensor:
    """Scores of all items after every user's whole history."""
    catalogue, users = model.catalogue(), np.arange(interactions.n_users)
    with torch.no_grad():
        hidden = model.hidden(interactions, users, interactions.offsets[1:], catalogue)
        seen = (interactions.user, interactions.item)
        return model.score(hidden, catalogue, seen)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), n_tables=st.integers(1, 4), at_once=st.integers(1, 5), columns=st.booleans())
def test_bulk_updates_say_what_the_whole_history_says(
    model: Recommender,
    live: LiveRecommender,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    n_tables: int,
    at_once: int,
    columns: bool,
) -> None:
    interactions = shop(seed=seed)
    rng = np.random.default_rng(seed)
    events = table(interactions).assign(event_id=[f"e{i}" for i in range(len(interactions))])
    features = interactions.user_features
    assert features is not None
    if columns:
        events = events.join(features.loc[interactions.user].reset_index(drop=True))
    with (
        pytest.MonkeyPatch.context() as patch,
        open_store(tmp_path_factory.mktemp("store") / "s.db", live.fingerprint, durable=False) as store,
    ):
        patch.setattr(updating, "_USERS_AT_ONCE", at_once)
        for part in np.array_split(np.arange(len(events)), n_tables):
            parts = events.iloc[np.sort(part)]
            # any order of rows, as long as events of one moment keep theirs
            mixed = parts.assign(by=rng.random(len(parts))).sort_values("by").drop(columns="by")
            mixed = mixed.sort_values("event_id", key=lambda one: one.str[1:].astype(int), kind="stable")
            mixed = pd.concat([one for _, one in sorted(mixed.groupby("user"), key=lambda _: rng.random())])
            incoming = read_incoming(mixed, known=model.tokenizer.user_words)
            known = None if columns else features.loc[[int(name[1:]) for name in incoming.users]]
            done = update_all(live, store, incoming, N_ITEMS, features=known, filter_seen=False)
            assert done.counts() == {"applied": len(part)}
        whole = whole_scores(model, interactions)
        for i, name in enumerate(interactions.users):
            record = store.get(str(name))
            assert record is not None
            assert record.n_events == interactions.offsets[i + 1] - interactions.offsets[i]
            found = dict(live.top(live.read(record.state), N_ITEMS, filter_seen=False))
            expected = whole[i]
            for item, score in found.items():
                assert score == pytest.approx(float(expected[int(item[1:])]), abs=3e-4)
        last = done.top[done.top["user"] == events["user"].iloc[-1]]
        assert last["score"].to_list() == sorted(last["score"], reverse=True)
        assert len(last) == N_ITEMS


def test_features_matter_and_are_read_once(live: LiveRecommender, store: Store) -> None:
    events = read_incoming(pd.DataFrame({"user": ["a", "b"], "item": ["i1", "i1"], "timestamp": [5.0, 5.0]}))
    features = pd.DataFrame({"plan": ["p0", "p1"], "age": [20.0, 22.0]})
    done = update_all(live, store, events, N_ITEMS, features=features, filter_seen=False)
    scores = done.top.pivot(index="item", columns="user", values="score")
    assert (scores["a"] - scores["b"]).abs().max() > 1e-3
    again = dataclasses.replace(
        events, event=np.array(["later", "later"], dtype=object), time=events.time + 1
    )
    with_features = update_all(live, store, again, N_ITEMS, features=features.iloc[::-1])
    for name in ("a", "b"):
        record = store.get(name)
        assert record is not None
        assert record.n_events == 2
    began = live.begun(features, 2)
    one = live.after(live.after(began[0], "i1", 5.0), "i1", 6.0)
    found = with_features.top[with_features.top["user"] == "a"]["score"]
    np.testing.assert_allclose(found, [score for _, score in live.top(one, N_ITEMS)], atol=1e-4)


def test_bad_rows_are_marked_and_the_rest_applied(live: LiveRecommender, store: Store) -> None:
    rows = [
        ("a", "i1", "2001-01-02", None, "applied"),
        ("a", "i2", "2001-01-01", None, "applied"),  # any order
        ("a", "i1", "2001-01-02", None, "repeated"),
        ("a", "i3", "soon", None, "bad time"),
        ("a", "i3", None, "x", "no time"),  # others of the user have one
        ("b", "what", "2001-01-01", None, "unknown item"),
        (None, "i1", "2001-01-01", None, "no user"),
        ("c", None, "2001-01-01", None, "no item"),
        ("d", "i1", None, "y", "applied"),
        ("e", "i1", None, None, "no time"),
        ("f" * 2000, "i1", "2001-01-01", None, "too long a name"),
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "time", "event_id", "status"])
    done = update_all(live, store, read_incoming(frame.drop(columns="status")), 2)
    assert done.status.tolist() == frame["status"].to_list()
    assert sorted(store) == ["a", "d"]
    assert done.top["user"].unique().tolist() == ["a", "d"]
    assert set(done.top[done.top["user"] == "a"]["item"]).isdisjoint({"i1", "i2"})
    later = pd.DataFrame(
        {
            "user": ["a", "a", "a"],
            "item": ["i4", "i5", "i1"],
            "time": ["2000-01-01", "2002-01-01", "2001-01-02"],
        }
    )
    done = update_all(live, store, read_incoming(later), 2)
    assert done.status.tolist() == ["late", "applied", "repeated"]
    record = store.get("a")
    assert record is not None
    assert record.n_events == 3
    single = store.update("a", f"i5@{pd.Timestamp('2002-01-01', tz='UTC').timestamp()}", pytest.fail)
    assert not single.applied, "a single event has the same id as a row"


def test_a_killed_run_is_simply_run_again(
    live: LiveRecommender, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interactions = shop(12, seed=3)
    events = read_incoming(table(interactions))
    with open_store(tmp_path / "other.db", live.fingerprint) as other:
        undisturbed = update_all(live, other, events, 3)
        expected = {user: other.get(user) for user in other}
    monkeypatch.setattr(updating, "_USERS_AT_ONCE", 2)
    swap, calls = type(store)._swap, []

    def killed(self: Store, changes: object) -> list[bool]:
        calls.append(changes)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return swap(self, changes)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "_swap", killed)
        with pytest.raises(KeyboardInterrupt):
            update_all(live, store, events, 3)
    assert 0 < len(store) < 12
    done = update_all(live, store, events, 3)
    assert done.counts()["applied"] + done.counts()["repeated"] == len(events)
    assert done.counts()["repeated"] > 0
    assert done.n_users == undisturbed.n_users == 12
    pd.testing.assert_frame_equal(done.top, undisturbed.top, atol=1e-4)
    for user, record in expected.items():
        found = store.get(user)
        assert record is not None
        assert found is not None
        assert (found.n_events, found.time, found.recent) == (record.n_events, record.time, record.recent)
        one, two = live.read(found.state), live.read(record.state)
        assert sorted(one.seen.tolist()) == sorted(two.seen.tolist())
        torch.testing.assert_close(one.hidden, two.hidden, atol=1e-5, rtol=1e-4)
