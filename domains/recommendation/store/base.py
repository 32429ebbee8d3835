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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

from mambakit.core.errors import DataError, UsageError, UserError
from mambakit.domains.recommendation.store.records import DIGEST, Record, event_key, pack, unpack

RECENT = 16
"""Ids of events that a record names."""
FORMAT = 1
"""Of what is stored, whichever the kind; another one is an error."""
LONGEST_NAME = 1024
"""Bytes of a user's or an event's name."""
ANEW = "anew=True, or --new-store at the command line"
"""What begins a store anew, in messages."""
_PATIENCE_S = 60.0


class Outcome(NamedTuple):
    """What came of an event."""

    record: Record
    """The user's record now."""
    applied: bool
    """False if the event had been applied before, so that nothing changed."""


class Pending(NamedTuple):
    """What a bulk update finds of a user."""

    record: Record | None
    """None for a new user."""
    event_ids: tuple[str, ...]
    """Those of the ids asked about that have not been applied, in the order given."""


class Moved(NamedTuple):
    """What a bulk update makes of a user."""

    state: bytes
    """After the events."""
    event_ids: tuple[str, ...]
    """Of the events that it has read."""
    time: float
    """Seconds of the latest of them; NaN where not known."""


class Found(NamedTuple):
    """What a store holds of one user at one moment."""

    fingerprint: str | None
    """Of the model that the store belongs to."""
    packed: bytes | None
    seen: set[bytes]
    """Those of the events that were asked about that have been applied."""


class Change(NamedTuple):
    """A record to be written in place of the one that was read."""

    user: str
    keys: list[bytes]
    """Of the events that come with it."""
    version: bytes
    """Of the record that was read; empty if there was none."""
    packed: bytes


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
        _check_time(user, time)
        applied = False

        def move(pending: Mapping[str, Pending]) -> dict[str, Moved]:
            nonlocal applied
            past, ids = pending[user]
            applied = bool(ids)
            return {user: Moved(function(past), ids, time)} if ids else {}

        record = self.update_many({user: [event_id]}, move)[user]
        assert record is not None  # the event has been applied, now or before
        return Outcome(record, applied)

    def update_many(
        self,
        events: Mapping[str, Sequence[str]],
        function: Callable[[Mapping[str, Pending]], Mapping[str, Moved]],
    ) -> dict[str, Record | None]:
        """Move many users by some events each: one reading and one writing for all of them.

        Each user's record is written with its events or not at all; if the process is killed, some users may
        have moved and others not, and the same call again does the rest.

        Args:
            events: The ids of each user's events in their order, as in ``update``.
            function: From what is found of each user to the states after. A user that it leaves out stays as
                it was; an id that it leaves out may come again. It is called again for the users that others
                wrote meanwhile, and the last call for a user is what holds.

        Returns:
            What is kept of each user now, None for one who isn't there.

        Raises:
            UsageError, DataError, UserError: As ``update``.
        """
        for user, ids in events.items():
            _check_name("user", user)
            for one in ids:
                _check_name("event", one)
        keys = {user: {event_key(one): one for one in ids} for user, ids in events.items()}
        records: dict[str, Record | None] = {}
        begun, waits, left = clock.monotonic(), 0.001, list(events)
        while left:
            found = dict(zip(left, self._look([(user, list(keys[user])) for user in left]), strict=True))
            pending = {
                user: Pending(past, tuple(one for key, one in keys[user].items() if key not in seen))
                for user, (past, _, seen) in found.items()
            }
            records.update({user: one.record for user, one in pending.items()})
            changes = []
            for user, moved in function(pending).items():
                _check_time(user, moved.time)
                record = records[user] = _following(pending[user].record, moved)
                own = [event_key(one) for one in moved.event_ids]
                changes.append(Change(user, own, found[user][1], pack(user, record)))
            done = self._swap(changes) if changes else []
            left = [change.user for change, written in zip(changes, done, strict=True) if not written]
            if left and clock.monotonic() - begun > _PATIENCE_S:
                raise UserError(
                    f"{self.name}: others wrote user {left[0]!r} all the time for {_PATIENCE_S:.0f} s; send "
                    "the events of one user through one process"
                )
            if left:
                clock.sleep(random.uniform(0, waits))
                waits = min(2 * waits, 0.05)
        return records

    def get(self, user: str) -> Record | None:
        """What is kept of a user; None for one who isn't there.

        Raises:
            DataError, UserError: As ``update``.
        """
        _check_name("user", user)
        return self._look([(user, [])])[0][0]

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

    def _look(
        self, asked: Sequence[tuple[str, Sequence[bytes]]]
    ) -> list[tuple[Record | None, bytes, set[bytes]]]:
        """Of each user the record, its version (no bytes for one who isn't there), and the events applied."""
        looked: list[tuple[Record | None, bytes, set[bytes]]] = []
        for (user, _), found in zip(asked, self._find(asked), strict=True):
            self._check_model(found.fingerprint)
            if found.packed is None:
                if found.seen:
                    raise self._damaged(user, "it is gone, but not its events")
                looked.append((None, b"", set()))
                continue
            try:
                looked.append((unpack(user, found.packed), found.packed[:DIGEST], found.seen))
            except ValueError as error:
                raise self._damaged(user, str(error)) from error
        return looked

    def _damaged(self, user: str, how: str) -> DataError:
        return DataError(
            f"{self.name}: the state of user {user!r} can't be read ({how}); delete the user, or put the "
            "user's history in again"
        )

    def _check_model(self, fingerprint: str | None) -> None:
        """Raises DataError unless the store belongs to our model."""
        if fingerprint is None:
            raise DataError(f"{self.name} does not say which model it belongs to; begin it anew ({ANEW})")
        if fingerprint != self.fingerprint:
            raise DataError(
                f"{self.name} holds states of another model ({fingerprint[:8]}, this one is "
                f"{self.fingerprint[:8]}), which mean nothing to this one; name another store, or begin this "
                f"one anew ({ANEW}) and rebuild it from the users' histories"
            )

    def _check_format(self, found: object) -> None:
        """Raises DataError unless what is stored has our format."""
        if found != FORMAT:
            raise DataError(
                f"{self.name} has format {found!s}, this version of mambakit reads {FORMAT}; use the version "
                f"that wrote it, or begin it anew ({ANEW}) and rebuild it from the users' histories"
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
    def _find(self, asked: Sequence[tuple[str, Sequence[bytes]]]) -> list[Found]:
        """What is there of users, and of events of each, of one user at one moment."""

    @abstractmethod
    def _swap(self, changes: Sequence[Change]) -> list[bool]:
        """Write each record with its events in one step, if they are new and the record has the version.

        Returns whether each was written. Raises DataError if the store has come to belong to another model.
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


def _following(past: Record | None, moved: Moved) -> Record:
    state, ids = _checked(moved.state), moved.event_ids
    if past is None:
        return Record(state, len(ids), moved.time, ids[-RECENT:])
    times = [one for one in (past.time, moved.time) if not math.isnan(one)]
    return Record(
        state, past.n_events + len(ids), max(times, default=math.nan), (*past.recent, *ids)[-RECENT:]
    )


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        raise UsageError(f"{what}: expected a name (str), got {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{what}: {name!r} can't be written as UTF-8") from None
    if not 1 <= size <= LONGEST_NAME:
        raise UsageError(f"{what}: expected 1 to {LONGEST_NAME} bytes, got {size}")


def _check_time(user: str, time: float) -> None:
    if math.isinf(time):
        raise UsageError(f"user {user!r}: expected the event's time in seconds, or NaN, got {time}")


def _checked(state: object) -> bytes:
    if not isinstance(state, bytes):
        raise TypeError(f"state: expected bytes, got {type(state).__name__}")
    return state
