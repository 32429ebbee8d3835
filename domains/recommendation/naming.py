"""Names: which column holds users, items and times, and what the users and items are called."""

from __future__ import annotations

import difflib
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import id_codes, shortened
from mambakit.core.errors import DataError
from mambakit.domains.recommendation.config import Columns

Part = Literal["user", "item", "time"]

_TYPES = ("token", "float", "token_seq", "float_seq")
# As they stand in public logs, in small letters and without what parts words.
_USUAL = {
    "user": ("user", "userid", "uid", "reviewerid", "customerid", "visitorid", "sessionid", "session"),
    "item": ("item", "itemid", "iid", "movieid", "productid", "parentasin", "asin", "bookid", "songid"),
    "time": ("timestamp", "time", "datetime", "ts", "date", "eventtime", "unixreviewtime", "createdat"),
}


def name_codes(column: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Each row's name by number, -1 for none, and the names; text that is 7.0 throughout is ``7``."""
    codes, names = id_codes(column)
    # A column of whole numbers with gaps leaves pandas as 7.0; one of text is read as it stands.
    if names and all(one.endswith(".0") and one[:-2].isdigit() for one in names if not _nothing(one)):
        names = [one.removesuffix(".0") for one in names]
    lost = [place for place, one in enumerate(names) if _nothing(one)]
    return np.where(np.isin(codes, lost), -1, codes) if lost else codes, names


def _nothing(name: str) -> bool:
    return name.strip().lower() in ("", "nan", "<na>")


def find_column(names: list[str], columns: Columns, part: Part, source: str) -> str:
    """The column that a person named, or the one with a usual name.

    Raises:
        DataError: If there is none; close names are listed.
    """
    asked = getattr(columns, part)
    if asked is None:
        found = usual_column(names, part, source)
        if found is None:
            raise DataError(
                f"{source}: no column is called {part}, {_USUAL[part][1]} or the like; name it with "
                f"columns ({part}); found: {shortened([split_type(one)[0] for one in names])}"
            )
        return found
    plain = {split_type(one)[0].lower(): one for one in names}
    if asked in names or asked.lower() in plain:
        return asked if asked in names else plain[asked.lower()]
    close = difflib.get_close_matches(asked.lower(), plain, n=1)
    hint = f"did you mean {split_type(plain[close[0]])[0]!r}? " if close else ""
    raise DataError(f"{source}: column {asked!r} is missing; {hint}found: {shortened(names)}")


def usual_column(names: list[str], part: Part, source: str) -> str | None:
    """The one column whose name is usual; the more usual of several.

    Raises:
        DataError: If two columns have the same name but for capitals and what parts words.
    """
    plain = ["".join(letter for letter in split_type(one)[0].lower() if letter.isalnum()) for one in names]
    for usual in _USUAL[part]:
        alike = [name for name, own in zip(names, plain, strict=True) if own == usual]
        if len(alike) > 1:
            raise DataError(
                f"{source}: the {part} could be {' or '.join(map(repr, alike))}; name the one meant"
            )
        if alike:
            return alike[0]
    return None


def split_type(name: str) -> tuple[str, str]:
    """A RecBole column's name and type; an empty type for other columns."""
    own, _, kind = name.rpartition(":")
    return (own, kind) if own and kind in _TYPES else (name, "")
