"""A table of future covariates: its rows follow the targets' table; what is wrong with it is one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import id_codes, shortened
from mambakit.domains.timeseries.tables.covariates import read_side
from mambakit.domains.timeseries.tables.series import Columns, Series


@dataclass
class Ahead:
    """What is known of the future table while the rows are read.

    Attributes:
        source: What to call it.
        begins: The first of its rows among all.
        unknown: Series that the table of targets lacks.
        late: Rows at or before their series' last target: series and stamp.
        missing: Steps ahead that have no row.
    """

    source: str
    begins: int
    unknown: list[str]
    late: list[tuple[str, Any]] = field(default_factory=list)
    missing: list[tuple[str, Any]] = field(default_factory=list)

    def without_late(
        self,
        codes: NDArray[np.int64],
        stamps: pd.Index,
        values: NDArray[np.float64],
        names: Sequence[str],
    ) -> NDArray[np.int64]:
        """Each row's series, -1 for the rows that come too late to say anything."""
        numbers = stamps.asi8 if isinstance(stamps, pd.DatetimeIndex) else stamps.to_numpy()
        last = np.full(len(names) + 1, numbers.min() - 1)
        observed = np.flatnonzero(~np.isnan(values) & (codes >= 0))
        np.maximum.at(last, codes[observed], numbers[observed])
        late = numbers <= last[codes]
        late[: self.begins] = False
        late &= codes >= 0
        self.late = [(names[codes[row]], stamps[row]) for row in np.flatnonzero(late)]
        return np.where(late, -1, codes)

    def note_missing(self, name: str, stamps: pd.Index, holes: NDArray[np.bool_]) -> None:
        """Remember the steps ahead of a series that have no row."""
        self.missing += [(name, stamps[place]) for place in np.flatnonzero(holes)]

    def sentence(self, series: Sequence[Series]) -> str:
        """What is wrong with the table, in one sentence; empty if nothing is."""
        without = [
            one.unique_id for one in series if one.future is None or len(one.future) == len(one.values)
        ]
        parts = []
        if self.unknown:
            parts.append(
                f"rows of {len(self.unknown)} unknown series are ignored ({shortened(self.unknown)})"
            )
        if self.late:
            name, stamp = self.late[0]
            parts.append(
                f"{len(self.late)} rows are late, at or before their series' last target, and ignored "
                f"(the first: {name!r}, {stamp})"
            )
        if self.missing:
            name, stamp = self.missing[0]
            parts.append(
                f"{len(self.missing)} steps ahead have no row and count as missing "
                f"(the first: {name!r}, {stamp})"
            )
        if without:
            parts.append(f"{len(without)} series have no row ahead ({shortened(without)})")
        return f"{self.source}: {'; '.join(parts)}" if parts else ""


def append_future(
    frame: pd.DataFrame, columns: Columns, source: Path | str | pd.DataFrame
) -> tuple[pd.DataFrame, Ahead]:
    """The rows of the table, then those of the future table without a target.

    Raises:
        DataError: If the future table can't be read or lacks a column.
    """
    called = "the future table" if isinstance(source, pd.DataFrame) else str(source)
    names = [columns.id] if columns.id else []
    more = read_side(source, [*names, columns.time, *columns.future], called)
    unknown: list[str] = []
    if columns.id:
        codes, ids = id_codes(more[columns.id])
        known = set(id_codes(frame[columns.id])[1])
        unknown = [one for one in ids if one not in known]
        strange = np.append([one not in known for one in ids], True).astype(bool)
        more = more[~strange[codes]]
    ahead = Ahead(called, len(frame), unknown)
    # Stamps and identifiers may be of another kind here than there: as text they are read alike.
    for name in [*names, columns.time]:
        if more[name].dtype != frame[name].dtype and not _comparable(more[name], frame[name]):
            frame = frame.assign(**{name: frame[name].astype(str)})
            more = more.assign(**{name: more[name].astype(str)})
    return pd.concat([frame, more], ignore_index=True), ahead


def _comparable(one: pd.Series, other: pd.Series) -> bool:
    """Both dates, or both numbers."""
    dates = pd.api.types.is_datetime64_any_dtype
    numbers = pd.api.types.is_numeric_dtype
    if dates(one.dtype) and dates(other.dtype):
        return (one.dt.tz is None) == (other.dt.tz is None)
    return bool(numbers(one.dtype) and numbers(other.dtype))
