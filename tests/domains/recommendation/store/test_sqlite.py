"""SQLite files: what is damaged, foreign or in the way is one clear error."""

from __future__ import annotations

import os
import shutil
import sqlite3
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambakit.core.errors import DataError, UserError
from mambakit.domains.recommendation.store import open_store
from mambakit.domains.recommendation.store.sqlite import SqliteStore

MODEL = "a model"
USERS = [f"u{i}" for i in range(12)]


def state_of(user: str) -> bytes:
    return user.encode() * 700  # over some pages


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of some users, closed."""
    path = tmp_path_factory.mktemp("good") / "state.db"
    with open_store(path, MODEL) as store:
        for user in USERS:
            store.put(user, state_of(user), [f"event {i}" for i in range(40)])
    assert [one.name for one in path.parent.iterdir()] == ["state.db"], (
        "nothing is left beside a closed store"
    )
    return path


@pytest.fixture
def path(good: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(good, tmp_path))


def damage(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(";".join(statements))
    connection.close()


def test_the_same_file_by_its_url(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    for url in ("state.db", "sqlite:///state.db", f"sqlite:///{path}", path):
        with open_store(url, MODEL) as store:
            assert len(store) == len(USERS)
    with open_store("state.db", MODEL) as store:
        monkeypatch.chdir("/")
        assert store.get("u3") is not None, "it stays where it was when the process changes its folder"


def test_a_file_of_an_odd_name(tmp_path: Path) -> None:
    for _ in range(2):
        with open_store(tmp_path / "ä b#c?d=%20.db", MODEL) as store:
            store.update("42", "a", lambda past: b"state")
            assert len(store) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["ä b#c?d=%20.db"]


@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_a_file_cut_short(path: Path, share: float) -> None:
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(DataError, match=r"state.db is damaged or no store.*anew=True"):
        open_store(path, MODEL)


def test_an_empty_file_is_no_new_store(path: Path) -> None:
    os.truncate(path, 0)
    with pytest.raises(DataError, match=r"state.db is empty, so what it held is lost"):
        open_store(path, MODEL)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    text = tmp_path / "clicks.csv"
    text.write_text("user,item\n" * 1000)
    with pytest.raises(DataError, match=r"clicks.csv is damaged or no store of states"):
        open_store(text, MODEL)
    other = tmp_path / "other.db"
    damage(other, "CREATE TABLE users (name)")
    with pytest.raises(DataError, match=r"other.db is a database of something else"):
        open_store(other, MODEL)


def test_another_format(path: Path) -> None:
    damage(path, "PRAGMA user_version = 7")
    with pytest.raises(DataError, match=r"has format 7, this version of mambakit reads 1; .*anew=True"):
        open_store(path, MODEL)


@pytest.mark.parametrize(
    "statement",
    ["DROP TABLE events", "DROP TABLE users", "DROP TABLE meta", "ALTER TABLE users RENAME record TO x"],
)
def test_a_table_is_missing(path: Path, statement: str) -> None:
    damage(path, statement)
    with pytest.raises(DataError, match=r"is damaged or no store of states"):
        open_store(path, MODEL)


def test_a_model_is_not_named(path: Path) -> None:
    damage(path, "DELETE FROM meta")
    with pytest.raises(DataError, match=r"does not say which model"):
        open_store(path, MODEL)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ("x'00'", "cut short"),
        ("substr(record, 1, 500)", "checksum"),
        ("CAST(record || x'00' AS BLOB)", "checksum"),
        ("(SELECT record FROM users WHERE user = 'u4')", "checksum"),
        ("'text'", "cut short"),
        ("7", "cut short"),
    ],
)
def test_a_record_that_cant_be_read(path: Path, record: str, why: str) -> None:
    damage(path, f"UPDATE users SET record = {record} WHERE user = 'u3'")
    with open_store(path, MODEL) as store:
        message = f"state.db: the state of user 'u3' can't be read .*{why}.*; delete the user, or put"
        with pytest.raises(DataError, match=message):
            store.get("u3")
        with pytest.raises(DataError, match=message):
            store.update("u3", "new", pytest.fail)
        assert store.get("u5") is not None, "the others are as they were"
        store.put("u3", b"mended", ["event 0"])
        assert not store.update("u3", "event 0", pytest.fail).applied


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_never_gives_a_wrong_state(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    """A file with bytes overwritten or cut off: every state read is right, or there is a DataError."""
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=64))
        content[at : at + len(junk)] = junk
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content))) :]
    path = tmp_path / f"{uuid.uuid4().hex}.db"
    path.write_bytes(content)
    try:
        store = open_store(path, MODEL)
    except DataError:
        return
    with store:
        for user in USERS:
            try:
                record = store.get(user)
                assert record is None or record.state == state_of(user)
                store.update(user, "new", lambda past: past.state if past else b"")
            except DataError:
                pass
            # an index that leads astray may hide a user, who then begins anew


def test_beginning_anew_moves_a_damaged_file_aside(path: Path) -> None:
    os.truncate(path, 5000)
    before = path.read_bytes()
    with open_store(path, MODEL, anew=True) as store:
        assert len(store) == 0
        store.update("42", "a", lambda past: b"state")
    assert path.with_name("state.db.damaged").read_bytes() == before
    with open_store(path, MODEL) as store:
        assert list(store) == ["42"]


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't keep states in .*: it is a folder"):
        open_store(tmp_path, MODEL)
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        open_store(tmp_path / "nowhere" / "state.db", MODEL)


def test_a_locked_file_is_said_to_be(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mambakit.domains.recommendation.store.sqlite._BUSY_S", 0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with SqliteStore(path, MODEL) as store:
        assert store.get("u3") is not None, "reading waits for nobody"
        with pytest.raises(UserError, match=r"state.db is locked by another process"):
            store.update("u3", "new", lambda past: b"state")
        holder.execute("ROLLBACK")
        assert store.update("u3", "new", lambda past: b"state").applied
    holder.close()


def test_a_closed_store_says_so(path: Path) -> None:
    store = open_store(path, MODEL)
    store.close()
    store.close()
    with pytest.raises(ValueError, match=r"state.db is closed"):
        store.get("u3")
