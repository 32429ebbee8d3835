"""Many events at once: stored states move by them, and each user touched gets the best items after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.domains.recommendation.incoming import Incoming
from mambakit.domains.recommendation.live import LiveRecommender, UserState
from mambakit.domains.recommendation.store.base import Moved, Pending, Store

APPLIED, REPEATED, LATE, UNKNOWN = "applied", "repeated", "late", "unknown item"
_USERS_AT_ONCE = 256
_EVENTS_AT_ONCE = 16_384


@dataclass(frozen=True, eq=False)
class Updated:
    """What came of a table of events.

    Attributes:
        status: Of each row, ``(n_rows,)`` of str: ``applied``; ``repeated``, if it had been applied before;
            or why it is left out: ``late``, before the user's last event, ``unknown item``, or what
            ``Incoming.fault`` says.
        top: A table ``user, rank, item, score``, k rows for each user with a usable row.
        n_users: Users in it.
    """

    status: NDArray[np.object_]
    top: pd.DataFrame
    n_users: int

    def counts(self) -> dict[str, int]:
        """Rows of each status."""
        return {str(one): int(n) for one, n in pd.Series(self.status).value_counts().items()}


def update_all(
    live: LiveRecommender,
    store: Store,
    events: Incoming,
    k: int = 10,
    *,
    features: pd.DataFrame | None = None,
    filter_seen: bool = True,
) -> Updated:
    """Move the users' states by a table's events, in the order of time, and recommend after them.

    Equal times of a user keep the table's order. Users are moved by some hundred at once, those who have
    about as many events together; if the process is killed, the same call again does what is left.

    Args:
        live: The model.
        store: Of the users' states.
        events: The table.
        k: Items for each user.
        features: Of the users, row i of ``events.users[i]``; read of users who are not in the store. By
            default what the table says.
        filter_seen: Leave out what a user has had.

    Raises:
        UsageError, DataError, UserError: As ``Store.update_many``.
    """
    known = live.model.tokenizer.index
    item = np.array([*(known.get(name, -1) for name in events.items), -1])[events.item]
    status = events.fault.copy()
    status[(status == "") & (item < 0)] = UNKNOWN
    features = events.features if features is None else features
    tables: list[tuple[str, list[tuple[str, float]]]] = []
    place = {name: i for i, name in enumerate(events.users)}
    for rows in _chunks(events, np.flatnonzero(status == "")):
        row_of: dict[str, dict[str, int]] = {}
        for at in rows:
            row_of.setdefault(events.users[events.user[at]], {}).setdefault(events.event[at], int(at))
        status[rows] = REPEATED
        now: dict[str, UserState] = {}

        def move(
            pending: Mapping[str, Pending],
            row_of: dict[str, dict[str, int]] = row_of,
            now: dict[str, UserState] = now,
        ) -> dict[str, Moved]:
            new = [name for name, found in pending.items() if found.record is None]
            if new:
                some = None if features is None else features.iloc[[place[name] for name in new]]
                now.update(zip(new, live.begun(some, len(new)), strict=True))
            taken: dict[str, list[int]] = {}
            for name, found in pending.items():
                if found.record is not None:
                    now[name] = live.read(found.record.state, f"the state of user {name!r}")
                status[list(row_of[name].values())] = REPEATED
                last, own = now[name].time, [row_of[name][one] for one in found.event_ids]
                late = events.time[own] < last  # the table's own order is that of time
                status[own] = np.where(late, LATE, APPLIED)
                if not late.all():
                    taken[name] = [at for at, too_late in zip(own, late, strict=True) if not too_late]
            if not taken:
                return {}
            ids = {name: tuple(events.event[own]) for name, own in taken.items()}
            users, own_rows = [now[name] for name in taken], list(taken.values())
            after = live.after_all(
                users, [item[own] for own in own_rows], [events.time[own] for own in own_rows]
            )
            now.update(zip(taken, after, strict=True))
            return {name: Moved(live.write(now[name]), ids[name], now[name].time) for name in taken}

        records = store.update_many({name: list(own) for name, own in row_of.items()}, move)
        there = [name for name, record in records.items() if record is not None]
        tables += zip(
            there, live.tops([now[name] for name in there], k, filter_seen=filter_seen), strict=True
        )
    return Updated(status, _table(sorted(tables, key=lambda one: place[one[0]])), len(tables))


def _chunks(events: Incoming, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of so many users as go through the network at once, each user's in the order of time."""
    rows = rows[np.lexsort((events.time[rows], events.user[rows]))]  # stable
    cuts = np.flatnonzero(np.diff(events.user[rows])) + 1
    parts = sorted(np.split(rows, cuts), key=len, reverse=True) if len(rows) else []
    while parts:
        n = max(1, min(_USERS_AT_ONCE, _EVENTS_AT_ONCE // len(parts[0])))
        yield np.concatenate(parts[:n])
        parts = parts[n:]


def _table(tables: list[tuple[str, list[tuple[str, float]]]]) -> pd.DataFrame:
    rows = [(user, rank, name, score) for user, best in tables for rank, (name, score) in enumerate(best, 1)]
    return pd.DataFrame(rows, columns=["user", "rank", "item", "score"])
