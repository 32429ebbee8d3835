"""Stamps and steps: what a column of dates says, which frequency it has, what comes next.

Sub-daily steps are counted in absolute time, so an hourly series with a time zone is regular over a change
of the clocks; steps of a day and more are counted on the calendar of the zone.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset

_NAT = np.iinfo(np.int64).min
# Months in a step of the calendar units that begin (S) or end (E) with a month.
MONTHS = {"MS": 1, "ME": 1, "QS": 3, "QE": 3, "YS": 12, "YE": 12}
_MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")


def calendar_frequency(stamps: pd.DatetimeIndex) -> str | None:
    """What pandas makes of the first stretch of twelve stamps that is regular to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas announces another return type
        for start in range(0, len(stamps) - 2, max(1, len(stamps) // 5)):
            found = pd.infer_freq(stamps[start : start + 12]) if len(stamps) - start > 2 else None
            if found is not None:
                return found if isinstance(found, str) else str(found.freqstr)
    return None


def month_day(frequency: str) -> int:
    """The day of the month that a step of months has in its name: 15 of ``MS-15``; 0 if it has none."""
    anchor = frequency.partition("-")[2]
    return int(anchor) if anchor.isdigit() else 0


def offset_of(frequency: str) -> pd.DateOffset:
    """A step as pandas' offset: an alias, or months between stamps of one day, as ``MS-15`` or ``3MS-15``.

    The 29th to 31st are the last day of a month that is too short for them.

    Raises:
        ValueError: If it is neither.
    """
    day = month_day(frequency)
    if not day:
        return to_offset(frequency)
    return pd.DateOffset(months=to_offset(frequency.partition("-")[0]).n, day=day)


def fixed_step(frequency: str) -> pd.Timedelta | None:
    """The length of a step that always has the same; None for months, business days and the like."""
    name = frequency.partition("-")[0]
    if name.endswith("W"):
        return pd.Timedelta(weeks=int(name[:-1] or 1))
    try:
        return pd.Timedelta(to_offset(frequency))
    except ValueError:
        if name.endswith("D"):  # a day is no fixed length to some versions of pandas
            return pd.Timedelta(days=int(name[:-1] or 1))
        return None


def step_name(step: pd.Timedelta, weekday: int) -> str:
    """A pandas offset alias for a fixed step; weeks are anchored at a weekday (0 is Monday)."""
    weeks, rest = divmod(step, pd.Timedelta(weeks=1))
    if weeks and not rest:
        return f"{weeks if weeks > 1 else ''}W-{WEEKDAYS[weekday]}"
    days, rest = divmod(step, pd.Timedelta(days=1))
    if days and not rest:
        return f"{days if days > 1 else ''}D"
    return str(to_offset(step).freqstr)


def month_name(n_months: int, month: int, end: bool) -> str:
    """A pandas offset alias for steps of so many months that begin or end with a month (1 is January)."""
    letter = "E" if end else "S"
    years, rest = divmod(n_months, 12)
    if not rest:
        return f"{years if years > 1 else ''}Y{letter}-{_MONTH_NAMES[month - 1]}"
    if n_months == 3:
        first = (
            month - 1
        ) % 3  # quarters are named by their first month if they begin, by the last if they end
        return f"Q{letter}-{_MONTH_NAMES[first + 9 if end else first]}"
    return f"{n_months if n_months > 1 else ''}M{letter}"


def next_stamps(last: Any, frequency: str, n: int) -> pd.Index:
    """The ``n`` stamps that follow ``last``."""
    if not isinstance(last, pd.Timestamp):
        step = int(frequency)
        return pd.Index(np.arange(1, n + 1) * step + int(last))
    return pd.date_range(last, periods=n + 1, freq=offset_of(frequency))[1:] if n else pd.DatetimeIndex([])


def step_numbers(stamps: pd.Index, frequency: str) -> NDArray[np.int64]:
    """How many steps of ``frequency`` lie between a fixed origin and each stamp.

    Rows that are a season apart have numbers a season apart, wherever a table begins: a model that has
    learned a seasonal pattern reads the phase from them.
    """
    if not isinstance(stamps, pd.DatetimeIndex):
        return stamps.to_numpy().astype(np.int64) // int(frequency)
    step = None if "W" in frequency else fixed_step(frequency)
    if step is None:  # months, weeks, business days
        naive = clock(stamps, absolute=False)
        if _period(frequency) == "B":
            return business_days(naive)
        n = to_offset(frequency.partition("-")[0] if month_day(frequency) else frequency).n
        return naive.to_period(_period(frequency)).asi8 // n
    own = clock(stamps, absolute=step < pd.Timedelta(days=1))
    return own.asi8 // ticks(step, own.unit)


def clock(stamps: pd.DatetimeIndex, *, absolute: bool) -> pd.DatetimeIndex:
    """Stamps without a zone: in UTC, or as the clock on the wall shows them."""
    if stamps.tz is None:
        return stamps
    return (stamps.tz_convert("UTC") if absolute else stamps).tz_localize(None)


def business_days(stamps: pd.DatetimeIndex) -> NDArray[np.int64]:
    """The number of each stamp's working day, Monday to Friday; a weekend has its Friday's."""
    days = stamps.normalize().as_unit("s").asi8 // 86400 - 4  # 1970-01-05 was a Monday
    week, day = np.divmod(days, 7)
    return week * 5 + np.minimum(day, 4)


def ticks(length: pd.Timedelta, unit: str) -> int:
    """A length of time in units of an index.

    Raises:
        OverflowError: If it is no whole number of them.
    """
    nanoseconds = length.as_unit("ns").value
    whole, rest = divmod(nanoseconds, {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}[unit])
    if rest:
        raise OverflowError(f"{length} is no whole number of {unit}")
    return int(whole)


def parse_stamps(column: pd.Series) -> tuple[pd.Index, NDArray[np.bool_]]:
    """The stamps of a column, and which rows hold none.

    Whole numbers stay numbers. Text with an offset (``+01:00``, ``Z``) becomes UTC; where some rows have
    an offset and some have none, those without are refused. A column with a zone keeps it. Dates outside
    the years 1677 to 2262, which nanoseconds can't hold, are fine.

    Returns:
        ``(length,)`` and ``(length,)``; a refused row has any stamp.
    """
    kind = column.dtype
    if isinstance(kind, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        stamps = pd.DatetimeIndex(column)
        return _microseconds(stamps), np.asarray(stamps.isna())
    if pd.api.types.is_bool_dtype(kind):
        return pd.RangeIndex(len(column)), np.ones(len(column), dtype=bool)
    if pd.api.types.is_numeric_dtype(kind):
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = ~np.isfinite(numbers)
        if pd.api.types.is_integer_dtype(kind) and not bad.any():
            return pd.Index(column.to_numpy(dtype=np.int64)), bad
        whole = np.where(bad, 0.0, numbers)
        return pd.Index(whole.astype(np.int64) if (whole == np.floor(whole)).all() else whole), bad
    codes, texts = pd.factorize(column)  # each text is read once
    uniques = pd.Series(np.asarray(texts, dtype=object)).astype(str)
    zoned = uniques.str.contains(r"\d[T ]\d{1,2}:\d.*(?:Z|[+-]\d{2}:?\d{2})$", regex=True).to_numpy()
    utc = bool(zoned.any())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' advice about formats; what it can't read is named later
        found = pd.to_datetime(uniques, errors="coerce", utc=utc)
        if found.isna().any():  # the first row's format need not be every row's
            found = pd.to_datetime(uniques, errors="coerce", utc=utc, format="mixed")
    stamps = _microseconds(pd.DatetimeIndex(found))
    lost = np.asarray(stamps.isna()) | (~zoned if utc else False)
    lost = np.append(lost, True)  # code -1: missing
    if not len(stamps):
        return pd.RangeIndex(len(column)), np.ones(len(column), dtype=bool)
    return stamps[codes], lost[codes]


def daylight_hint(stamp: Any, step: pd.Timedelta | None) -> str:
    """What to say of a repeated or missing stamp that looks like a change of the clocks; empty if it doesn't.

    Clocks change on Sundays between midnight and four, in March or April and in October or November.
    """
    if not isinstance(stamp, pd.Timestamp) or stamp.tz is not None:
        return ""
    if step is not None and step >= pd.Timedelta(days=1):
        return ""
    if stamp.day_of_week != 6 or stamp.hour > 3 or stamp.month not in (3, 4, 10, 11):
        return ""
    return (
        "; it looks like a change to or from daylight saving time: write stamps with their offset "
        f"({stamp:%Y-%m-%d %H:%M}+01:00) or in UTC"
    )


def _microseconds(stamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """One unit for all, unless that loses digits."""
    if stamps.unit == "us":
        return stamps
    if stamps.unit == "ns":
        numbers = stamps.asi8
        if (numbers[numbers != _NAT] % 1000).any():
            return stamps
    return stamps.as_unit("us")


def _period(frequency: str) -> str:
    """The period alias of an offset alias: ``MS`` and ``ME`` are both months."""
    name = "".join(letter for letter in frequency.partition("-")[0] if letter.isalpha())
    return {"MS": "M", "ME": "M", "QS": "Q", "QE": "Q", "YS": "Y", "YE": "Y"}.get(name, name)
