"""Who did what and when: interactions in the order in which they happened, and the events to be foretold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class LeftOut:
    """Rows of a table that are not used: a sentence says why."""

    reason: str
    n_rows: int


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events of users with items, user by user, each user's in the order of time.

    Events at the same time stay in the order of the table that they were read from (a stable sort): on sets
    with many ties another rule changes results by a fifth.

    Attributes:
        users: The users' own names, ``(n_users,)`` str.
        items: The items' own names, ``(n_items,)`` str: the catalogue, also of items without an event.
        user: The user of each event, ``(n_events,)`` int64 into ``users``, non-decreasing.
        item: The item of each event, ``(n_events,)`` int64 into ``items``.
        time: Seconds of each event since 1970 or since any other moment, ``(n_events,)`` float64,
            non-decreasing within a user; NaN for all events of a user whose times are not known.
        item_features: What is known of the items, row i of ``items[i]``: numbers, or categories as str; a
            column ``title`` is text. None where nothing is.
        user_features: The same of the users.
        clock: ``"shared"`` where all users' times count from one moment; ``"own"`` where each user's count
            from the user's first event, so that no two users' can be compared.
        left_out: Rows of the table that are not used, and why.
        notes: Further sentences a person should see.
    """

    users: NDArray[np.str_]
    items: NDArray[np.str_]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.float64]
    item_features: pd.DataFrame | None = None
    user_features: pd.DataFrame | None = None
    clock: Literal["shared", "own"] = "shared"
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.item)

    @property
    def n_users(self) -> int:
        """Users, also those without an event."""
        return len(self.users)

    @property
    def n_items(self) -> int:
        """Items, also those without an event."""
        return len(self.items)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """``(n_users + 1,)``: the events of user u are ``offsets[u]`` to ``offsets[u + 1]``."""
        counts = np.bincount(self.user, minlength=self.n_users)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def report(self) -> str:
        """A line a reason to leave rows out and a line a note; empty if there is nothing to say."""
        lines = [f"left out {one.n_rows:,} rows: {one.reason}" for one in self.left_out]
        return "\n".join(f"note: {line}" for line in [*lines, *self.notes])


@dataclass(frozen=True, eq=False)
class Split:
    """Which events are learned from, and which are to be foretold from those that the user has before them.

    Attributes:
        train_end: ``(n_users,)``: the events of user u from ``offsets[u]`` to here are learned from.
        validation: Events to be foretold while training is watched, ``(n,)`` int64 into the events.
        test: Events to be foretold once, at the end; the validation events before them are known then.
        new: ``(n_items,)``: items that came after training, whose events are not learned from.
        moments: Of a split in time the first moments of validation and of test, in seconds as the events'.
    """

    train_end: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    new: NDArray[np.bool_] | None = None
    moments: tuple[float, float] | None = None
