"""Tables in: a long table ``unique_id, ds, y`` with covariates, or a wide one (a column a series).

What each kind of bad input does
--------------------------------
In a table of several series a bad one is left out and named with its reason, and the rest goes on; a table
of one series, or one of which nothing is left, is a ``DataError`` with that reason. Bad are:

- a stamp that is no date, a text in the target, an infinity in the target or a covariate (with its row),
- duplicate stamps (with a hint where they look like the repeated hour of a change of the clocks),
- another step than most series have (no step in the majority: an error that names two series),
- a stamp off the series' step, unless stamps are taken as they are (``irregular``),
- a single row where no other series tells the step, no target value at all, stamps that span more than a
  hundred times the rows that are there (a typing error in a year), a static column that changes.

Not bad, but worth knowing:

- Missing targets, covariates and rows: ``missing="mask"`` keeps NaN and inserts the missing rows as NaN,
  ``"interpolate"`` fills them on a straight line, ``"error"`` makes such a series bad.
- Rows come in any order. A constant series, and one of a few rows or of one, is kept.
- Column names are read without blanks and byte order marks, in upper or lower case.
- Identifiers may be numbers: 7 and 7.0 are the series ``7``. Rows without one are left out.
- Stamps with a zone keep it. Text with an offset (``+01:00``) becomes UTC. Steps below a day are counted in
  absolute time, so an hourly series is regular over a change of the clocks; days are counted in the zone.
- Dates outside 1677 to 2262 are fine. Whole numbers are steps; ``20240131`` is a number.
- A covariate that has no value at all is an error, one that a single series lacks is missing there.
- Trailing rows without a target but with a future covariate are steps known ahead; without future columns
  they are missing targets, and forecasts begin after them.
- A table of future covariates: rows of unknown series and rows at or before the last target are ignored,
  steps between that have no row are missing; one sentence names them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from mambakit.core.data.frames import give_back
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.tables.reading import read_long, read_wide, take_in
from mambakit.domains.timeseries.tables.regular import infer_frequency
from mambakit.domains.timeseries.tables.series import TIME_NAMES, Columns, LeftOut, Missing, Series, Table
from mambakit.domains.timeseries.tables.stamps import next_stamps, step_numbers

__all__ = [
    "TIME_NAMES",
    "Columns",
    "LeftOut",
    "Missing",
    "Series",
    "Table",
    "infer_frequency",
    "next_stamps",
    "read_table",
    "series_of",
    "step_numbers",
]


def read_table(
    source: Path | str | pd.DataFrame,
    *,
    columns: Columns | None = None,
    missing: Missing = "mask",
    irregular: bool = False,
    future_table: Path | str | pd.DataFrame | None = None,
    static_table: Path | str | pd.DataFrame | None = None,
    name: str | None = None,
) -> Table:
    """The series of a CSV file (also compressed, ``.csv.gz``), a Parquet file or a data frame.

    A table with the identifier's or the target's column is long; so is one with covariates. Another is
    wide: a time column, then a column a series. The module's docstring says what bad input does.

    Args:
        source: The table; rows in any order.
        columns: Which column is what.
        missing: What to do about missing values and rows: ``"mask"`` keeps them as NaN, ``"interpolate"``
            fills them on a straight line between their neighbours (categories with the one before), and
            ``"error"`` refuses the series.
        irregular: Take any stamps as they are; the series then have no frequency.
        future_table: Rows of future covariates that follow the table's.
        static_table: A row a series; by default all its columns count.
        name: What to call the table in sentences; the path by default.

    Raises:
        DataError: If the table can't be read, lacks a column, or has no series that can be used.
        UsageError: On another ``missing``, or a future table without future columns.
    """
    if missing not in ("mask", "error", "interpolate"):
        raise UsageError(f"missing: expected 'mask', 'error' or 'interpolate', got {missing!r}")
    chosen = columns or Columns()
    if future_table is not None and not chosen.future:
        raise UsageError("future_table: name its covariates as future columns")
    static_names = chosen.static if static_table is not None else ()
    if static_table is not None:  # its columns stand there, not in the table
        chosen = dataclasses.replace(chosen, static=())
    taken = take_in(source, chosen, name)
    if taken.wide and (future_table is not None or static_table is not None):
        raise UsageError("future_table, static_table: a wide table, a column a series, has no covariates")
    if not taken.wide and static_table is not None and not taken.columns.id:
        raise UsageError(f"static_table: the table has no column {chosen.id!r} to find its rows by")
    if taken.wide:
        made = read_wide(taken, missing=missing, irregular=irregular)
    else:
        made = read_long(
            taken,
            missing=missing,
            irregular=irregular,
            future_table=future_table,
            static_table=static_table,
            static_names=static_names,
        )
    del taken
    if not isinstance(source, pd.DataFrame):
        give_back()
    return made


def series_of(
    frame: pd.DataFrame,
    *,
    source: str = "the table",
    missing: Missing = "error",
    columns: Columns | None = None,
) -> list[Series]:
    """The series of a data frame that must all be good.

    Raises:
        DataError: If one is bad, with its reason.
        UsageError: On another ``missing``.
    """
    table = read_table(frame, columns=columns, missing=missing, name=source)
    if table.left_out:
        raise DataError(f"{source}: {table.left_out[0].reason}")
    return table.series
