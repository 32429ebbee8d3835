"""What can go wrong with a Redis server, said clearly."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.domains.recommendation.store import open_store

MODEL = "a model"


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """A client of a server with one user's store."""
    import redis

    with redis.Redis.from_url(redis_url) as one:
        one.flushdb()
        with open_store(redis_url, MODEL) as store:
            store.update("42", "a", lambda past: b"state")
        yield one


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UserError, match=r"needs the package redis: pip install 'mambakit\[redis\]'"):
        open_store("redis://127.0.0.1:1/0", MODEL)


def test_no_server_answers_and_the_password_stays_secret() -> None:
    pytest.importorskip("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(UserError, match=f"can't reach redis://127.0.0.1:{port}/0 .*redis-server") as caught:
        open_store(f"redis://me:secret@127.0.0.1:{port}/0", MODEL)
    assert "secret" not in str(caught.value)


def test_a_bad_url() -> None:
    pytest.importorskip("redis")
    with pytest.raises(UsageError, match="is no URL of a Redis server"):
        open_store("redis://127.0.0.1:port/0", MODEL)


def test_a_record_that_cant_be_read(client: Any, redis_url: str) -> None:
    record = client.hget("mambakit:user:42", "record")
    with open_store(redis_url, MODEL) as store:
        for bad in (b"", record[:20], record[:-1], record[:-1] + b"x"):
            client.hset("mambakit:user:42", "record", bad)
            with pytest.raises(DataError, match="the state of user '42' can't be read"):
                store.update("42", "b", pytest.fail)
        client.hset("mambakit:user:42", "record", record)
        assert store.update("42", "b", lambda past: b"next").record.n_events == 2


def test_a_user_that_the_server_dropped_is_no_new_user(client: Any, redis_url: str) -> None:
    client.delete("mambakit:user:42")
    with open_store(redis_url, MODEL) as store:
        with pytest.raises(DataError, match=r"user '42' .*maxmemory-policy to noeviction"):
            store.update("42", "b", pytest.fail)
        assert store.delete("42")
        assert store.update("42", "b", lambda past: b"state").applied


def test_a_store_without_its_model_or_of_another_format(client: Any, redis_url: str) -> None:
    client.hset("mambakit:meta", "format", 7)
    with pytest.raises(DataError, match="has format 7, this version of mambakit reads 1"):
        open_store(redis_url, MODEL)
    client.delete("mambakit:meta")
    with pytest.raises(DataError, match="does not say which model"):
        open_store(redis_url, MODEL)
    with open_store(redis_url, MODEL, anew=True) as store:
        assert len(store) == 0


def test_other_things_under_our_names(client: Any, redis_url: str) -> None:
    client.set("mambakit:user:42", "text")
    with open_store(redis_url, MODEL) as store, pytest.raises(DataError, match="other things under mambakit"):
        store.get("42")


def test_a_full_server_keeps_what_it_had(client: Any, redis_url: str) -> None:
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1mb")
    try:
        with open_store(redis_url, MODEL) as store:
            with pytest.raises(UserError, match=r"refuses to keep states: .*maxmemory"):
                store.update("42", "b", lambda past: bytes(10_000_000))
            record = store.get("42")
            assert record is not None
            assert (record.state, record.n_events) == (b"state", 1)
    finally:
        client.config_set("maxmemory", "0")
    with open_store(redis_url, MODEL) as store:
        assert store.update("42", "b", lambda past: b"next").applied
