"""The rows of a table, sorted by series and time and laid on each series' step; misfits are named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.domains.timeseries.tables.regular import FEW, common_frequency, fitting, frequencies, positions
from mambakit.domains.timeseries.tables.stamps import daylight_hint, fixed_step, offset_of

# A typing error in one stamp must not fill the memory with missing rows.
_LONGEST = 10_000
_SPARSEST = 100


@dataclass
class Faults:
    """Why series can't be used: the first reason found of each.

    Attributes:
        names: The series, by number.
        reasons: By number of series.
    """

    names: Sequence[str]
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, one: int, reason: str) -> None:
        """Remember why a series can't be used, unless a reason is known already."""
        self.reasons.setdefault(int(one), reason)

    def add_rows(
        self, codes: NDArray[np.int64], bad: NDArray[np.bool_], say: Callable[[int], str] | str
    ) -> None:
        """Remember each series that has a bad row, with what to say of the first (by its number)."""
        rows = np.flatnonzero(bad & (codes >= 0))
        if len(rows):
            series, first = np.unique(codes[rows], return_index=True)
            for one, place in zip(series.tolist(), first.tolist(), strict=True):
                row = int(rows[place])
                self.add(one, f"row {row + 1}: {say(row) if callable(say) else say}")

    def free(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows belong to a series without a fault."""
        good = np.ones(len(self.names) + 1, dtype=bool)
        good[[*self.reasons, -1]] = False  # code -1: no series
        return good[codes]


@dataclass(frozen=True)
class Layout:
    """Where each row goes.

    Attributes:
        series: Numbers of the series that are left, ``(n_series,)``.
        rows: The table's rows in order of series and time, ``(n_rows,)``.
        begins: Where each series begins among ``rows``, ``(n_series + 1,)``.
        stamps: Of each series, with those inserted in gaps.
        frequencies: Of each series; empty if irregular.
        offsets: Where each series begins among all rows with those inserted, ``(n_series + 1,)``.
        places: Where each of ``rows`` stands there; None if nothing is inserted.
    """

    series: list[int]
    rows: NDArray[np.int64]
    begins: NDArray[np.int64]
    stamps: list[pd.Index]
    frequencies: list[str]
    offsets: NDArray[np.int64]
    places: NDArray[np.int64] | None

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values of the table's rows in this order, NaN in what is inserted; never a view."""
        own = values.copy() if self.in_order(len(values)) else values[self.rows]
        if self.places is None:
            return own
        full = np.full(int(self.offsets[-1]), np.nan)
        full[self.places] = own
        return full

    def spread_column(self, column: pd.Series) -> pd.Series | pd.Categorical | NDArray[np.float64]:
        """The same of a covariate: numbers or categories."""
        if not isinstance(column.dtype, pd.CategoricalDtype):
            return self.spread(column.to_numpy())
        codes = self.spread(column.cat.codes.to_numpy().astype(np.float64))
        return pd.Categorical.from_codes(np.nan_to_num(codes, nan=-1).astype(np.int32), dtype=column.dtype)

    def in_order(self, n_rows: int) -> bool:
        """Whether the table's rows stand in this order already."""
        n = len(self.rows)
        return n == n_rows and n > 0 and bool((self.rows[1:] > self.rows[:-1]).all())


def lay_out(
    codes: NDArray[np.int64], stamps: pd.Index, faults: Faults, *, irregular: bool, who: str = "series {!r}"
) -> Layout:
    """Sorts the rows of the series without a fault and lays each on its step.

    Series with duplicate stamps, of another step than most, with a stamp off their step or with next to
    nothing but gaps are added to ``faults``.

    Args:
        codes: Each row's series; -1 for none.
        stamps: Each row's.
        faults: What is known of bad series; more are added.
        irregular: Take any ascending stamps as they are.
        who: What to call a series in a sentence.

    Raises:
        DataError: If no step is that of most series.
    """
    names = [who.format(name) for name in faults.names]
    rows, begins, sorted_stamps, series = _sorted(codes, stamps, faults)
    numbers = sorted_stamps.asi8 if isinstance(sorted_stamps, pd.DatetimeIndex) else sorted_stamps.to_numpy()
    same = np.zeros(len(rows), dtype=bool)
    same[1:] = numbers[1:] == numbers[:-1]
    same[begins[:-1]] = False
    if same.any():
        of_row = np.repeat(np.arange(len(series)), np.diff(begins))
        where = np.flatnonzero(same)
        for one, first, count in zip(*np.unique(of_row[where], return_index=True, return_counts=True)):  # noqa: B905
            own = sorted_stamps[begins[one] : begins[one + 1]].unique()
            step = (own[1:] - own[:-1]).min() if isinstance(own, pd.DatetimeIndex) and len(own) > 1 else None
            stamp = sorted_stamps[where[first]]
            faults.add(
                series[one],
                f"{names[series[one]]} has {count} duplicate stamps, the first is {stamp}; keep one row for "
                f"each stamp{daylight_hint(stamp, step)}",
            )
        rows, begins, sorted_stamps, series = _sorted(codes, stamps, faults)
    if irregular:
        parts = [sorted_stamps[a:b] for a, b in itertools.pairwise(begins)]
        return Layout(series, rows, begins, parts, [""] * len(series), begins, None)
    accepted, even = _accepted(sorted_stamps, begins, series, names, faults)
    if even and not any(one in faults.reasons for one in series):
        parts = [sorted_stamps[a:b] for a, b in itertools.pairwise(begins)]
        return Layout(series, rows, begins, parts, accepted, begins, None)
    place, lengths = _placed(sorted_stamps, begins, series, accepted, names, faults)
    if any(one in faults.reasons for one in series):
        kept = [i for i, one in enumerate(series) if one not in faults.reasons]
        inside = np.repeat([one not in faults.reasons for one in series], np.diff(begins)).astype(bool)
        rows, place, sorted_stamps = rows[inside], place[inside], sorted_stamps[inside]
        begins = _offsets(np.diff(begins)[kept])
        lengths, accepted, series = lengths[kept], [accepted[i] for i in kept], [series[i] for i in kept]
    offsets = _offsets(lengths)
    gaps = lengths != np.diff(begins)
    parts = []
    for i, (first, end) in enumerate(itertools.pairwise(begins)):
        own = sorted_stamps[first:end]
        parts.append(_grid(own, accepted[i], int(lengths[i])) if gaps[i] else own)
    places = place + np.repeat(offsets[:-1], np.diff(begins)) if gaps.any() else None
    return Layout(series, rows, begins, parts, accepted, offsets, places)


def _sorted(
    codes: NDArray[np.int64], stamps: pd.Index, faults: Faults
) -> tuple[NDArray[np.int64], NDArray[np.int64], pd.Index, list[int]]:
    """Rows of good series by series and time, where each begins, their stamps, and which series they are."""
    good = faults.free(codes)
    rows = np.flatnonzero(good) if not good.all() else np.arange(len(codes))
    if not len(rows):
        return rows, np.zeros(1, dtype=np.int64), stamps[:0], []
    own = codes if len(rows) == len(codes) else codes[rows]
    numbers = stamps.asi8 if isinstance(stamps, pd.DatetimeIndex) else stamps.to_numpy()
    numbers = numbers if len(rows) == len(codes) else numbers[rows]
    rising = (own[1:] > own[:-1]) | ((own[1:] == own[:-1]) & (numbers[1:] >= numbers[:-1]))
    if not rising.all():
        order = np.lexsort((numbers, own))
        rows, own = rows[order], own[order]
    begins = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
    in_place = len(rows) == len(codes) and bool(rising.all())
    return (
        rows,
        np.append(begins, len(rows)).astype(np.int64),
        stamps if in_place else stamps[rows],
        own[begins].tolist(),
    )


def _accepted(
    stamps: pd.Index,
    begins: NDArray[np.int64],
    series: list[int],
    names: list[str],
    faults: Faults,
) -> tuple[list[str], bool]:
    """The step of each series, those of another step than most being faulty; are all rows there?"""
    if not series:
        return [], True
    if not isinstance(stamps, pd.DatetimeIndex) and stamps.dtype.kind == "f":
        for one in series:
            faults.add(
                one,
                f"{names[one]} has stamps that are no whole numbers, and so no step; --irregular takes them",
            )
        return [""] * len(series), True
    found, even = frequencies(stamps, begins)
    lengths = np.diff(begins)
    common = common_frequency(found, lengths)
    if common is None:
        first = next(i for i, name in enumerate(found) if name)
        other = next(i for i, name in enumerate(found) if name and _kind(name) != _kind(found[first]))
        raise DataError(
            f"{names[series[first]]} has the step {found[first]!r}, but {faults.names[series[other]]!r} has "
            f"{found[other]!r}, and no step is that of most series; put them into tables of their own"
        )
    unlike = [i for i, name in enumerate(found) if not name or _kind(name) != _kind(common)]
    few = [i for i in unlike if lengths[i] <= FEW and common]
    fits = fitting(stamps, begins, few, common)
    for i in unlike:
        if i in fits:
            found[i] = common
        elif not found[i]:
            what = (
                f"1 row, {stamps[begins[i]]}, which lies on no step of {common!r}"
                if common
                else "1 row; a forecast needs a history, and no other series tells the step"
            )
            faults.add(series[i], f"{names[series[i]]} has {what}")
        else:
            faults.add(
                series[i],
                f"{names[series[i]]} has the step {found[i]!r}, but most series have {common!r}; "
                "put it into a table of its own",
            )
    return found, bool(even.all()) and not unlike


def _placed(
    stamps: pd.Index,
    begins: NDArray[np.int64],
    series: list[int],
    accepted: list[str],
    names: list[str],
    faults: Faults,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row's step number inside its series, and how many steps each series spans."""
    place = np.zeros(len(stamps), dtype=np.int64)
    stray = np.zeros(len(stamps), dtype=bool)
    counts = np.diff(begins)
    usable = [i for i, one in enumerate(series) if one not in faults.reasons]
    for name in dict.fromkeys(accepted[i] for i in usable):
        which = [i for i in usable if accepted[i] == name]
        if len(which) == len(series):
            place, stray = positions(stamps, begins, name)
            break
        inside = np.repeat(np.isin(np.arange(len(series)), which), counts)
        place[inside], stray[inside] = positions(stamps[inside], _offsets(counts[which]), name)
    lengths = np.ones(len(series), dtype=np.int64)
    if len(series):
        lengths = place[begins[1:] - 1] + 1
    for i in np.unique(np.repeat(np.arange(len(series)), counts)[stray]).tolist():
        first = begins[i] + int(np.flatnonzero(stray[begins[i] : begins[i + 1]])[0])
        faults.add(
            series[i],
            f"{names[series[i]]} is irregular: {stamps[first]} does not lie on its step of {accepted[i]!r}; "
            f"resample it to one step, or take its stamps as they are with --irregular{_as_dates(stamps)}",
        )
    if _as_dates(stamps):
        for i in np.flatnonzero(lengths != counts).tolist():
            faults.add(
                series[i],
                f"{names[series[i]]} has stamps such as {stamps[begins[i]]}, which as whole numbers have gaps"
                + _as_dates(stamps),
            )
    for i in np.flatnonzero(lengths > np.maximum(_LONGEST, _SPARSEST * counts)).tolist():
        own = stamps[begins[i] : begins[i + 1]]
        faults.add(
            series[i],
            f"{names[series[i]]} has {counts[i]} rows on {lengths[i]} steps of {accepted[i]!r} from {own[0]} "
            f"to {own[-1]}: nearly all are missing; look for a wrong stamp",
        )
    return place, lengths


def _grid(stamps: pd.Index, frequency: str, length: int) -> pd.Index:
    if not isinstance(stamps, pd.DatetimeIndex):
        return pd.Index(np.arange(length, dtype=np.int64) * int(frequency) + int(stamps[0]))
    return pd.date_range(stamps[0], periods=length, freq=offset_of(frequency)).as_unit(stamps.unit)


def _as_dates(stamps: Any) -> str:
    """A hint where whole numbers look like dates."""
    if isinstance(stamps, pd.DatetimeIndex) or not len(stamps):
        return ""
    looks = stamps.min() >= 1900_01_01 and stamps.max() <= 2199_12_31
    return "; write dates as 2024-01-31, not as 20240131" if looks else ""


def gap_sentence(
    stamps: pd.Index, frequency: str, values: NDArray[np.float64], inserted: NDArray[np.bool_] | None
) -> str:
    """What is missing in a series; empty if nothing is.

    Args:
        stamps, values: Of the series, ``(length,)``.
        frequency: Its step.
        inserted: Which rows the table lacks; None if none.
    """
    if inserted is not None and inserted.any():
        where = stamps[int(np.flatnonzero(inserted)[0])]
        what = f"has a gap: {int(inserted.sum())} stamps of its step {frequency!r} are missing, the first is"
        hint = daylight_hint(where, fixed_step(frequency) if isinstance(where, pd.Timestamp) else None)
        return f"{what} {where}{hint}"
    lost = np.isnan(values)
    if lost.any():
        return f"has {int(lost.sum())} missing values (NaN), the first at {stamps[int(lost.argmax())]}"
    return ""


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def _kind(name: str) -> str:
    """Weeks that begin on different days are of one kind."""
    return name.partition("-")[0]
