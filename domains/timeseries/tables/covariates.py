"""What stands beside the target: covariates of the past, those known ahead, and what never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import (
    clean_names,
    covariate_of,
    find_column,
    id_texts,
    read_columns,
    shortened,
)
from mambakit.core.errors import DataError
from mambakit.domains.timeseries.tables.layout import Faults, Layout


def read_side(source: Path | str | pd.DataFrame, names: Sequence[str], called: str) -> pd.DataFrame:
    """Columns of a table that stands beside the targets', under the names asked for; all if just one is.

    Raises:
        DataError: If the table can't be read or lacks a column.
    """
    called = called if isinstance(source, pd.DataFrame) else str(source)
    found: dict[str, str] = {}

    def choose(there: list[str]) -> tuple[list[str], list[str], list[str]]:
        found.update({find_column(name, there, called): name for name in names})
        return (there if len(names) == 1 else list(found)), [], []

    if isinstance(source, pd.DataFrame):
        clean = clean_names(list(source.columns), called)
        frame = source.set_axis(clean, axis=1)[choose(clean)[0]].reset_index(drop=True)
    else:
        frame, _ = read_columns(source, choose)
    return frame.rename(columns=found)


def typed(
    frame: pd.DataFrame,
    names: Sequence[str],
    codes: NDArray[np.int64],
    faults: Faults,
    source: str,
    *,
    everywhere: bool = True,
) -> dict[str, pd.Series]:
    """Covariates as numbers or categories; series with an infinite one are faulty.

    Raises:
        DataError: If one has no value in any row (``everywhere``).
    """
    found = {}
    for name in names:
        column = covariate_of(frame[name])
        if everywhere and not column.notna().any():
            raise DataError(
                f"{source}: the covariate {name!r} has no value in any row; leave it out of the covariates"
            )
        if column.dtype.kind == "f":
            faults.add_rows(codes, np.isinf(column.to_numpy()), f"infinity in covariate {name!r}")
        found[name] = column
    return found


def spread_frame(columns: Mapping[str, pd.Series], layout: Layout) -> pd.DataFrame:
    """Covariates in the order of a layout, missing in the rows that it inserts."""
    return pd.DataFrame({name: layout.spread_column(column) for name, column in columns.items()}, copy=False)


def static_of(
    columns: Mapping[str, pd.Series], codes: NDArray[np.int64], faults: Faults
) -> dict[int, dict[str, Any]]:
    """The one value that each series has in each column; series where one changes are faulty."""
    found: dict[int, dict[str, Any]] = {one: {} for one in range(len(faults.names))}
    for name, column in columns.items():
        there = np.flatnonzero(column.notna().to_numpy() & (codes >= 0))
        categories = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else None
        values = column.cat.codes.to_numpy() if categories is not None else column.to_numpy()
        first = np.full(len(faults.names), -1, dtype=np.int64)
        first[codes[there][::-1]] = there[::-1]
        changes = np.flatnonzero(values[there] != values[first[codes[there]]])
        for place in changes[np.unique(codes[there[changes]], return_index=True)[1]].tolist():
            row = int(there[place])
            one = int(codes[row])
            faults.add(
                one,
                f"series {faults.names[one]!r} has {column.iloc[first[one]]!s} and then {column.iloc[row]!s} "
                f"(row {row + 1}) in column {name!r}, which should never change; make it a past covariate",
            )
        for one, row in enumerate(first.tolist()):
            number = float("nan") if row < 0 else values[row]
            found[one][name] = (
                float(number) if categories is None else None if row < 0 else str(categories[number])
            )
    return found


def static_table_of(
    frame: pd.DataFrame, id_column: str, faults: Faults, source: str
) -> tuple[dict[int, dict[str, Any]], str]:
    """Static covariates from a table of a row a series, and a sentence about series that it lacks.

    Raises:
        DataError: If a series has two rows, or none has one.
    """
    ids = id_texts(frame[id_column])
    twice = ids[pd.Series(ids).duplicated().to_numpy()]
    if len(twice):
        raise DataError(
            f"{source}: series {twice[0]!r} has more than one row; a static table has one a series"
        )
    row = pd.Index(ids).get_indexer(pd.Index(list(faults.names), dtype=object))
    if len(row) and (row < 0).all():
        raise DataError(f"{source}: has none of the table's series; it has {shortened(ids.tolist())}")
    found: dict[int, dict[str, Any]] = {one: {} for one in range(len(row))}
    for name in frame.columns.drop(id_column):
        column = covariate_of(frame[name])
        numeric = column.dtype.kind == "f"
        values = column.astype(object).where(column.notna(), None).tolist()
        for one, place in enumerate(row.tolist()):
            value = None if place < 0 else values[place]
            found[one][name] = (float("nan") if value is None else float(value)) if numeric else value
    lacking = [faults.names[one] for one in np.flatnonzero(row < 0).tolist()]
    return found, (f"{source} lacks {len(lacking)} series: {shortened(lacking)}" if lacking else "")
