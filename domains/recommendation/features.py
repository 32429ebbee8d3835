"""What is known of items and users beside the events: numbers, categories, sets of tags, and titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import clean_names, covariate_of, read_columns, shortened
from mambakit.core.errors import DataError
from mambakit.domains.recommendation.naming import name_codes, split_type

_TITLES = ("title", "movietitle", "itemtitle", "producttitle", "bookname", "name", "itemname", "productname")
_MOST_TAGS = 2000


@dataclass(frozen=True, eq=False)
class Features:
    """A table with a row an item, or a user.

    Attributes:
        source: What to call the table.
        names: Of the items or users, ``(n_rows,)`` of str.
        frame: A row each: numbers, categories as str with None where one is missing, ``title``.
        what: ``"items"`` or ``"users"``.
    """

    source: str
    names: list[str]
    frame: pd.DataFrame
    what: str

    def of(self, names: Sequence[str], notes: list[str]) -> pd.DataFrame:
        """The rows of these items or users, missing values where one has none; says so in the notes.

        Raises:
            DataError: If none of them has a row.
        """
        row = pd.Index(self.names, dtype=object).get_indexer(pd.Index(list(names), dtype=object))
        lacking = np.flatnonzero(row < 0)
        if len(lacking) == len(names):
            raise DataError(
                f"{self.source}: has none of the events' {self.what}; it has {shortened(self.names)}, "
                f"the events have {shortened(names)}"
            )
        if len(lacking):
            some = shortened([names[place] for place in lacking.tolist()])
            notes.append(f"{self.source}: lacks {len(lacking):,} of {len(names):,} {self.what}: {some}")
            tags = self.frame.select_dtypes(np.int8)
            frame = self.frame.drop(columns=tags.columns).reindex(row).reset_index(drop=True)
            own = np.where((row >= 0)[:, None], tags.to_numpy()[row], np.int8(0))
            frame = pd.concat([frame, pd.DataFrame(own, columns=tags.columns)], axis=1)
            frame = frame[self.frame.columns]
        else:
            frame = self.frame.iloc[row].reset_index(drop=True)
        words = [name for name, dtype in frame.dtypes.items() if dtype.kind == "O"]
        frame[words] = frame[words].astype(object).where(frame[words].notna(), None)
        return frame


def read_features(
    source: Path | str | pd.DataFrame, find_key: Callable[[list[str], str], str], what: str
) -> Features:
    """A table of items or users.

    Columns of numbers stay numbers, text becomes categories. Text with ``|`` in it, and RecBole's
    ``token_seq``, is a set of tags: a column of 0 and 1 for each, called ``genres=Comedy``. A column called
    title, movie_title, item_name or the like becomes ``title``. Columns without any value are dropped.

    Args:
        source: CSV, Parquet, a RecBole atomic file, or a data frame.
        find_key: From the column names and what to call the table to the column of the names.
        what: ``"items"`` or ``"users"``.

    Raises:
        DataError: If the table can't be read, names none, or one twice.
    """
    called = f"the {what}' features" if isinstance(source, pd.DataFrame) else str(source)
    if isinstance(source, pd.DataFrame):
        frame = source.set_axis(clean_names(list(source.columns), called), axis=1)
        key = find_key(list(frame.columns), called)
    else:
        key = ""

        def choose(names: list[str]) -> tuple[list[str], list[str], list[str]]:
            nonlocal key
            key = find_key(names, called)
            return names, [key, *(name for name in names if split_type(name)[1].startswith("token"))], []

        frame, _ = read_columns(source, choose)
    codes, names = name_codes(frame.pop(key))
    there = codes >= 0
    keys = np.array(names, dtype=object)[codes[there]]
    return Features(
        called, unique_names(keys, called), typed(frame[there].reset_index(drop=True), what), what
    )


def unique_names(names: NDArray[np.object_], source: str) -> list[str]:
    """The names as a list.

    Raises:
        DataError: If there are none, or one comes twice.
    """
    if not len(names):
        raise DataError(f"{source} has no rows")
    twice = names[pd.Series(names).duplicated().to_numpy()]
    if len(twice):
        raise DataError(f"{source}: {str(twice[0])!r} has more than one row")
    return [str(name) for name in names]


def typed(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """The columns as numbers, categories, tags and titles."""
    parts: list[pd.DataFrame | pd.Series] = []
    for full in frame:
        name, kind = split_type(str(full))
        column = frame[full]
        plain = "".join(letter for letter in name.lower() if letter.isalnum())
        text = column.astype(object).where(column.notna(), None)
        if what == "items" and plain in _TITLES:
            parts.append(_words(text).rename("title"))
        elif kind == "token_seq":
            parts.append(tags_of(_words(text), name, " "))
        elif kind == "float_seq":
            lists = _words(text).map(lambda one: [float(x) for x in one.split()] if one else [])
            parts.append(pd.DataFrame(lists.tolist(), dtype=np.float64).add_prefix(f"{name}_"))
        elif kind == "token":
            parts.append(_words(text).rename(name))
        else:
            own = covariate_of(column)
            if own.dtype.kind == "f":
                parts.append(own.rename(name))
            elif any("|" in one for one in own.cat.categories):
                parts.append(tags_of(_words(text), name, "|"))
            else:
                parts.append(_words(text).rename(name))
    whole = pd.concat([part.reset_index(drop=True) for part in parts], axis=1) if parts else pd.DataFrame()
    return whole.loc[:, whole.notna().any()]


def tags_of(column: pd.Series, name: str, separator: str) -> pd.DataFrame:
    """A column of 0 and 1 for each tag, as ``tag_columns`` makes them of the parts of a text."""
    lists = column.map(lambda one: [tag.strip() for tag in one.split(separator)] if one else [])
    return tag_columns(lists.tolist(), name)


def tag_columns(lists: Sequence[Sequence[str]], name: str) -> pd.DataFrame:
    """A column of 0 and 1 for each tag, ``(len(lists), n_tags)`` int8; of the 2,000 most frequent tags."""
    rows = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    codes, tags = pd.factorize(np.array([tag for one in lists for tag in one], dtype=object), sort=True)
    most = np.sort(np.argsort(-np.bincount(codes, minlength=len(tags)), kind="stable")[:_MOST_TAGS])
    place = np.full(len(tags), -1)
    place[most] = np.arange(len(most))
    values = np.zeros((len(lists), len(most)), dtype=np.int8)
    kept = place[codes] >= 0
    values[rows[kept], place[codes][kept]] = 1
    return pd.DataFrame(values, columns=[f"{name}={tags[i]}" for i in most])


def _words(column: pd.Series) -> pd.Series:
    """Text as str, None where nothing is."""
    found = [str(one).strip() if one is not None and one == one else "" for one in column]
    return pd.Series([one or None for one in found], dtype=object)
