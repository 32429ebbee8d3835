"""GroupLens' own files of MovieLens 1M: fields parted by ``::``, no header, latin-1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mambakit.core.errors import DataError
from mambakit.domains.recommendation.features import Features, typed, unique_names


def read_ratings(path: Path) -> pd.DataFrame:
    """``user::item::rating::timestamp``: user_id and item_id as text, timestamp in seconds.

    Raises:
        DataError: If the file isn't that.
    """
    try:  # every second field lies between the two colons
        frame = pd.read_csv(path, sep=":", header=None, usecols=[0, 2, 6], dtype={0: str, 2: str, 6: float})
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}: expected lines user::item::rating::timestamp ({' '.join(str(error).split())})"
        ) from error
    return frame.set_axis(["user_id", "item_id", "timestamp"], axis=1)


def read_movies(path: Path) -> Features:
    """``item::title (year)::genre|genre``: title, year, and a column of 0 and 1 for each genre.

    Raises:
        DataError: If the file isn't that.
    """
    return with_year(_features(path, ["title", "genres"], "items"))


def read_users(path: Path) -> Features:
    """``user::gender::age::occupation::zip``: the age is where its bracket begins, the occupation a code.

    Raises:
        DataError: If the file isn't that.
    """
    return _features(path, ["gender", "age", "occupation:token", "zip_code:token"], "users")


def with_year(features: Features) -> Features:
    """Titles like ``Heat (1995)`` parted into ``Heat`` and the number 1995 in a column ``year``."""
    titles = features.frame["title"].astype("string")
    parts = titles.str.extract(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*$")
    frame = features.frame.assign(title=parts["title"].fillna(titles).astype(object))
    years = pd.to_numeric(parts["year"]).to_numpy(dtype=np.float64, na_value=np.nan)
    frame.insert(1, "year", years)
    return Features(features.source, features.names, frame, features.what)


def _features(path: Path, names: list[str], what: str) -> Features:
    rows = [line.split("::") for line in path.read_text("latin-1").splitlines() if line]
    odd = next((number for number, row in enumerate(rows, 1) if len(row) != len(names) + 1), None)
    if odd is not None:
        raise DataError(f"{path}: line {odd} has {len(rows[odd - 1])} fields, expected {len(names) + 1}")
    frame = pd.DataFrame(rows, columns=["key", *names], dtype=object)
    keys = frame.pop("key").to_numpy()
    return Features(str(path), unique_names(keys, str(path)), typed(frame, what), what)
