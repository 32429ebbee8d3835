"""Interaction tables in: user, item and time as CSV, Parquet, RecBole atomic files or a data frame.

What each kind of bad input does
--------------------------------
Rows that can't be used are left out, counted and named (``Interactions.left_out``, ``report()``):

- rows without a user, an item, or with a time that is no time,
- rows without a time of a user whose other rows have one: they have no place in the order,
- exact repeats of user, item and time: the first is kept (``keep_duplicates`` keeps all),
- rows of items and users with fewer events than asked for.

Errors are: an empty table, a column that is missing or could be several, times in two units (seconds beside
milliseconds, dates beside numbers), no event left after the filters, an item that
has two rows in a feature table.

Not bad, but worth knowing (``Interactions.notes``):

- Rows come in any order. Equal times of a user stay in the table's order.
- Without a time column, or for users without any time, events are taken in the table's order.
- Names may be numbers: 7 and 7.0 are ``7``. Users with one event are kept.
- Columns beside user, item and time are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from mambakit.core.data.frames import clean_names, read_columns, shortened
from mambakit.core.errors import DataError
from mambakit.domains.recommendation.assembling import Filtering, Parts, Rows, assemble
from mambakit.domains.recommendation.features import read_features
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.naming import (
    Columns,
    find_column,
    name_codes,
    split_type,
    usual_column,
)
from mambakit.domains.recommendation.times import TimeUnit, seconds_of

__all__ = ["Columns", "read_interactions"]

Source: TypeAlias = Path | str | pd.DataFrame


def read_interactions(
    source: Source,
    *,
    columns: Columns | None = None,
    item_features: Source | None = None,
    user_features: Source | None = None,
    time_unit: TimeUnit | None = None,
    min_item_events: int = 0,
    min_user_events: int = 0,
    filtering: Filtering = "iterated",
    keep_duplicates: bool = False,
    cold_items: bool = False,
    name: str | None = None,
) -> Interactions:
    """The interactions of a table; the module's docstring says what bad input does.

    Args:
        source: CSV (also ``.csv.gz``), Parquet, RecBole ``.inter`` or a data frame; rows in any order. Beside
            a ``.inter`` file, ``.item`` and ``.user`` of the same name are its features.
        columns: Which column is what.
        item_features: A table with a row an item, found by the item's column.
        user_features: The same of users.
        time_unit: The unit of numeric times; by default told from their size.
        min_item_events: Items with fewer events are left out.
        min_user_events: Users with fewer events are left out.
        filtering: ``"iterated"`` drops until every item and user that is left has enough (the k-core);
            ``"once"`` counts in the whole table only, as SASRec's preprocessing does.
        keep_duplicates: Keep exact repeats of user, item and time.
        cold_items: Items of the feature table that have no event join the catalogue, at its end.
        name: What to call the table in sentences; its path by default.

    Raises:
        DataError: If a table can't be read or used.
        UsageError: On an option that doesn't exist.
    """
    return assemble(
        read_parts(source, columns, item_features, user_features, time_unit, name),
        min_item_events=min_item_events,
        min_user_events=min_user_events,
        filtering=filtering,
        keep_duplicates=keep_duplicates,
        cold_items=cold_items,
    )


def read_parts(
    source: Source,
    columns: Columns | None = None,
    item_features: Source | None = None,
    user_features: Source | None = None,
    time_unit: TimeUnit | None = None,
    name: str | None = None,
) -> Parts:
    """The table and its features as they stand; ``read_interactions`` says what the arguments mean.

    Raises:
        DataError: If a table can't be read or used.
        UsageError: On another unit of time.
    """
    asked = columns or Columns()
    if not isinstance(source, pd.DataFrame) and Path(source).suffix == ".inter":
        item_features = _beside(source, ".item") if item_features is None else item_features
        user_features = _beside(source, ".user") if user_features is None else user_features

    items = users = None
    if item_features is not None:
        items = read_features(item_features, lambda names, at: find_column(names, asked, "item", at), "items")
    if user_features is not None:
        users = read_features(user_features, lambda names, at: find_column(names, asked, "user", at), "users")
    return Parts(read_rows(source, asked, time_unit, name), items, users)


def read_rows(
    source: Source, columns: Columns, time_unit: TimeUnit | None = None, name: str | None = None
) -> Rows:
    """The events of a table in its own order.

    Raises:
        DataError: If it can't be read, lacks a column, has no rows, or times of two units.
        UsageError: On another unit of time.
    """
    called = name or ("the table" if isinstance(source, pd.DataFrame) else str(source))
    user = item = ""
    time: str | None = None

    def choose(names: list[str]) -> tuple[list[str], list[str], list[str]]:
        nonlocal user, item, time
        user = find_column(names, columns, "user", called)
        item = find_column(names, columns, "item", called)
        if columns.time is None:
            time = usual_column(names, "time", called)
        else:
            time = find_column(names, columns, "time", called)
        wanted = [user, item, *([time] if time else [])]
        if len(set(wanted)) < len(wanted):
            raise DataError(f"{called}: user, item and time must be different columns, got {wanted}")
        return wanted, [user, item], []

    if isinstance(source, pd.DataFrame):
        names = clean_names(list(source.columns), called)
        frame = source.set_axis(names, axis=1)[choose(names)[0]].reset_index(drop=True)
    else:
        frame, names = read_columns(source, choose)
    if frame.empty:
        raise DataError(f"{called} has no rows")
    notes = []
    unread = [split_type(one)[0] for one in names if one not in frame.columns]
    if unread:
        notes.append(f"{called}: columns that are not read: {shortened(unread)}")
    if time is None:
        notes.append(f"{called}: no column of times: its rows are taken as in the order of time")
        seconds, no_time = np.full(len(frame), np.nan), None
    else:
        seconds, no_time = seconds_of(frame[time], called, time_unit)
    user_codes, users = name_codes(frame[user])
    item_codes, items = name_codes(frame[item])
    return Rows(called, user_codes, users, item_codes, items, seconds, no_time, tuple(notes))


def _beside(source: Path | str, suffix: str) -> Path | None:
    path = Path(source).with_suffix(suffix)
    return path if path.exists() else None
