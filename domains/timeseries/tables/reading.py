"""From a file or a data frame to series: the rows of a long table, the columns of a wide one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import (
    clean_names,
    find_column,
    id_codes,
    numbers_of,
    read_columns,
    shortened,
)
from mambakit.core.errors import DataError
from mambakit.domains.timeseries.tables.ahead import Ahead, append_future
from mambakit.domains.timeseries.tables.covariates import (
    read_side,
    spread_frame,
    static_of,
    static_table_of,
    typed,
)
from mambakit.domains.timeseries.tables.filling import fill_frame, fill_values
from mambakit.domains.timeseries.tables.layout import Faults, Layout, gap_sentence, lay_out
from mambakit.domains.timeseries.tables.series import (
    TIME_NAMES,
    Columns,
    LeftOut,
    Missing,
    Series,
    Table,
)
from mambakit.domains.timeseries.tables.stamps import parse_stamps

Source: TypeAlias = Path | str | pd.DataFrame


@dataclass(frozen=True)
class Taken:
    """A table as it was read, its columns found.

    Attributes:
        frame: The columns that are used, rows numbered from zero.
        columns: Their names in the table; ``id`` is empty if it has none.
        source: What to call the table.
        wide: Whether it has a column a series.
        unused: Columns that nobody asked for.
    """

    frame: pd.DataFrame
    columns: Columns
    source: str
    wide: bool
    unused: list[str]


@dataclass(frozen=True)
class _Rows:
    """The rows of a long table by column, each in the table's order.

    Attributes:
        codes: Which series each belongs to, -1 for none.
        stamps, values: As they stand.
        covariates: Past and future ones, typed.
        static: Of each series.
        n_rows: Of each series.
    """

    codes: NDArray[np.int64]
    stamps: pd.Index
    values: NDArray[np.float64]
    covariates: dict[str, pd.Series]
    static: Mapping[int, dict[str, Any]]
    n_rows: NDArray[np.int64]


def take_in(source: Source, columns: Columns, name: str | None) -> Taken:
    """Reads a table and finds its columns.

    Raises:
        DataError: If it can't be read, has no rows, or lacks a column.
    """
    called = name or ("the table" if isinstance(source, pd.DataFrame) else str(source))
    own, wide = columns, False

    def choose(names: list[str]) -> tuple[list[str], list[str], list[str]]:
        nonlocal own, wide
        own, wide = _find(names, columns, called)
        if wide:
            return names, [], []
        wanted = [one for one in (own.id, own.time, own.target, *own.covariates) if one]
        return wanted, [own.id] if own.id else [], [own.target]

    if isinstance(source, pd.DataFrame):
        names = clean_names(list(source.columns), called)
        frame = source.set_axis(names, axis=1)[choose(names)[0]].reset_index(drop=True)
    else:
        frame, names = read_columns(source, choose)
    if frame.empty:
        raise DataError(f"{called} has no rows")
    unused = [] if wide else [one for one in names if one not in frame.columns]
    return Taken(frame, own, called, wide, unused)


def read_long(
    taken: Taken,
    *,
    missing: Missing,
    irregular: bool,
    future_table: Source | None = None,
    static_table: Source | None = None,
    static_names: Sequence[str] = (),
) -> Table:
    """The series of a long table; ``table.read_table`` says how."""
    columns, source, frame = taken.columns, taken.source, taken.frame
    notes = [f"{source}: columns that are not read: {shortened(taken.unused)}"] if taken.unused else []
    ahead = None
    if future_table is not None:
        frame, ahead = append_future(frame, columns, future_table)
    codes, names = _ids(frame, columns)
    faults = Faults(names)
    rows, note = _checked(frame, codes, columns, source, faults, static_table, static_names)
    notes += [note] if note else []
    for name in list(frame):  # its memory goes; nothing else reads this frame
        del frame[name]
    codes = rows.codes if ahead is None else ahead.without_late(rows.codes, rows.stamps, rows.values, names)
    layout = _lay_out(codes, rows.stamps, faults, source, irregular=irregular)
    series = _cut(rows, layout, columns, faults, missing, ahead)
    if ahead is not None:
        sentence = ahead.sentence(series)
        if sentence and missing == "error":
            raise DataError(sentence)
        notes += [sentence] if sentence else []
    nameless = int((codes < 0).sum()) - (0 if ahead is None else len(ahead.late))
    left = [LeftOut("", f"{nameless} rows have no {columns.id}", nameless)] if nameless else []
    left += [LeftOut(names[one], why, int(rows.n_rows[one])) for one, why in sorted(faults.reasons.items())]
    return _table(series, left, notes, source, len(names))


def read_wide(taken: Taken, *, missing: Missing, irregular: bool) -> Table:
    """The series of a wide table, which share their stamps; ``table.read_table`` says how."""
    frame, source, time = taken.frame, taken.source, taken.columns.time
    names = [name for name in frame.columns if name != time]
    stamps, lost = parse_stamps(frame[time])
    every = Faults(["the table"])
    codes = np.zeros(len(frame), dtype=np.int64)
    every.add_rows(codes, lost, lambda row: _no_date(frame[time].iloc[row], time))
    layout = _lay_out(codes, stamps, every, source, irregular=irregular, who="{}")
    if every.reasons:
        raise DataError(f"{source}: {every.reasons[0]}")
    faults, of_one = Faults(names), layout.stamps[0]
    holes = _inserted(layout)
    values = np.empty((len(names), len(of_one)))
    for one, name in enumerate(names):
        numbers, odd = numbers_of(frame[name])
        alone = np.full(len(frame), one)
        faults.add_rows(alone, odd, functools.partial(_no_number_in, frame[name]))
        faults.add_rows(alone, np.isinf(numbers), f"infinity in column {name!r}")
        values[one] = layout.spread(numbers)
        if np.isnan(values[one]).all():
            faults.add(one, f"series {name!r} has no value: its column is empty")
        elif missing != "mask" and one not in faults.reasons:
            _complete(one, values[one], of_one, layout.frequencies[0], holes, faults, missing)
    series = [
        Series(name, of_one, values[one], layout.frequencies[0])
        for one, name in enumerate(names)
        if one not in faults.reasons
    ]
    left = [LeftOut(names[one], why, len(frame)) for one, why in sorted(faults.reasons.items())]
    return _table(series, left, [], source, len(names))


def _checked(
    frame: pd.DataFrame,
    codes: NDArray[np.int64],
    columns: Columns,
    source: str,
    faults: Faults,
    static_table: Source | None,
    static_names: Sequence[str],
) -> tuple[_Rows, str]:
    """The columns as what they should be, faulty series named, and a note about the static table."""
    names, target = faults.names, columns.target
    stamps, lost = parse_stamps(frame[columns.time])
    faults.add_rows(codes, lost, lambda row: _no_date(frame[columns.time].iloc[row], columns.time))
    values, odd = numbers_of(frame[target])
    faults.add_rows(codes, odd, functools.partial(_no_number_in, frame[target]))
    faults.add_rows(codes, np.isinf(values), f"infinity in column {target!r}")
    covariates = typed(frame, [*columns.past, *columns.future], codes, faults, source)
    note = ""
    if static_table is None:
        own = typed(frame, columns.static, codes, faults, source)
        static = static_of(own, codes, faults)
    else:
        side = read_side(static_table, [columns.id, *static_names], "the static table")
        static, note = static_table_of(side, columns.id, faults, "the static table")
    named = codes >= 0
    n_rows = np.bincount(codes[named], minlength=len(names))
    observed = np.bincount(codes[named & ~np.isnan(values)], minlength=len(names))
    for one in np.flatnonzero(observed == 0).tolist():
        faults.add(one, f"series {names[one]!r} has no value: column {target!r} is empty in all its rows")
    return _Rows(codes, stamps, values, covariates, static, n_rows), note


def _cut(
    rows: _Rows, layout: Layout, columns: Columns, faults: Faults, missing: Missing, ahead: Ahead | None
) -> list[Series]:
    """Each series out of the columns: views, not copies."""
    values = layout.spread(rows.values)
    past = spread_frame({name: rows.covariates[name] for name in columns.past}, layout)
    future = spread_frame({name: rows.covariates[name] for name in columns.future}, layout)
    holes = _inserted(layout)
    now, known = _ends(values, future, layout.offsets)
    series = []
    for i, one in enumerate(layout.series):
        first, here, last = int(layout.offsets[i]), int(now[i]), int(known[i])
        frequency, all_stamps = layout.frequencies[i], layout.stamps[i]
        stamps, own = all_stamps[: here - first], values[first:here]
        if ahead is not None and holes is not None:
            ahead.note_missing(faults.names[one], all_stamps[here - first : last - first], holes[here:last])
        if missing != "mask":
            inserted = None if holes is None else holes[first:here]
            if not _complete(one, own, stamps, frequency, inserted, faults, missing):
                continue
        beside = past.iloc[first:here] if columns.past else None
        after = future.iloc[first:last] if columns.future else None
        if after is not None and not frequency:
            after = after.set_axis(all_stamps[: last - first])
        if missing == "interpolate":
            beside, after = fill_frame(beside), fill_frame(after)
        series.append(Series(faults.names[one], stamps, own, frequency, beside, after, rows.static[one]))
    return series


def _complete(
    one: int,
    values: NDArray[np.float64],
    stamps: pd.Index,
    frequency: str,
    inserted: NDArray[np.bool_] | None,
    faults: Faults,
    missing: Missing,
) -> bool:
    """Fills what is missing in place, or names it as a fault; whether the series can be used."""
    said = gap_sentence(stamps, frequency, values, inserted)
    if not said:
        return True
    name = f"series {faults.names[one]!r}"
    if missing == "error":
        faults.add(one, f"{name} {said}; --missing interpolate fills them")
    elif np.isfinite(values).sum() < 2:
        faults.add(one, f"{name} has fewer than two values; nothing to fill from")
    else:
        fill_values(values)
        return True
    return False


def _ends(
    values: NDArray[np.float64], future: pd.DataFrame, offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each series' targets end, and where what is known of it ends.

    Trailing rows without a target are ahead if one of them has a future covariate.
    """
    ends = offsets[1:].copy()
    if not future.shape[1] or not len(offsets) > 1:
        return ends, ends
    rows = np.arange(len(values))
    targets = np.maximum.reduceat(np.where(np.isnan(values), -1, rows), offsets[:-1]) + 1
    there = future.notna().any(axis=1).to_numpy()
    known = np.maximum.reduceat(np.where(there, rows, -1), offsets[:-1]) + 1
    ahead = known > targets
    return np.where(ahead, targets, ends), np.where(ahead, known, ends)


def _lay_out(
    codes: NDArray[np.int64], stamps: pd.Index, faults: Faults, source: str, *, irregular: bool, **more: str
) -> Layout:
    try:
        return lay_out(codes, stamps, faults, irregular=irregular, **more)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _inserted(layout: Layout) -> NDArray[np.bool_] | None:
    """Which rows of a layout the table lacks; None if none."""
    if layout.places is None:
        return None
    holes = np.ones(int(layout.offsets[-1]), dtype=bool)
    holes[layout.places] = False
    return holes


def _table(series: list[Series], left: list[LeftOut], notes: list[str], source: str, n_series: int) -> Table:
    if left and (n_series <= 1 or not series):
        more = f" (and {len(left) - 1} more can't be used)" if len(left) > 1 else ""
        raise DataError(f"{source}: {left[0].reason}{more}")
    return Table(series, left, notes)


def _find(names: list[str], columns: Columns, source: str) -> tuple[Columns, bool]:
    """The columns as a table calls them, and whether it is wide."""
    lower = {name.lower() for name in names}
    time = _time_column(names, columns.time)
    says_long = columns.target != Columns().target or columns.covariates
    if not says_long and not {columns.id.lower(), columns.target.lower()} & lower:
        if time is None or len(names) < 2:
            raise DataError(
                f"{source}: expected the columns {columns.id}, {columns.time}, {columns.target}, or a wide "
                f"table with a time column ({', '.join(TIME_NAMES)}) and a column for each series; "
                f"found: {shortened(names)}"
            )
        return Columns(id="", time=time, target=""), True
    hint = f"a long table has the columns {columns.id}, {columns.time}, {columns.target}; "
    has_id = columns.id.lower() in lower or columns.id != Columns().id
    found = Columns(
        id=find_column(columns.id, names, source) if has_id else "",
        time=time or find_column(columns.time, names, source, hint=hint),
        target=find_column(columns.target, names, source, hint=hint),
        past=tuple(find_column(name, names, source, "covariate") for name in columns.past),
        future=tuple(find_column(name, names, source, "covariate") for name in columns.future),
        static=tuple(find_column(name, names, source, "covariate") for name in columns.static),
    )
    return found, False


def _time_column(names: list[str], wanted: str) -> str | None:
    lower = [name.lower() for name in names]
    options = (wanted, *TIME_NAMES) if wanted == Columns().time else (wanted,)
    return next((names[lower.index(one.lower())] for one in options if one.lower() in lower), None)


def _ids(frame: pd.DataFrame, columns: Columns) -> tuple[NDArray[np.int64], list[str]]:
    """Each row's series by number and their names; one series of the target's name without a column."""
    if not columns.id:
        return np.zeros(len(frame), dtype=np.int64), [columns.target]
    return id_codes(frame[columns.id])


def _no_date(value: Any, column: str) -> str:
    if pd.isna(value):
        return f"column {column!r} has no date"
    timed = isinstance(value, str) and value[:4].isdigit() and ":" in value
    return (
        f"{str(value)!r} in column {column!r} is not a date"
        + (", or has no offset (+01:00) where other rows have one" if timed else "")
        + "; write dates as 2024-01-31 or 2024-01-31 14:00"
    )


def _no_number_in(column: pd.Series, row: int) -> str:
    return f"{str(column.iloc[row])!r} in column {str(column.name)!r} is not a number"
