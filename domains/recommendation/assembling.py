"""From rows of user, item and time to interactions: what is bad is left out, the rest is put in order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation.features import Features
from mambakit.domains.recommendation.interactions import Interactions, LeftOut

Filtering = Literal["iterated", "once"]


@dataclass(frozen=True, eq=False)
class Rows:
    """A table's events in its own order.

    Attributes:
        source: What to call the table.
        user, item: Of each row, ``(n_rows,)`` int64 into the names, -1 for none.
        users, items: Names, in order of appearance.
        time: Seconds, ``(n_rows,)`` float64; NaN where not known.
        no_time: Rows that hold something that is no time, ``(n_rows,)`` bool; None for none.
        notes: What reading found.
    """

    source: str
    user: NDArray[np.int64]
    users: list[str]
    item: NDArray[np.int64]
    items: list[str]
    time: NDArray[np.float64]
    no_time: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Parts:
    """A data set as its files have it.

    Attributes:
        rows: The events.
        items, users: What is known of them.
        clock: As in ``Interactions``.
    """

    rows: Rows
    items: Features | None = None
    users: Features | None = None
    clock: Literal["shared", "own"] = "shared"


def assemble(
    parts: Parts,
    *,
    min_item_events: int = 0,
    min_user_events: int = 0,
    filtering: Filtering = "iterated",
    keep_duplicates: bool = False,
    cold_items: bool = False,
) -> Interactions:
    """The events user by user in the order of time; ``reading.read_interactions`` says what the options mean.

    Raises:
        DataError: If no event is left.
        UsageError: On a negative minimum or another filtering.
    """
    for name, least in (("min_item_events", min_item_events), ("min_user_events", min_user_events)):
        if least < 0:
            raise UsageError(f"{name}: expected 0 or more, got {least}")
    if filtering not in ("iterated", "once"):
        raise UsageError(f"filtering: expected 'iterated' or 'once', got {filtering!r}")
    rows = parts.rows
    left: list[LeftOut] = []
    good = _usable(rows, left)
    if not good.any():
        why = "; ".join(f"{one.n_rows} rows because {one.reason}" for one in left)
        raise DataError(f"{rows.source}: no event can be used: {why or 'it has no rows'}")
    kept = np.flatnonzero(good)
    kept = kept[np.lexsort((rows.time[kept], rows.user[kept]))]  # stable: ties stay in the table's order
    if not keep_duplicates:
        kept = _once(rows, kept, left)
    kept = _often_enough(rows, kept, min_item_events, min_user_events, filtering, left)
    user, users = _renumbered(rows.user[kept], rows.users)
    item, items = _renumbered(rows.item[kept], rows.items)
    notes = list(rows.notes)
    if cold_items and parts.items is not None:
        known = set(rows.items)
        items += [name for name in parts.items.names if name not in known]
    found = Interactions(
        users=np.array(users, dtype=np.str_),
        items=np.array(items, dtype=np.str_),
        user=user,
        item=item,
        time=rows.time[kept],
        item_features=None if parts.items is None else parts.items.of(items, notes),
        user_features=None if parts.users is None else parts.users.of(users, notes),
        clock=parts.clock,
        left_out=tuple(left),
    )
    return dataclasses.replace(found, notes=(*notes, *_notes(found)))


def _usable(rows: Rows, left: list[LeftOut]) -> NDArray[np.bool_]:
    """Which rows have a user, an item, and a time where the user's other rows have one."""
    good = np.ones(len(rows.user), dtype=bool)

    def leave(bad: NDArray[np.bool_], what: str) -> None:
        nonlocal good
        bad = bad & good
        if bad.any():
            left.append(LeftOut(f"{what} (the first: row {int(bad.argmax()) + 1})", int(bad.sum())))
            good &= ~bad

    leave(rows.user < 0, "they have no user")
    leave(rows.item < 0, "they have no item")
    if rows.no_time is not None:
        leave(rows.no_time, "their time is neither a finite number nor an ISO date")
    missing = np.isnan(rows.time)
    timed = np.zeros(len(rows.users) + 1, dtype=bool)
    timed[rows.user[good & ~missing]] = True
    leave(missing & timed[rows.user], "they have no time, and so no place among their user's other events")
    return good


def _once(rows: Rows, kept: NDArray[np.int64], left: list[LeftOut]) -> NDArray[np.int64]:
    """Without exact repeats of user, item and time; where times aren't known, repeats are events."""
    user, time = rows.user[kept], rows.time[kept]
    ties = np.zeros(len(kept) + 1, dtype=bool)  # whether each event has the time of the one before it
    ties[1:-1] = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    tied = np.flatnonzero(ties[:-1] | ties[1:])
    group, item = np.cumsum(~ties[:-1])[tied], rows.item[kept[tied]]
    order = np.lexsort((item, group))  # stable: the first of equals is the table's first
    again = np.zeros(len(tied), dtype=bool)
    again[order[1:]] = (group[order[1:]] == group[order[:-1]]) & (item[order[1:]] == item[order[:-1]])
    same = np.zeros(len(kept), dtype=bool)
    same[tied] = again
    if same.any():
        row = int(kept[same].min())
        one = f"user {rows.users[rows.user[row]]!r}, item {rows.items[rows.item[row]]!r}, row {row + 1}"
        why = f"they repeat an event of the same user, item and time (the first: {one})"
        left.append(LeftOut(why, int(same.sum())))
    return kept[~same]


def _often_enough(
    rows: Rows,
    kept: NDArray[np.int64],
    min_item_events: int,
    min_user_events: int,
    filtering: Filtering,
    left: list[LeftOut],
) -> NDArray[np.int64]:
    """Without rare items and users, in one pass or until none is left (the k-core)."""
    if max(min_item_events, min_user_events) <= 1:
        return kept
    before, whole = kept, len(kept)
    while True:
        user, item = rows.user[kept], rows.item[kept]
        enough = (np.bincount(item)[item] >= min_item_events) & (np.bincount(user)[user] >= min_user_events)
        kept = kept[enough]
        if enough.all() or filtering == "once" or not len(kept):
            break
    said = f"min_item_events={min_item_events}, min_user_events={min_user_events} ({filtering})"
    users, users_left = (np.count_nonzero(np.bincount(rows.user[one])) for one in (before, kept))
    items, items_left = (np.count_nonzero(np.bincount(rows.item[one])) for one in (before, kept))
    if not len(kept):
        raise DataError(
            f"{rows.source}: the catalogue is empty: none of {whole:,} events by {users:,} users of "
            f"{items:,} items is left after {said}; lower them"
        )
    if len(kept) < whole:
        left.append(
            LeftOut(
                f"{items - items_left:,} of {items:,} items and {users - users_left:,} of {users:,} users go "
                f"by {said}",
                whole - len(kept),
            )
        )
    return kept


def _renumbered(codes: NDArray[np.int64], names: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Without the names that no code uses; the others keep their order."""
    used = np.bincount(codes, minlength=len(names)) > 0
    return (np.cumsum(used) - 1)[codes], [name for name, one in zip(names, used, strict=True) if one]


def _notes(found: Interactions) -> list[str]:
    counts = np.diff(found.offsets)
    notes = []
    single = int((counts == 1).sum())
    if single:
        notes.append(
            f"{single:,} of {found.n_users:,} users have a single event: it is learned from, but nothing of "
            "theirs can be foretold"
        )
    unknown = int(np.isnan(found.time[found.offsets[:-1]]).sum())
    if unknown:
        notes.append(
            f"{unknown:,} of {found.n_users:,} users have no times: their events stand in the table's order"
        )
    return notes
