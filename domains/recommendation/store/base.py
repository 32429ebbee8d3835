"""A map from users to the state that a model is in after all their events, moved by one event at a time.

with open_store("state.db", fingerprint(model)) as store:
    outcome = store.update("42", event_id, lambda past: moved(past.state if past else None))

What every kind of store promises:

* An event counts once, however often it comes, from whichever process, and after a restart: the ids of all
  events of a user are kept (16 bytes of each, and an index), with no limit of age. ``delete`` forgets them.
* A user's record and the event's id are written together or not at all. A process that is killed leaves the
  old ones or the new ones.
* Any number of threads and processes write at the same time. None holds a lock while the model computes: an
  update reads, computes, and writes if what it read is still there; if not, it begins again. So the
  function is called again now and then, and must do nothing but compute.
* A store belongs to one model. Opening it with another is an error, and so is going on with it after someone
  has begun it anew for another.
"""

from __future__ import annotations

import math
import random
import time as clock
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple, Self

from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.domains.recommendation.store.records import DIGEST, Record, event_key, pack, unpack

RECENT = 16
"""Ids of events that a record names."""
FORMAT = 1
"""Of what is stored, whichever the kind; another one is an error."""
_LONGEST_NAME = 1024
_PATIENCE_S = 60.0


class Outcome(NamedTuple):
    """What came of an event."""

    record: Record
    """The user's record now."""
    applied: bool
    """False if the event had been applied before, so that nothing changed."""


class Found(NamedTuple):
    """What a store holds of one user at one moment."""

    fingerprint: str | None
    """Of the model that the store belongs to."""
    packed: bytes | None
    seen: bool
    """Whether the event that was asked about has been applied."""


class Swap(Enum):
    """How it went to write a record in place of one read before."""

    DONE = "done"
    SEEN = "the event had been applied"
    LOST = "another writer was quicker"


class Store(ABC):
    """States of users under one model; see the module for what is promised.

    Args:
        name: What messages call the store.
        fingerprint: Of the model, from ``mambakit.core.fingerprint``.
    """

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name = name
        self.fingerprint = fingerprint

    def update(
        self, user: str, event_id: str, function: Callable[[Record | None], bytes], *, time: float = math.nan
    ) -> Outcome:
        """Move a user's state by one event, unless the event has been applied before.

        Args:
            user: Any name, at most 1,024 bytes of UTF-8.
            event_id: What tells the event from all others of the user, as long.
            function: From the user's record, None for a new user, to the state after the event. What it
                raises goes on to the caller, and nothing has changed.
            time: Seconds of the event; the record has the latest that came.

        Raises:
            UsageError: On an empty or overlong name, or a time that is infinite.
            DataError: If the store is damaged, or belongs to another model.
            UserError: If the store can't be reached or written, or others write this user all the time.
        """
        _check_name("user", user)
        _check_name("event", event_id)
        _check_time(user, time)
        key = event_key(event_id)
        begun, waits = clock.monotonic(), 0.001
        while True:
            past, version, seen = self._look(user, key)
            if seen:
                return self._replayed(user, past)
            record = _following(past, _checked(function(past)), event_id, time)
            swap = self._swap(user, key, version, pack(user, record))
            if swap is Swap.DONE:
                return Outcome(record, True)
            if swap is Swap.SEEN:
                return self._replayed(user, self.get(user))
            if clock.monotonic() - begun > _PATIENCE_S:
                raise UserError(
                    f"{self.name}: others wrote user {user!r} all the time for {_PATIENCE_S:.0f} s; send the "
                    "events of one user through one process"
                )
            clock.sleep(random.uniform(0, waits))
            waits = min(2 * waits, 0.05)

    def get(self, user: str) -> Record | None:
        """What is kept of a user; None for one who isn't there.

        Raises:
            DataError, UserError: As ``update``.
        """
        _check_name("user", user)
        return self._look(user, None)[0]

    def put(self, user: str, state: bytes, event_ids: Iterable[str], *, time: float = math.nan) -> Record:
        """Begin a user from a whole history, in place of anything that was there.

        This is how a store is filled for a new model, and how a damaged record is mended.

        Args:
            user: Any name, as in ``update``.
            state: The model's state after the history.
            event_ids: The ids of all its events in their order; they will not be applied again.
            time: Seconds of the last of them.

        Raises:
            UsageError, DataError, UserError: As ``update``; an id that comes twice is a UsageError.
        """
        _check_name("user", user)
        _check_time(user, time)
        ids = list(event_ids)
        for one in ids:
            _check_name("event", one)
        if len(set(ids)) < len(ids):
            twice = next(one for i, one in enumerate(ids) if one in ids[:i])
            raise UsageError(f"user {user!r}: event {twice!r} comes twice in the history; name it once")
        record = Record(_checked(state), len(ids), time, tuple(ids[-RECENT:]))
        self._replace(user, [event_key(one) for one in ids], pack(user, record))
        return record

    def _look(self, user: str, key: bytes | None) -> tuple[Record | None, bytes, bool]:
        """The record, its version (no bytes for a user who isn't there), and whether an event was applied."""
        found = self._find(user, key)
        self._check_model(found.fingerprint)
        if found.packed is None:
            if found.seen:
                raise self._damaged(user, "it is gone, but not its events")
            return None, b"", False
        try:
            return unpack(user, found.packed), found.packed[:DIGEST], found.seen
        except ValueError as error:
            raise self._damaged(user, str(error)) from error

    def _replayed(self, user: str, record: Record | None) -> Outcome:
        if record is None:  # deleted this moment
            raise UserError(f"{self.name}: user {user!r} was deleted during the update; send the event again")
        return Outcome(record, False)

    def _damaged(self, user: str, how: str) -> DataError:
        return DataError(
            f"{self.name}: the state of user {user!r} can't be read ({how}); delete the user, or put the "
            "user's history in again"
        )

    def _check_model(self, fingerprint: str | None) -> None:
        """Raises DataError unless the store belongs to our model."""
        if fingerprint is None:
            raise DataError(f"{self.name} does not say which model it belongs to; begin it anew (anew=True)")
        if fingerprint != self.fingerprint:
            raise DataError(
                f"{self.name} holds states of another model ({fingerprint[:8]}, this one is "
                f"{self.fingerprint[:8]}), which mean nothing to this one; name another store, or begin this "
                "one anew (anew=True) and rebuild it from the users' histories"
            )

    def _check_format(self, found: object) -> None:
        """Raises DataError unless what is stored has our format."""
        if found != FORMAT:
            raise DataError(
                f"{self.name} has format {found!s}, this version of mambakit reads {FORMAT}; use the version "
                "that wrote it, or begin it anew (anew=True) and rebuild it from the users' histories"
            )

    @abstractmethod
    def delete(self, user: str) -> bool:
        """Forget a user, with the ids of all events; whether there was one."""

    @abstractmethod
    def __len__(self) -> int:
        """Users in the store."""

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Users, each once, in any order; one added or deleted meanwhile may be among them or not."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; the store can't be used any more."""

    @abstractmethod
    def _find(self, user: str, key: bytes | None) -> Found:
        """What is there of a user, and of an event, at one moment."""

    @abstractmethod
    def _swap(self, user: str, key: bytes, version: bytes, packed: bytes) -> Swap:
        """In one step: write record and event, if the event is new and the record has this version.

        Raises DataError if the store has come to belong to another model.
        """

    @abstractmethod
    def _replace(self, user: str, keys: list[bytes], packed: bytes) -> None:
        """In one step: write a record and events in place of the user's; DataError as in ``_swap``."""

    def __contains__(self, user: object) -> bool:
        return isinstance(user, str) and self.get(user) is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _following(past: Record | None, state: bytes, event_id: str, time: float) -> Record:
    if past is None:
        return Record(state, 1, time, (event_id,))
    times = [one for one in (past.time, time) if not math.isnan(one)]
    return Record(state, past.n_events + 1, max(times, default=math.nan), (*past.recent, event_id)[-RECENT:])


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        raise UsageError(f"{what}: expected a name (str), got {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{what}: {name!r} can't be written as UTF-8") from None
    if not 1 <= size <= _LONGEST_NAME:
        raise UsageError(f"{what}: expected 1 to {_LONGEST_NAME} bytes, got {size}")


def _check_time(user: str, time: float) -> None:
    if math.isinf(time):
        raise UsageError(f"user {user!r}: expected the event's time in seconds, or NaN, got {time}")


def _checked(state: object) -> bytes:
    if not isinstance(state, bytes):
        raise TypeError(f"state: expected bytes, got {type(state).__name__}")
    return state
