"""Tables in: a long table ``unique_id, ds, y``, or a wide one (a column a series), checked row by row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

from mambakit.core.errors import DataError, UsageError

Missing = Literal["error", "mask", "interpolate"]

TIME_NAMES = ("ds", "date", "datetime", "time", "timestamp")
_READERS = {".csv": "csv", ".txt": "csv", ".gz": "csv", ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True)
class Series:
    """One series and what is known beside it.

    Attributes:
        unique_id: Its name.
        stamps: When each value was taken, ascending: timestamps, or integers.
        values: The values in their own units, ``(length,)`` float64; NaN where one is missing.
        frequency: A pandas offset alias, or the integer step as text; empty if the stamps are irregular.
        past: Covariates known up to now, a row a stamp: numbers, or categories.
        future: Covariates known ahead, a row a stamp and then one for each further step that is known.
        static: What never changes, by name: numbers or text.
    """

    unique_id: str
    stamps: pd.Index
    values: NDArray[np.float64]
    frequency: str
    past: pd.DataFrame | None = None
    future: pd.DataFrame | None = None
    static: Mapping[str, Any] = field(default_factory=dict)


def read_table(path: Path | str, *, missing: Missing = "error") -> list[Series]:
    """The series of a CSV or Parquet file.

    Args:
        path: ``.csv`` (also compressed, ``.csv.gz``) or ``.parquet``.
        missing: What to do about missing values and gaps: ``"error"`` says where they are, ``"mask"`` keeps
            them as NaN, ``"interpolate"`` fills them on a straight line between their neighbours.

    Raises:
        DataError: If the file can't be read, or ``series_of`` refuses its table.
    """
    path = Path(path)
    kind = _READERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError(f"no such file: {path}")
    if kind is None:
        raise DataError(f"{path}: expected a .csv or .parquet file, got {path.suffix or 'no extension'!r}")
    try:
        frame = pd.read_csv(path) if kind == "csv" else pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except (ValueError, OSError, pd.errors.ParserError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: can't be read as {kind} ({' '.join(str(error).split())})") from error
    return series_of(frame, source=str(path), missing=missing)


def series_of(frame: pd.DataFrame, *, source: str = "the table", missing: Missing = "error") -> list[Series]:
    """The series of a table, long (``unique_id, ds, y``) or wide (a time column, then a column a series).

    Args:
        frame: Rows in any order. A long table without ``unique_id`` holds one series, called ``y``.
        source: What to call the table in error messages.
        missing: As in ``read_table``.

    Raises:
        DataError: On an empty table, a missing column, a stamp that is no date, a value that is no
            number, a duplicate stamp, a gap or an irregular step, or a missing value; the message
            names the series and the row.
        UsageError: On another ``missing``.
    """
    if missing not in ("error", "mask", "interpolate"):
        raise UsageError(f"missing: expected 'error', 'mask' or 'interpolate', got {missing!r}")
    frame = frame.rename(columns=lambda name: str(name).strip())
    if frame.empty:
        raise DataError(f"{source} has no rows")
    columns = list(frame.columns)
    if {"unique_id", "y"} & set(columns):
        wanted = ("ds", "y")
        absent = [name for name in wanted if name not in columns]
        if absent:
            raise DataError(
                f"{source}: column {absent[0]!r} is missing; a long table has the columns unique_id, ds, y "
                f"(found: {', '.join(columns)})"
            )
        stamps = _stamps(frame["ds"], "ds", source)
        values = _numbers(frame["y"], source)
        ids = (frame["unique_id"] if "unique_id" in columns else pd.Series("y", frame.index)).astype(str)
        parts = [(str(name), np.asarray(rows)) for name, rows in ids.groupby(ids, sort=False).indices.items()]
        return _check_one_frequency(
            [_series(name, stamps[rows], values[rows], source, missing) for name, rows in parts], source
        )
    time = next((name for name in columns if name.lower() in TIME_NAMES), None)
    if time is None or len(columns) < 2:
        raise DataError(
            f"{source}: expected the columns unique_id, ds, y, or a wide table with a time column "
            f"({', '.join(TIME_NAMES)}) and a column for each series; found: {', '.join(columns)}"
        )
    stamps = _stamps(frame[time], time, source)
    return [
        _series(name, stamps, _numbers(frame[name], source), source, missing)
        for name in columns
        if name != time
    ]


def infer_frequency(stamps: pd.Index) -> str:
    """The step between ascending stamps: a pandas offset alias, or the integer step as text.

    With gaps or stray stamps it is the commonest step.

    Raises:
        ValueError: With fewer than two stamps.
    """
    if len(stamps) < 2:
        raise ValueError("a frequency needs at least two stamps")
    if not isinstance(stamps, pd.DatetimeIndex):
        steps, counts = np.unique(np.diff(stamps.to_numpy()), return_counts=True)
        return str(int(steps[counts.argmax()]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas announces another return type
        for start in range(0, len(stamps) - 2, max(1, len(stamps) // 5)):
            found = pd.infer_freq(stamps[start : start + 12]) if len(stamps) - start > 2 else None
            if found is not None:
                return found if isinstance(found, str) else str(found.freqstr)
    steps, counts = np.unique(np.diff(stamps.asi8), return_counts=True)
    step = pd.Timedelta(int(steps[counts.argmax()]), unit=stamps.unit)
    return str(to_offset(step).freqstr)


def next_stamps(last: Any, frequency: str, n: int) -> pd.Index:
    """The ``n`` stamps that follow ``last``."""
    if not isinstance(last, pd.Timestamp):
        step = int(frequency)
        return pd.Index(np.arange(1, n + 1) * step + int(last))
    return pd.date_range(last, periods=n + 1, freq=frequency)[1:] if n else pd.DatetimeIndex([])


def step_numbers(stamps: pd.Index, frequency: str) -> NDArray[np.int64]:
    """How many steps of ``frequency`` lie between a fixed origin and each stamp.

    Rows that are a season apart have numbers a season apart, wherever a table begins: a model that has
    learned a seasonal pattern reads the phase from them.
    """
    if not isinstance(stamps, pd.DatetimeIndex):
        return stamps.to_numpy().astype(np.int64) // int(frequency)
    offset = to_offset(frequency)
    naive = stamps.tz_localize(None) if stamps.tz is not None else stamps
    try:
        step = pd.Timedelta(offset)
    except ValueError:  # months, weeks, business days: no fixed length
        return naive.to_period(_period(frequency)).asi8 // offset.n
    return (naive.as_unit("ns").asi8 // step.as_unit("ns").value).astype(np.int64)


def _period(frequency: str) -> str:
    """The period alias of an offset alias: ``MS`` and ``ME`` are both months."""
    name = "".join(letter for letter in frequency.partition("-")[0] if letter.isalpha())
    return {"MS": "M", "ME": "M", "QS": "Q", "QE": "Q", "YS": "Y", "YE": "Y"}.get(name, name)


def _stamps(column: pd.Series, name: str, source: str) -> pd.Index:
    if pd.api.types.is_integer_dtype(column):
        return pd.Index(column)
    if pd.api.types.is_float_dtype(column):
        row = _first(column.isna().to_numpy()) if column.isna().any() else 0
        raise DataError(f"{source}: row {row + 1}: {column.iloc[row]!r} in column {name!r} is not a date")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' advice about formats; what it can't read is named below
        stamps = pd.to_datetime(column, errors="coerce")
        if stamps.isna().any():  # the first row's format need not be every row's
            stamps = pd.to_datetime(column, errors="coerce", format="mixed")
    if stamps.isna().any():
        row = _first(stamps.isna().to_numpy())
        raise DataError(
            f"{source}: row {row + 1}: {str(column.iloc[row])!r} in column {name!r} is not a date; write "
            "dates as 2024-01-31 or 2024-01-31 14:00"
        )
    return pd.DatetimeIndex(stamps)


def _numbers(column: pd.Series, source: str) -> NDArray[np.float64]:
    numbers = pd.to_numeric(column, errors="coerce")
    bad = (numbers.isna() & column.notna()).to_numpy()
    if bad.any():
        row = _first(bad)
        what = f"{str(column.iloc[row])!r} in column {str(column.name)!r}"
        raise DataError(f"{source}: row {row + 1}: {what} is not a number")
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        row = _first(np.isinf(values))
        raise DataError(f"{source}: row {row + 1}: infinity in column {str(column.name)!r}")
    return values


def _series(
    name: str, stamps: pd.Index, values: NDArray[np.float64], source: str, missing: Missing
) -> Series:
    order = np.argsort(stamps.to_numpy(), kind="stable")
    stamps, values = stamps[order], values[order]
    repeated = stamps.duplicated()
    if repeated.any():
        raise DataError(
            f"{source}: series {name!r} has {int(repeated.sum())} duplicate stamps, the first is "
            f"{stamps[_first(repeated)]}; keep one row for each stamp"
        )
    if len(stamps) < 2:
        raise DataError(f"{source}: series {name!r} has {len(stamps)} row; a forecast needs a history")
    frequency = infer_frequency(stamps)
    grid = _grid(stamps, frequency)
    stray = ~stamps.isin(grid)
    if stray.any():
        raise DataError(
            f"{source}: series {name!r} is irregular: {stamps[_first(stray)]} does not lie on its step of "
            f"{frequency!r}; resample it to one step"
        )
    n_gaps, n_missing = len(grid) - len(stamps), int(np.isnan(values).sum())
    if (n_gaps or n_missing) and missing == "error":
        if n_gaps:
            where = grid[_first(~grid.isin(stamps))]
            what = f"has a gap: {n_gaps} stamps of its step {frequency!r} are missing, the first is {where}"
        else:
            where = stamps[_first(np.isnan(values))]
            what = f"has {n_missing} missing values (NaN), the first at {where}"
        raise DataError(f"{source}: series {name!r} {what}; --missing interpolate fills them")
    if missing == "mask":
        values = pd.Series(values, stamps).reindex(grid).to_numpy(dtype=np.float64)
        stamps = grid
    elif n_gaps or n_missing:
        filled = pd.Series(values, stamps).reindex(grid)
        if filled.notna().sum() < 2:
            raise DataError(f"{source}: series {name!r} has fewer than two values; nothing to fill from")
        stamps = grid
        values = filled.reset_index(drop=True).interpolate(limit_direction="both").to_numpy(dtype=np.float64)
    return Series(name, stamps, np.ascontiguousarray(values), frequency)


def _grid(stamps: pd.Index, frequency: str) -> pd.Index:
    if isinstance(stamps, pd.DatetimeIndex):
        return pd.date_range(stamps[0], stamps[-1], freq=frequency)
    return pd.Index(np.arange(stamps[0], stamps[-1] + 1, int(frequency)))


def _check_one_frequency(series: list[Series], source: str) -> list[Series]:
    """One model reads one frequency: what differs is an error."""
    first = series[0]
    for other in series[1:]:
        if other.frequency != first.frequency:
            raise DataError(
                f"{source}: series {first.unique_id!r} has the step {first.frequency!r}, but "
                f"{other.unique_id!r} has {other.frequency!r}; put them into tables of their own"
            )
    return series


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])
