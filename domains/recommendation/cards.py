"""Interactions by a card's name, a file or a folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data import Card, card_names, fetch, load_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.recommendation import embedded
from mambakit.domains.recommendation.assembling import Filtering, Parts, Rows, assemble
from mambakit.domains.recommendation.features import Features, tag_columns
from mambakit.domains.recommendation.interactions import Interactions
from mambakit.domains.recommendation.movielens import read_movies, read_ratings, read_users, with_year
from mambakit.domains.recommendation.naming import Columns
from mambakit.domains.recommendation.reading import Source, read_parts, read_rows
from mambakit.domains.recommendation.times import TimeUnit

_TABLES = (".inter", ".csv", ".csv.gz", ".parquet", ".pq")


def recommendation_cards() -> list[str]:
    """Names of the cards of this domain."""
    return [name for name in card_names() if load_card(name).domain == "recommendation"]


def load_interactions(
    source: Path | str,
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
) -> Interactions:
    """The interactions of a card, a file or a folder; of a card's name where a path is called alike.

    A folder is one of RecBole (``NAME.inter`` beside ``.item`` and ``.user``), one of MovieLens as GroupLens
    serves it (``ratings`` beside ``movies`` and ``users``, as .csv or .dat), or holds a single table.

    Args:
        source: A card's name, or a path.
        columns, item_features, user_features, time_unit, keep_duplicates: Of files; as
            ``reading.read_interactions`` has them. A card knows its own, and its repeats are events.
        min_item_events, min_user_events, filtering, cold_items: As ``reading.read_interactions`` has them.

    Raises:
        UsageError: If there is neither such a card nor such a path, or a card is told what it knows.
        DataError: If files can't be fetched or read, or don't hold what the card promises.
    """
    told = (columns, item_features, user_features, time_unit)
    known = str(source).lower() in {name.lower() for name in card_names()}
    card = load_card(str(source)) if known else None
    if card is not None and card.domain == "recommendation":
        if any(one is not None for one in told):
            raise UsageError(
                f"data: {card.name} has a card, which says its columns, features and unit of time"
            )
        parts, keep_duplicates = read_card(card), True
    elif Path(source).exists():
        path, items, users = _in_folder(Path(source)) if Path(source).is_dir() else (Path(source), None, None)
        if path.suffix == ".dat":
            if any(one is not None for one in told):
                raise UsageError(f"data: {path} is MovieLens', whose columns, features and unit are known")
            parts = _dat_parts(path, items, users)
        else:
            own_items = items if item_features is None else item_features
            own_users = users if user_features is None else user_features
            parts = read_parts(path, columns, own_items, own_users, time_unit)
            if items is not None and item_features is None:  # movies beside ratings
                parts = dataclasses.replace(parts, items=dated(parts.items))
    else:
        raise _neither(str(source))
    return assemble(
        parts,
        min_item_events=min_item_events,
        min_user_events=min_user_events,
        filtering=filtering,
        keep_duplicates=keep_duplicates,
        cold_items=cold_items,
    )


def read_card(card: Card) -> Parts:
    """A card's events and features.

    Raises:
        DataError: If the files can't be fetched, or don't hold what the card promises.
    """
    if card.embedded:
        found = embedded.load(card.embedded)
        items = None
        if found.item_features is not None:
            items = Features(card.name, found.items.tolist(), found.item_features, "items")
        users, names = found.users.tolist(), found.items.tolist()
        parts = Parts(Rows(card.name, found.user, users, found.item, names, found.time), items)
    else:
        parts = READERS[card.layout](card, fetch(card))
    rows = parts.rows
    counts = {"users": len(rows.users), "items": len(rows.items), "events": len(rows.user)}
    for what, promised in card.counts.items():
        if counts[what] != promised:
            raise DataError(
                f"{card.name}: its card promises {promised:,} {what}, its files hold {counts[what]:,}"
            )
    return parts


def _read_table(card: Card, paths: dict[str, Path]) -> Parts:
    """A table with a header, beside it tables of items and users; years are taken out of films' titles."""
    columns = Columns(user=card.id_column, item=card.target, time=card.time_column)
    table = next(path for name, path in paths.items() if name not in card.roles)
    items, users = (_of_role(card, paths, role) for role in ("items", "users"))
    parts = read_parts(table, columns, items, users, name=card.name)
    notes = tuple(note for note in parts.rows.notes if "not read" not in note)  # the card names them
    rows = dataclasses.replace(parts.rows, notes=notes)
    return Parts(rows, dated(parts.items), parts.users)


def _read_pairs(card: Card, paths: dict[str, Path]) -> Parts:
    """Lines ``user item`` in the order of time, numbers of its own; MovieLens' names, times and features.

    Raises:
        DataError: If a rating that should be among the known times is not.
    """
    table = next(path for name, path in paths.items() if name not in card.roles)
    pairs = pd.read_csv(table, sep=" ", header=None, dtype=np.int64).to_numpy()
    by_role = {role: paths[name] for name, role in card.roles.items()}
    names = []
    for role, column in (("user_names", pairs[:, 0]), ("item_names", pairs[:, 1])):
        ours, theirs = pd.read_csv(by_role[role], sep=" ", header=None, dtype=np.int64).to_numpy().T
        if not np.array_equal(np.unique(column), ours) or ours[0] != 1 or ours[-1] != len(ours):
            raise DataError(f"{card.name}: the names in {by_role[role].name} are not those of {table.name}")
        names.append(theirs)
    users, items = names
    codes = pairs - 1
    time = _times_of(users[codes[:, 0]], items[codes[:, 1]], read_ratings(by_role["times"]))
    rows = Rows(
        card.name,
        codes[:, 0],
        list(map(str, users.tolist())),
        codes[:, 1],
        list(map(str, items.tolist())),
        time,
    )
    return Parts(rows, read_movies(by_role["items"]), read_users(by_role["users"]))


def _read_sequences(card: Card, paths: dict[str, Path]) -> Parts:
    """Lines ``user item item ...<TAB>0 gap gap ...``: the gap before each event in seconds.

    Raises:
        DataError: If a line has another number of gaps than of items, or a negative gap.
    """
    table = next(path for name, path in paths.items() if name not in card.roles)
    users, items, gaps, counts = [], [], [], []
    for number, line in enumerate(table.read_text("ascii").splitlines(), 1):
        left, _, right = line.partition("\t")
        user, *own = left.split()
        own_gaps = right.split()
        if len(own) != len(own_gaps):
            raise DataError(f"{card.name}: line {number} has {len(own)} items and {len(own_gaps)} gaps")
        users.append(user)
        items += own
        gaps += own_gaps
        counts.append(len(own))
    steps = np.array(gaps, dtype=np.float64)
    if (steps < 0).any():
        raise DataError(f"{card.name}: a gap is negative")
    owner = np.repeat(np.arange(len(users)), counts)
    total = np.cumsum(steps)
    time = total - total[np.cumsum([0, *counts[:-1]])][owner]
    item, names = pd.factorize(np.array(items, dtype=object))
    rows = Rows(card.name, owner, users, item.astype(np.int64), names.tolist(), time)
    attributes = _of_role(card, paths, "items")
    if attributes is None:
        return Parts(rows, clock="own")
    tags: dict[str, list[int]] = json.loads(attributes.read_text("utf-8"))
    frame = tag_columns([list(map(str, one)) for one in tags.values()], "attribute")
    return Parts(rows, Features(attributes.name, list(tags), frame, "items"), clock="own")


READERS: dict[str, Callable[[Card, dict[str, Path]], Parts]] = {
    "long": _read_table,
    "pairs": _read_pairs,
    "sequences": _read_sequences,
}


def dated(items: Features | None) -> Features | None:
    """With the year of each film as a number, from a column of its own or the end of the titles."""
    if items is not None and "release_year" in items.frame:
        years = pd.to_numeric(items.frame["release_year"], errors="coerce").to_numpy(np.float64)
        frame = items.frame.assign(release_year=years).rename(columns={"release_year": "year"})
        return dataclasses.replace(items, frame=frame)
    if items is not None and "title" in items.frame:
        with_one = items.frame["title"].astype("string").str.contains(r"\(\d{4}\)\s*$").fillna(False)
        return with_year(items) if with_one.mean() > 0.5 else items
    return items


def _of_role(card: Card, paths: dict[str, Path], role: str) -> Path | None:
    return next((path for name, path in paths.items() if card.roles.get(name) == role), None)


def _times_of(
    users: NDArray[np.int64], items: NDArray[np.int64], ratings: pd.DataFrame
) -> NDArray[np.float64]:
    """When each of these pairs was rated; NaN for users that have no known time."""
    known = ratings["user_id"].astype(np.int64).to_numpy() * 100_000
    known += ratings["item_id"].astype(np.int64).to_numpy()
    order = np.argsort(known, kind="stable")
    known, time = known[order], ratings["timestamp"].to_numpy()[order]
    asked = users * 100_000 + items
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    found = np.where(known[place] == asked, time[place], np.nan)
    lost = np.isnan(found) & np.isin(users, known // 100_000)
    if lost.any():
        one = int(lost.argmax())
        raise DataError(f"times: user {users[one]} has no rating of item {items[one]} among the known times")
    return found


def _in_folder(folder: Path) -> tuple[Path, Path | None, Path | None]:
    """The folder's table of events, of items and of users.

    Raises:
        DataError: If it isn't clear which file is the table.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    by_name = {path.name: path for path in files}
    for suffix in (".dat", ".csv", ".csv.gz", ".parquet"):
        if f"ratings{suffix}" in by_name:
            movies, users = (by_name.get(f"{name}{suffix}") for name in ("movies", "users"))
            return by_name[f"ratings{suffix}"], movies, users
    tables = [path for path in files if path.name.endswith(".inter")]
    tables = tables or [path for path in files if path.name.endswith(_TABLES)]
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables or files) or "nothing"
        raise DataError(
            f"{folder}: expected one table (NAME.inter, ratings.csv, ratings.dat, or a single .csv or "
            f".parquet file), found {names}; name the file itself"
        )
    return tables[0], None, None


def _dat_parts(path: Path, movies: Path | None, users: Path | None) -> Parts:
    columns = Columns(user="user_id", item="item_id", time="timestamp")
    rows = read_rows(read_ratings(path), columns, "s", str(path))
    return Parts(
        rows, None if movies is None else read_movies(movies), None if users is None else read_users(users)
    )


def _neither(source: str) -> Exception:
    if "/" in source or source.endswith((*_TABLES, ".dat", ".txt")):
        return DataError(f"no such file or folder: {source}")
    other = load_card(source)  # raises, with close names, if there is none
    return UsageError(f"data: {other.name} is a data set of {other.domain}, not of recommendation")
