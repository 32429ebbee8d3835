"""Events that come in bulk for users with a stored state: read from a table, the bad rows marked.

A row is bad without a user, an item or a time that can be read; and one without a time, if it has no event
id or other rows of its user have a time. An event's id is that of the column event_id, else its item and
time, so that the same table read twice has the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import clean_names, id_texts, read_columns, shortened
from mambakit.domains.recommendation.features import Features, typed
from mambakit.domains.recommendation.naming import Columns, find_column, split_type, usual_column
from mambakit.domains.recommendation.reading import read_rows
from mambakit.domains.recommendation.store.base import LONGEST_NAME
from mambakit.domains.recommendation.tokenizer import Words

_EVENT = ("event_id", "eventid", "event")


@dataclass(frozen=True, eq=False)
class Incoming:
    """Events in the order of their table.

    Attributes:
        user, item: Of each row, ``(n_rows,)`` int64 into the names, -1 for none.
        users, items: Names.
        time: Seconds, ``(n_rows,)``; NaN where not known.
        event: Ids, ``(n_rows,)`` of str; of one user each its own.
        fault: What is wrong with each row, ``(n_rows,)`` of str; empty where nothing is.
        features: What the table says of its users, row i of ``users[i]``; None where nothing.
        notes: What a person should see.
    """

    user: NDArray[np.int64]
    users: list[str]
    item: NDArray[np.int64]
    items: list[str]
    time: NDArray[np.float64]
    event: NDArray[np.object_]
    fault: NDArray[np.object_]
    features: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.user)

    def frame(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """Some rows as a table: their number, from 1, user, item, seconds and event id."""
        user, item = (
            np.array([*names, ""], dtype=object)[codes[rows]]
            for names, codes in ((self.users, self.user), (self.items, self.item))
        )
        named = {"user": user, "item": item, "timestamp": self.time[rows], "event_id": self.event[rows]}
        return pd.DataFrame({"row": rows + 1, **named})


def read_incoming(
    source: Path | str | pd.DataFrame,
    columns: Columns | None = None,
    *,
    known: Words | None = None,
    name: str | None = None,
) -> Incoming:
    """The events of a table.

    Args:
        source: CSV, Parquet, RecBole ``.inter`` or a data frame.
        columns: Which column is what; that of ids is called event_id, eventid or event.
        known: The model's words of users: columns that it knows are read as features.
        name: What to call the table.

    Raises:
        DataError: If the table can't be read, lacks a column or has no rows.
    """
    called = name or ("the table" if isinstance(source, pd.DataFrame) else str(source))
    told = set() if known is None else {word.partition("=")[0] for word in known.index}
    asked, event, said, unread = columns or Columns(), "", list[str](), list[str]()

    def choose(names: list[str]) -> tuple[list[str], list[str], list[str]]:
        nonlocal asked, event
        user, item = (find_column(names, asked, part, called) for part in ("user", "item"))
        time = (
            find_column(names, asked, "time", called) if asked.time else usual_column(names, "time", called)
        )
        asked = Columns(user, item, time)
        rest = [one for one in names if one not in (user, item, time)]
        event = next((one for one in rest if split_type(one)[0].lower() in _EVENT), "")
        said.extend(one for one in rest if one != event and split_type(one)[0] in told)
        unread.extend(one for one in rest if one != event and one not in said)
        return [one for one in names if one not in unread], [one for one in (user, item, event) if one], []

    if isinstance(source, pd.DataFrame):
        names = clean_names(list(source.columns), called)
        frame = source.set_axis(names, axis=1)[choose(names)[0]].reset_index(drop=True)
    else:
        frame, _ = read_columns(source, choose)
    own = [one for one in (asked.user, asked.item, asked.time) if one]
    rows = read_rows(frame[own], asked, name=called)
    notes = list(rows.notes)
    if unread:
        notes.append(f"{called}: columns that are not read: {shortened(unread)}")
    ids = id_texts(frame[event]) if event else np.full(len(frame), None, dtype=object)
    fault = np.full(len(frame), "", dtype=object)

    def mark(bad: NDArray[np.bool_], what: str) -> None:
        fault[bad & (fault == "")] = what

    mark(rows.user < 0, "no user")
    mark(rows.item < 0, "no item")
    if rows.no_time is not None:
        mark(rows.no_time, "bad time")
    missing = np.isnan(rows.time)
    timed = np.zeros(len(rows.users) + 1, dtype=bool)
    timed[rows.user[~missing]] = True
    mark(missing & (timed[rows.user] | np.array([not one for one in ids], dtype=bool)), "no time")
    for at in np.flatnonzero([not one for one in ids]):
        ids[at] = event_of(rows.items[rows.item[at]], float(rows.time[at]))
    mark(_too_long(rows.users)[rows.user] | _too_long(ids), "too long a name")
    features = None
    if said:
        first = np.unique(rows.user, return_index=True)[1]
        first = first[rows.user[first] >= 0]
        names = [rows.users[code] for code in rows.user[first]]
        told_of = typed(frame.loc[first, said].reset_index(drop=True), "users")
        features = Features(called, names, told_of, "users").of(rows.users, [])
    return Incoming(
        rows.user, rows.users, rows.item, rows.items, rows.time, ids, fault, features, tuple(notes)
    )


def event_of(item: str, time: float) -> str:
    """The id of an event that has none: of the user's events the one of this item at this time."""
    return f"{item}@{time}"


def _too_long(names: Sequence[str] | NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.array([len(str(one).encode("utf-8", "replace")) > LONGEST_NAME for one in names], dtype=bool)
