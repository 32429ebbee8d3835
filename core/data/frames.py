"""Files to data frames: CSV and Parquet through pyarrow, only the columns that are wanted."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import DataError

_READERS = {
    ".csv": "csv",
    ".txt": "csv",
    ".tsv": "csv",
    ".gz": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_ATOMIC = (".inter", ".item", ".user")  # RecBole's tables: parted by tabs, a quote is a letter
_READERS |= dict.fromkeys(_ATOMIC, "csv")
# What stands for a missing number in a text column; pyarrow's own list for numbers, which is pandas' too.
_MISSING = ("", "na", "n/a", "nan", "null", "none", "-nan", "#n/a", "#na", "<na>", "1.#qnan", "1.#ind")
_BLOCK = 16 << 20

Choose = Callable[[list[str]], tuple[list[str], list[str], list[str]]]
"""From a file's column names to those to read, those of them to read as text, and those as numbers."""


def read_frame(path: Path | str) -> pd.DataFrame:
    """All columns of a CSV or Parquet file, as ``read_columns`` reads them, text as plain text.

    Raises:
        DataError: If the file can't be read, or names a column twice.
    """
    frame, _ = read_columns(path, lambda names: (names, [], []))
    texts = [name for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)]
    return frame.astype(dict.fromkeys(texts, object))


def read_columns(path: Path | str, choose: Choose) -> tuple[pd.DataFrame, list[str]]:
    """Some columns of a CSV (also compressed, ``.csv.gz``) or Parquet file, and the names of all.

    A byte order mark, CRLF line ends and blanks around column names are taken off. Columns of text come as
    categories. Commas, semicolons, tabs or bars part columns, whichever the first line has most of.

    Raises:
        DataError: If the file can't be read, or names a column twice.
    """
    path = Path(path)
    kind = _READERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError(f"no such file: {path}")
    if kind is None:
        raise DataError(f"{path}: expected a .csv or .parquet file, got {path.suffix or 'no extension'!r}")
    import pyarrow

    try:
        return _read_csv(path, choose) if kind == "csv" else _read_parquet(path, choose)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: can't be read as {kind} ({' '.join(str(error).split())})") from error


def give_back() -> None:
    """Returns to the system what reading a file has left over, once nothing refers to the frame any more.

    pyarrow keeps freed memory for its next table: of ten million rows some hundred megabytes.
    """
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


def clean_names(names: Sequence[object], source: str) -> list[str]:
    """Column names without blanks around them.

    Raises:
        DataError: If two are the same.
    """
    clean = [str(name).strip().removeprefix("\ufeff").strip() for name in names]
    twice = next((name for name in clean if clean.count(name) > 1), None) if _repeats(clean) else None
    if twice is not None:
        raise DataError(f"{source}: column {twice!r} comes twice; rename or remove one")
    return clean


def find_column(name: str, columns: Sequence[str], source: str, what: str = "column", hint: str = "") -> str:
    """The column of that name; upper and lower case matter only where two differ in nothing else.

    Raises:
        DataError: If there is none; close names are listed.
    """
    if name in columns:
        return name
    alike = [one for one in columns if one.lower() == name.lower()]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise DataError(f"{source}: {what} {name!r} could be {' or '.join(map(repr, alike))}; rename one")
    close = difflib.get_close_matches(name.lower(), [one.lower() for one in columns], n=1)
    meant = next((one for one in columns if close and one.lower() == close[0]), None)
    hint = f"did you mean {meant!r}? " if meant else hint
    raise DataError(f"{source}: {what} {name!r} is missing; {hint}found: {shortened(list(columns))}")


def numbers_of(column: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A column as float64, NaN where nothing is, and which rows hold something that is no number."""
    if pd.api.types.is_numeric_dtype(column.dtype) and not isinstance(column.dtype, pd.CategoricalDtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(column), dtype=bool)
    codes, texts = pd.factorize(column)
    uniques = pd.Series(np.asarray(texts, dtype=object))
    numbers = pd.to_numeric(uniques, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    nothing = uniques.astype(str).str.strip().str.lower().isin(_MISSING).to_numpy()
    values, bad = np.append(numbers, np.nan), np.append(np.isnan(numbers) & ~nothing, False)
    return values[codes], bad[codes]


def covariate_of(column: pd.Series) -> pd.Series:
    """A covariate as float64, or as categories of text; an empty text is a missing one.

    Text that is numbers throughout is numbers; true and false are categories.
    """
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.astype(str).where(column.notna()).astype("category")
    if pd.api.types.is_numeric_dtype(column.dtype):
        return pd.Series(column.to_numpy(dtype=np.float64, na_value=np.nan), name=column.name)
    codes, texts = pd.factorize(column)
    uniques = pd.Series(np.asarray(texts, dtype=object))
    numbers, bad = numbers_of(uniques)
    if not bad.any() and not uniques.map(lambda one: isinstance(one, bool)).any():
        return pd.Series(np.append(numbers, np.nan)[codes], name=column.name)
    names = uniques.astype(str)
    known = sorted(set(names) - {""})
    place = np.append(pd.Index(known).get_indexer(names), -1)
    return pd.Series(pd.Categorical.from_codes(place[codes], categories=known), name=column.name)


def id_texts(column: pd.Series) -> NDArray[np.object_]:
    """Identifiers as text; whole numbers without a decimal point, None where one is missing."""
    codes, names = id_codes(column)
    return np.array([*names, None], dtype=object)[codes]


def id_codes(column: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Each row's series by number, in order of appearance (-1: none named), and their names."""
    codes, uniques = pd.factorize(column)
    values = np.asarray(uniques, dtype=object).tolist()
    names = [str(int(one)) if isinstance(one, float) and one.is_integer() else str(one) for one in values]
    again, kept = pd.factorize(np.array(names, dtype=object)) if names else (np.zeros(0, dtype=np.int64), [])
    again = np.where([name == "" for name in names], -1, again) if "" in names else again
    if len(kept) == len(names) and "" not in names:
        return codes.astype(np.int64, copy=False), names
    merged = np.append(again, -1)[codes]
    left, own = np.unique(merged[merged >= 0], return_inverse=True)
    merged[merged >= 0] = own
    return merged.astype(np.int64), [str(kept[i]) for i in left]


def shortened(names: Sequence[str]) -> str:
    """Some of many names."""
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_csv(path: Path, choose: Choose) -> tuple[pd.DataFrame, list[str]]:
    import pyarrow as pa
    import pyarrow.csv as pc

    raw, delimiter = _header(path)
    names = clean_names(raw, str(path))
    wanted, texts, numbers = choose(names)
    text = pa.dictionary(pa.int32(), pa.string())
    options = {"include_columns": wanted, "auto_dict_encode": True, "auto_dict_max_cardinality": 1 << 20}
    reading = pc.ReadOptions(column_names=names, skip_rows=1, block_size=_BLOCK)
    atomic = path.suffix.lower() in _ATOMIC
    parsing = pc.ParseOptions(
        delimiter="\t" if atomic else delimiter,
        quote_char=False if atomic else '"',
        ignore_empty_lines=len(names) > 1,  # of a single column an empty line is an empty cell, and a row
    )
    types = dict.fromkeys(texts, text) | {name: pa.float64() for name in numbers}
    try:
        table = pc.read_csv(path, reading, parsing, pc.ConvertOptions(column_types=types, **options))
    except pa.ArrowInvalid:
        # A column changes its kind after the first block, or a number isn't one: all as text, typed later.
        types = dict.fromkeys(wanted, text)
        table = pc.read_csv(path, reading, parsing, pc.ConvertOptions(column_types=types, **options))
    return _to_pandas(table), names


def _header(path: Path) -> tuple[list[str], str]:
    """The names in the first line, and what parts them."""
    import pyarrow as pa

    with pa.input_stream(str(path)) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")
        first = stream.readline()
        if not first.strip():
            raise DataError(f"{path} is empty")
        delimiter = max(",;\t|", key=first.count)
        return next(csv.reader([first], delimiter=delimiter)), delimiter


def _read_parquet(path: Path, choose: Choose) -> tuple[pd.DataFrame, list[str]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=False)
    raw = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]
    names = clean_names(raw, str(path))
    wanted, texts, _ = choose(names)
    own = dict(zip(names, raw, strict=True))
    types = {name: str(file.schema_arrow.field(own[name]).type) for name in texts}
    encoded = [own[name] for name in texts if types[name] in ("string", "large_string")]
    table = pq.read_table(path, columns=[own[name] for name in wanted], read_dictionary=encoded)
    return _to_pandas(table.rename_columns(wanted)), names


def _to_pandas(table: Any) -> pd.DataFrame:
    """The table's columns, its own memory freed as they are made."""
    frame: pd.DataFrame = table.to_pandas(
        split_blocks=True, self_destruct=True, date_as_object=False, ignore_metadata=True
    )
    return frame


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)
