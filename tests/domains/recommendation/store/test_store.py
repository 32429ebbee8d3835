"""What every kind of store promises, one process at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.store import Record, Store, open_store
from mambakit.domains.recommendation.store.base import RECENT, Moved, Pending

MODEL = "a model"


def appended(event: str) -> Callable[[Record | None], bytes]:
    """A state that is the list of all events in the order in which they were applied."""
    return lambda past: (past.state if past else b"") + event.encode() + b"\n"


def test_a_user_moves_event_by_event(store: Store) -> None:
    assert store.get("42") is None
    assert "42" not in store
    first = store.update("42", "a", appended("a"), time=100.0)
    assert first == (Record(b"a\n", 1, 100.0, ("a",)), True)
    store.update("7", "a", appended("a"))
    second = store.update("42", "b", appended("b"), time=90.0)
    assert second.record == Record(b"a\nb\n", 2, 100.0, ("a", "b")), "a late event leaves the latest time"
    assert store.get("42") == second.record
    other = store.get("7")
    assert other is not None
    assert (other.state, other.n_events, math.isnan(other.time)) == (b"a\n", 1, True)
    assert len(store) == 2
    assert sorted(store) == ["42", "7"]


def test_an_event_counts_once_however_old_and_across_restarts(url: str) -> None:
    events = [f"event {i}" for i in range(3 * RECENT)]
    with open_store(url, MODEL) as store:
        for event in events:
            assert store.update("42", event, appended(event), time=1.0).applied
    with open_store(url, MODEL) as store:
        before = store.get("42")
        assert before is not None
        assert before.recent == tuple(events[-RECENT:])
        for event in events:
            assert store.update("42", event, pytest.fail) == (before, False)
        assert store.update("43", events[0], appended("x")).applied, "another user's event is another one"
        assert store.get("42") == before


def test_what_the_function_raises_changes_nothing(store: Store) -> None:
    def failing(past: Record | None) -> bytes:
        raise DataError("item '9' is unknown")

    store.update("42", "a", appended("a"), time=1.0)
    for user in ("42", "43"):
        before = store.get(user)
        with pytest.raises(DataError, match="item '9'"):
            store.update(user, "b", failing)
        with pytest.raises(TypeError, match="expected bytes, got str"):
            store.update(user, "b", lambda past: "state")  # type: ignore[arg-type, return-value]
        assert store.get(user) == before
        assert store.update(user, "b", appended("b")).applied, "the event may come again"


def test_an_update_that_another_overtakes_begins_again(store: Store) -> None:
    seen = []

    def overtaken(past: Record | None) -> bytes:
        seen.append(past)
        if len(seen) == 1:
            store.update("42", "quick", appended("quick"), time=1.0)
        if len(seen) == 2:
            store.delete("42")
        if len(seen) == 3:
            store.put("42", b"whole\n", ["x", "y"], time=2.0)
        return appended("slow")(past)

    record, applied = store.update("42", "slow", overtaken)
    assert applied
    assert [past and past.state for past in seen] == [None, b"quick\n", None, b"whole\n"]
    assert record == store.get("42")
    assert (record.state, record.n_events, record.recent) == (b"whole\nslow\n", 3, ("x", "y", "slow"))


def test_an_event_that_comes_twice_at_once_counts_once(store: Store) -> None:
    def overtaken(past: Record | None) -> bytes:
        assert store.update("42", "same", appended("first"), time=1.0).applied
        return appended("second")(past)

    record, applied = store.update("42", "same", overtaken)
    assert not applied
    assert record == store.get("42")
    assert (record.state, record.n_events) == (b"first\n", 1)


def test_a_user_is_forgotten_with_the_events(store: Store) -> None:
    store.update("42", "a", appended("a"))
    store.update("7", "a", appended("a"))
    assert store.delete("42")
    assert not store.delete("42")
    assert store.get("42") is None
    assert list(store) == ["7"]
    assert store.update("42", "a", appended("a")).record.n_events == 1
    assert not store.update("7", "a", pytest.fail).applied


def test_a_whole_history_takes_the_place_of_what_was_there(store: Store) -> None:
    store.update("42", "old", appended("old"))
    history = [f"event {i}" for i in range(2000)]
    record = store.put("42", b"state", history, time=5.0)
    assert record == store.get("42") == Record(b"state", 2000, 5.0, tuple(history[-RECENT:]))
    assert not store.update("42", history[0], pytest.fail).applied
    assert store.update("42", "old", appended("old"), time=6.0).record.n_events == 2001
    with pytest.raises(UsageError, match="user '42': event 'b' comes twice"):
        store.put("42", b"", ["a", "b", "c", "b"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_is_a_map_with_a_set_of_events(url: str, data: st.DataObject) -> None:
    """Any sequence of operations, with a restart anywhere, leaves what plain dicts would hold."""
    names = st.text(min_size=1, max_size=5)
    users = data.draw(st.lists(names, min_size=1, max_size=3, unique=True))
    events = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
    expected: dict[str, list[str]] = {}
    store = open_store(url, MODEL, anew=True, durable=False)
    for what in data.draw(
        st.lists(st.sampled_from(["update"] * 6 + ["delete", "put", "reopen"]), max_size=15)
    ):
        user, event = data.draw(st.sampled_from(users)), data.draw(st.sampled_from(events))
        known = expected.get(user, [])
        if what == "update":
            assert store.update(user, event, appended(event)).applied == (event not in known)
            expected[user] = known if event in known else [*known, event]
        elif what == "delete":
            assert store.delete(user) == (expected.pop(user, None) is not None)
        elif what == "put":
            expected[user] = events[: data.draw(st.integers(0, len(events)))]
            store.put(user, "".join(f"{one}\n" for one in expected[user]).encode(), expected[user])
        else:
            store.close()
            store = open_store(url, MODEL, durable=False)
    with store:
        assert len(store) == len(expected)
        assert sorted(store) == sorted(expected)
        for user in users:
            record = store.get(user)
            if user not in expected:
                assert record is None
                continue
            assert record is not None
            assert record.state.decode() == "".join(f"{event}\n" for event in expected[user])
            assert (record.n_events, list(record.recent)) == (len(expected[user]), expected[user])


@pytest.mark.parametrize(
    ("user", "event", "message"),
    [
        ("", "a", "user: expected 1 to 1024 bytes, got 0"),
        ("42", "", "event: expected 1 to 1024 bytes, got 0"),
        ("42", "ä" * 513, "event: expected 1 to 1024 bytes, got 1026"),
        (42, "a", "user: expected a name .str., got int"),
        ("\ud800", "a", "user: .* can't be written as UTF-8"),
    ],
)
def test_bad_names_are_refused(store: Store, user: str, event: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.update(user, event, appended("a"))
    assert len(store) == 0


def test_an_infinite_time_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="user '42': expected the event's time in seconds, or NaN, got inf"):
        store.update("42", "a", appended("a"), time=math.inf)


def test_a_store_belongs_to_one_model(url: str) -> None:
    message = r"holds states of another model \(a model, this one is another \).*anew=True"
    with open_store(url, MODEL) as store:
        store.update("42", "a", appended("a"))
        with pytest.raises(DataError, match=message):
            open_store(url, "another one")
        with open_store(url, "another one", anew=True) as other:
            assert len(other) == 0
            assert other.update("42", "a", appended("z"), time=1.0).applied, (
                "the old model's events are forgotten"
            )
            # whoever still has it open for the old model can't write or read nonsense
            for attempt in (
                lambda: store.update("42", "b", pytest.fail),
                lambda: store.get("42"),
                lambda: store.put("42", b"", []),
                lambda: store.delete("42"),
            ):
                with pytest.raises(DataError, match="another model"):
                    attempt()
            assert other.get("42") == Record(b"z\n", 1, 1.0, ("a",))


def test_a_store_that_changes_hands_during_an_update_is_not_written(store: Store, url: str) -> None:
    def overtaken(past: Record | None) -> bytes:
        open_store(url, "another one", anew=True).close()
        return b"nonsense"

    with pytest.raises(DataError, match="another model"):
        store.update("42", "a", overtaken)
    with open_store(url, "another one") as other:
        assert len(other) == 0


@pytest.mark.parametrize(
    "bad", ["", "postgres://host/db", "sqlite://state.db", "sqlite:///", "http://x/y.db"]
)
def test_a_url_of_another_kind_is_refused(bad: str) -> None:
    with pytest.raises(
        UsageError, match="store: expected a file, sqlite:///file or redis://host:port/0, got"
    ):
        open_store(bad, MODEL)


def test_many_users_move_at_once_each_wholly_or_not(store: Store) -> None:
    store.update("b", "1", appended("1"), time=5.0)
    calls: list[dict[str, Pending]] = []

    def move(pending: Mapping[str, Pending]) -> dict[str, Moved]:
        calls.append(dict(pending))
        if len(calls) == 1:  # another process is quicker with one of the users
            store.update("a", "2", appended("2"), time=9.0)
        return {
            user: Moved((past.state if past else b"") + "".join(f"{one}\n" for one in ids).encode(), ids, 7.0)
            for user, (past, ids) in pending.items()
            if ids
        }

    events = {"a": ["1", "2", "3", "1"], "b": ["1", "2"], "c": []}
    records = store.update_many(events, move)
    assert [list(one) for one in calls] == [["a", "b", "c"], ["a"]]
    assert calls[0]["a"] == (None, ("1", "2", "3"))
    assert calls[1]["a"].event_ids == ("1", "3")
    assert records == {
        "a": Record(b"2\n1\n3\n", 3, 9.0, ("2", "1", "3")),
        "b": Record(b"1\n2\n", 2, 7.0, ("1", "2")),
        "c": None,
    }
    assert {user: store.get(user) for user in events} == records
    assert store.update_many(events, lambda pending: {}) == records, "all had been applied"
    with pytest.raises(UsageError, match="event: expected 1 to"):
        store.update_many({"a": ["4"], "b": [""]}, move)
    assert store.get("a") == records["a"]
