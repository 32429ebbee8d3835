"""Series, and what a table of them consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import shortened
from mambakit.core.errors import UsageError

Missing = Literal["mask", "error", "interpolate"]

TIME_NAMES = ("ds", "date", "datetime", "time", "timestamp")


@dataclass(frozen=True)
class Series:
    """One series and what is known beside it.

    Attributes:
        unique_id: Its name.
        stamps: When each value was taken, ascending: timestamps, or numbers.
        values: The values in their own units, ``(length,)`` float64; NaN where one is missing.
        frequency: A pandas offset alias, or the integer step as text; empty if the stamps are irregular.
        past: Covariates known up to now, a row a stamp: numbers, or categories of text.
        future: Covariates known ahead, a row a stamp and then one for each further step that is known;
            of an irregular series the index holds the stamps.
        static: What never changes, by name: numbers or text; NaN or None where it is not known.
    """

    unique_id: str
    stamps: pd.Index
    values: NDArray[np.float64]
    frequency: str
    past: pd.DataFrame | None = None
    future: pd.DataFrame | None = None
    static: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """Which column is what. neuralforecast calls the last three hist_, futr_ and stat_exog_list."""

    id: str = "unique_id"
    """The series' names; without such a column the table holds one series, called as its target."""
    time: str = "ds"
    """The stamps; of the default name, another of ``TIME_NAMES`` will do."""
    target: str = "y"
    """The values to forecast."""
    past: tuple[str, ...] = ()
    """Covariates known up to now."""
    future: tuple[str, ...] = ()
    """Covariates known ahead."""
    static: tuple[str, ...] = ()
    """What never changes in a series."""

    def __post_init__(self) -> None:
        for name in ("past", "future", "static"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise UsageError(f"{name}: expected a list of column names, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        names = [self.id, self.time, self.target, *self.past, *self.future, *self.static]
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"columns: {twice!r} is named twice; a column has one part")

    @property
    def covariates(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.past, *self.future, *self.static)


@dataclass(frozen=True)
class LeftOut:
    """A series that can't be used: a sentence says why. Rows without a series' name have an empty one."""

    unique_id: str
    reason: str
    n_rows: int


@dataclass(frozen=True)
class Table:
    """What a table holds.

    Attributes:
        series: The good ones, in order of appearance.
        left_out: The bad ones.
        notes: Further sentences a user should see.
    """

    series: list[Series]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self) -> str:
        """A line about what was left out, and one a note; empty if there is nothing to say."""
        lines = [f"note: {note}" for note in self.notes]
        if self.left_out:
            total = len(self.series) + sum(bool(one.unique_id) for one in self.left_out)
            names = shortened([one.unique_id or "(no name)" for one in self.left_out])
            n_rows = sum(one.n_rows for one in self.left_out)
            lines.insert(
                0,
                f"note: left out {len(self.left_out)} of {total} series ({n_rows} rows): {names}; "
                f"the first because {self.left_out[0].reason}",
            )
        return "\n".join(lines)

    def left_out_frame(self) -> pd.DataFrame:
        """unique_id, reason, n_rows: a row for each that was left out."""
        return pd.DataFrame(
            [dataclasses.asdict(one) for one in self.left_out], columns=["unique_id", "reason", "n_rows"]
        )

    def write_left_out(self, path: Path | str) -> None:
        """The same as a CSV file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.left_out_frame().to_csv(path, index=False)
