"""Labels out of tables: which columns they are, of what kind, and what can't be learned from.

Only 0, 1 and blanks are classes, any other numbers are regression, unless the caller says so. A blank is an
unknown label. True and false are 1 and 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data.frames import find_column, numbers_of, shortened
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.molecules.molecules import Task, TaskKind

Labels = NDArray[np.float64]
# Beyond, sums of squared errors may not be finite.
_LARGEST = 1e100
_NUMBERINGS = ("num", "number", "no", "id", "cid", "index", "row", "unnamed: 0", "")


def read_labels(
    table: pd.DataFrame,
    rows: NDArray[np.int64],
    name: str,
    asked: Sequence[str] | None,
    smiles_column: str,
    skip: Sequence[str] = (),
    kinds: Mapping[str, TaskKind] | None = None,
    units: Mapping[str, str] | None = None,
) -> tuple[Labels, tuple[Task, ...], list[str]]:
    """The labels, what they are, and what is worth knowing about them.

    Args:
        table: All columns.
        rows: What to call each row in sentences.
        name: What to call the table.
        asked: Columns of labels; None takes all that hold numbers and don't just count rows.
        smiles_column: The column of structures.
        skip: Columns that are labels only if they are asked for, such as names.
        kinds: Of some columns; of the others from their values.
        units: Of some columns.

    Returns:
        ``(n, n_tasks)`` with NaN where unknown, the tasks, and notes.

    Raises:
        DataError: If a column that was asked for is missing, holds text or no label at all, classes that are
            not 0 and 1, or numbers too large to be squared.
        UsageError: If a kind is none, or kinds or units name other columns than the labels.
    """
    names = [str(one) for one in table.columns]
    notes: list[str] = []
    if asked is None:
        chosen, notes = _numeric(table, rows, name, smiles_column, skip)
    else:
        chosen = list(dict.fromkeys(find_column(one, names, name, "label column") for one in asked))
        if smiles_column in chosen:
            raise UsageError(f"tasks: {smiles_column!r} is the column of structures, not of labels")
    kinds = _of_columns(kinds, chosen, names, name, "kinds")
    units = _of_columns(units, chosen, names, name, "units")
    columns, tasks = [], []
    for column in chosen:
        values, bad = numbers(table[column])
        bad |= np.isinf(values)
        if bad.any():
            place = int(bad.argmax())
            held = repr(str(table[column].iloc[place]))
            comma = " with a decimal point," if "," in held else ","
            raise DataError(
                f"{name}: label column {column!r} holds {held} in row {rows[place]} ({int(bad.sum())} such "
                f"rows); labels are numbers{comma} or blank where unknown"
            )
        _check_size(values, rows, f"{name}: label column {column!r}")
        kind = _kind(values, kinds.get(column), rows, f"{name}: label column {column!r}")
        notes += _about(values, kind, f"{name}: label column {column!r}")
        columns.append(values)
        tasks.append(Task(column, kind, units.get(column, "")))
    notes += _doubtful(columns, [task for task in tasks if task.name not in kinds], tasks, name)
    labels = np.stack(columns, axis=1) if columns else np.zeros((len(table), 0))
    return labels, tuple(tasks), notes


def numbers(column: pd.Series) -> tuple[Labels, NDArray[np.bool_]]:
    """A column as float64, NaN where nothing is, and which rows hold something that is no number."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan), np.zeros(len(column), dtype=bool)
    truth = column.map(lambda one: float(one) if isinstance(one, bool) else one)
    return numbers_of(truth)


def _numeric(
    table: pd.DataFrame, rows: NDArray[np.int64], name: str, smiles_column: str, skip: Sequence[str]
) -> tuple[list[str], list[str]]:
    chosen, notes = [], []
    texts: list[str] = []
    blank: list[str] = []
    for column in table.columns:
        if column == smiles_column or column in skip:
            continue
        values, bad = numbers(table[column])
        known = values[~np.isnan(values)]
        if not len(known):
            (texts if bad.any() else blank).append(str(column))
        elif bad.any():
            place = int(bad.argmax())
            said = f"holds {str(table[column].iloc[place])!r} in row {rows[place]}"
            notes.append(f"{name}: column {column!r} {said}, so it is not read as labels")
        elif _counts(known, str(column)):
            notes.append(f"{name}: column {column!r} numbers the rows, so it is not read as labels")
        else:
            chosen.append(str(column))
    if texts:
        notes.append(f"{name}: columns without numbers, not read as labels: {shortened(texts)}")
    if blank:
        notes.append(f"{name}: columns with nothing in them, not read as labels: {shortened(blank)}")
    return chosen, notes


def _counts(known: Labels, column: str) -> bool:
    """Whether these are numbers of rows: whole, and rising from each row to the next, or called so."""
    whole = len(known) > 2 and bool((known == np.round(known)).all())
    return whole and (column.strip().lower() in _NUMBERINGS or bool((np.diff(known) > 0).all()))


def _kind(values: Labels, asked: TaskKind | None, rows: NDArray[np.int64], where: str) -> TaskKind:
    known = ~np.isnan(values)
    if not known.any():
        raise DataError(f"{where} has no label in any row")
    other = known & ~np.isin(values, (0.0, 1.0))
    if asked is None:
        return "regression" if other.any() else "classification"
    if asked not in ("regression", "classification"):
        raise UsageError(f"kinds: expected regression or classification, got {asked!r}")
    if asked == "classification" and other.any():
        place = int(other.argmax())
        raise DataError(f"{where} is of classes 0 and 1, got {values[place]:g} in row {rows[place]}")
    return asked


def _check_size(values: Labels, rows: NDArray[np.int64], where: str) -> None:
    """Raise a DataError on a label whose square can't be computed with."""
    size = np.abs(np.nan_to_num(values))
    if size.size and size.max() > _LARGEST:
        place = int(size.argmax())
        raise DataError(
            f"{where} holds {values[place]:g} in row {rows[place]}; labels beyond {_LARGEST:g} can't be "
            "squared, use their logarithm or another unit"
        )


def _doubtful(
    columns: Sequence[Labels], unsaid: Sequence[Task], tasks: Sequence[Task], name: str
) -> list[str]:
    """What kind was taken of columns with two different values, which may be of the other kind."""
    notes, classes = [], []
    for values, task in zip(columns, tasks, strict=True):
        known = np.unique(values[~np.isnan(values)])
        if task not in unsaid or len(known) != 2:
            continue
        if task.kind == "classification":
            classes.append(task.name)
        else:
            held = f"holds only {known[0]:g} and {known[1]:g}"
            notes.append(
                f"{name}: label column {task.name!r} {held}, taken for numbers; classes are written 0 and 1"
            )
    if classes:
        said = f"label columns that hold only 0 and 1, taken for classes: {shortened(classes)}"
        notes.append(f"{name}: {said}; where they are numbers, say kinds {classes[0]}=regression")
    return notes


def _about(values: Labels, kind: TaskKind, where: str) -> list[str]:
    known = values[~np.isnan(values)]
    if known.min() == known.max():
        what = "only one class" if kind == "classification" else "one value throughout"
        return [f"{where} holds {what}, {known[0]:g}: there is nothing to learn from it"]
    return []


def _of_columns(
    given: Mapping[str, str] | None, chosen: list[str], names: list[str], name: str, what: str
) -> dict[str, TaskKind]:
    found: dict[str, TaskKind] = {}
    for column, value in (given or {}).items():
        own = find_column(column, names, name, f"{what}: column")
        if own not in chosen:
            raise UsageError(
                f"{what}: {own!r} is not among the labels ({shortened(chosen) or 'there are none'})"
            )
        found[own] = value  # type: ignore[assignment]  # kinds are checked against their names, units are any text
    return found
