"""Which kind of store a URL means."""

from __future__ import annotations

from pathlib import Path

from mambakit.core.errors import UsageError
from mambakit.domains.recommendation.store.base import Store
from mambakit.domains.recommendation.store.redis import RedisStore
from mambakit.domains.recommendation.store.sqlite import SqliteStore

_SQLITE = "sqlite:///"
_REDIS = ("redis://", "rediss://", "unix://")


def open_store(url: str | Path, fingerprint: str, *, anew: bool = False, durable: bool = True) -> Store:
    """A store of users' states, made if there is none.

    Args:
        url: A file or ``sqlite:///file`` for SQLite, where four slashes begin an absolute path;
            ``redis://host:port/0`` for Redis.
        fingerprint: Of the model that the states belong to, from ``mambakit.core.fingerprint``.
        anew: Begin with no users, also where the store belonged to another model or is damaged.
        durable: Whether an update that has returned outlives a power cut; SQLite only, as a Redis server has
            its own settings for it. Without, SQLite is some times faster, and a killed process still loses
            nothing.

    Raises:
        UsageError: On a URL of another kind.
        DataError, UserError: As ``SqliteStore`` and ``RedisStore``.
    """
    text = str(url)
    if text.startswith(_REDIS):
        return RedisStore(text, fingerprint, anew=anew)
    path = text.removeprefix(_SQLITE)
    if not path or "://" in path:
        raise UsageError(f"store: expected a file, sqlite:///file or redis://host:port/0, got {text!r}")
    return SqliteStore(path, fingerprint, anew=anew, durable=durable)
