"""When events happened: numbers in one unit, or ISO dates, to seconds."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import numbers_of
from mambakit.core.errors import DataError, UsageError

TimeUnit = Literal["s", "ms", "us", "ns"]

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_CALLED = ("seconds", "milliseconds", "microseconds", "nanoseconds")
# As seconds 1e11 is the year 5138, as milliseconds 1973: between them no event of a log is in doubt.
_BOUNDS = (1e11, 1e14, 1e17)
_TOO_LARGE = 1e20  # even for nanoseconds


def seconds_of(
    column: pd.Series, source: str, unit: TimeUnit | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Each row's time in seconds, and which rows hold something that is no time.

    Numbers are taken as seconds, milliseconds, microseconds or nanoseconds by their size, all of a column
    alike; from 1e20 on they are no times. Dates are ISO 8601; those without an offset are in UTC.

    Args:
        column: Numbers, dates, or text that is one of both.
        source: What to call the table.
        unit: The unit of numbers, where their size would mislead.

    Returns:
        ``(length,)`` float64, NaN where nothing is or no time is; ``(length,)`` bool.

    Raises:
        DataError: If numbers are in two units, numbers stand beside dates, or no row has a time.
        UsageError: On another unit.
    """
    if unit is not None and unit not in _PER_SECOND:
        raise UsageError(f"time_unit: expected one of {', '.join(_PER_SECOND)}, got {unit!r}")
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return _from_dates(column), np.zeros(len(column), dtype=bool)
    if pd.api.types.is_bool_dtype(column.dtype):
        raise DataError(f"{source}: column {column.name!r} holds true and false, not times")
    numbers, odd = numbers_of(column)
    if odd.any():
        seconds, odd = _from_text(column, numbers, odd, source, unit)
    else:
        seconds = _from_numbers(numbers, str(column.name), source, unit)
    if odd.any() and not np.isfinite(seconds).any():
        row = int(odd.argmax())
        raise DataError(
            f"{source}: column {column.name!r} holds no time: {str(column.iloc[row])!r} in row {row + 1} is "
            "neither a number nor an ISO date such as 2026-01-31 or 2026-01-31T14:00:00Z"
        )
    odd |= np.isinf(seconds)
    return np.where(odd, np.nan, seconds), odd


def moment(value: float | str, name: str) -> float:
    """One time that a person gave, in seconds: a number in the unit of its size, or an ISO date.

    Raises:
        UsageError: If it is neither, or too large for any unit.
    """
    try:
        number = float(value)
        seconds = float(_from_numbers(np.array([number]), name, name, None)[0])
    except ValueError:
        found = pd.to_datetime(pd.Series([str(value)]), errors="coerce", utc=True, format="ISO8601")
        number = seconds = float(_from_dates(found)[0])
    if not np.isfinite(seconds):
        more = ", which is too large even for nanoseconds" if np.isfinite(number) else ""
        raise UsageError(f"{name}: expected seconds or an ISO date such as 2026-01-31, got {value!r}{more}")
    return seconds


def _from_numbers(
    numbers: NDArray[np.float64], name: str, source: str, unit: TimeUnit | None
) -> NDArray[np.float64]:
    if unit is not None:
        return numbers / _PER_SECOND[unit]
    numbers = np.where(np.abs(numbers) >= _TOO_LARGE, np.inf, numbers)
    finite = np.isfinite(numbers)
    kinds = np.digitize(np.abs(numbers), _BOUNDS)
    there = np.unique(kinds[finite])
    if len(there) > 1:
        counts = np.bincount(kinds[finite], minlength=4)
        rare = int(min(there, key=lambda kind: counts[kind]))
        row = int((finite & (kinds == rare)).argmax())
        others = " and ".join(_CALLED[kind] for kind in there if kind != rare)
        raise DataError(
            f"{source}: column {name!r} mixes units of time: {counts[rare]} of {finite.sum()} numbers look "
            f"like {_CALLED[rare]} (the first: {numbers[row]:.15g} in row {row + 1}), the others like "
            f"{others}; write all in one unit, or name it with time_unit"
        )
    return numbers / list(_PER_SECOND.values())[there[0] if len(there) else 0]


def _from_text(
    column: pd.Series,
    numbers: NDArray[np.float64],
    odd: NDArray[np.bool_],
    source: str,
    unit: TimeUnit | None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Dates; what is neither a date nor nothing stays odd."""
    codes, texts = pd.factorize(column)  # each text is read once
    uniques = pd.Series(np.asarray(texts, dtype=object)).astype(str)
    asked = _per_text(odd, codes, len(texts))
    dates = np.full(len(texts) + 1, np.nan)
    found = pd.to_datetime(uniques[asked], errors="coerce", utc=True, format="ISO8601")
    dates[:-1][asked] = _from_dates(found)
    seconds = dates[codes]
    read = odd & ~np.isnan(seconds)
    plain = np.isfinite(numbers)
    if read.any() and plain.any():
        date, number = int(read.argmax()), int(plain.argmax())
        raise DataError(
            f"{source}: column {column.name!r} mixes dates ({str(column.iloc[date])!r} in row {date + 1}) "
            f"and numbers ({numbers[number]:.15g} in row {number + 1}); write all times alike"
        )
    if plain.any():
        return _from_numbers(numbers, str(column.name), source, unit), odd
    return seconds, odd & np.isnan(seconds)


def _per_text(rows: NDArray[np.bool_], codes: NDArray[np.int64], n_texts: int) -> NDArray[np.bool_]:
    marked = np.zeros(n_texts + 1, dtype=bool)
    marked[codes[rows]] = True
    return marked[:-1]


def _from_dates(column: pd.Series) -> NDArray[np.float64]:
    stamps = pd.DatetimeIndex(column)
    stamps = stamps.tz_localize("UTC") if stamps.tz is None else stamps.tz_convert("UTC")
    micro = stamps.as_unit("us")
    return np.where(micro.isna(), np.nan, micro.asi8 / 1e6)
