"""Data sets that have a card: their series, splits and labels."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data import Card, fetch
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.tables.filling import fill_values
from mambakit.domains.timeseries.tables.table import Columns, Missing, Series, infer_frequency, read_table

_TIME = "ds"


def read_card_series(
    card: Card, *, missing: Missing = "mask"
) -> tuple[list[Series], list[tuple[int, int, int]]]:
    """A card's series and, of each, where validation begins, where test begins, and where test ends.

    The rows of a wide card are taken as they stand, for the published protocols count them so; those of
    another are checked and laid on their step as a user's table is.

    Args:
        card: The card; its files are fetched.
        missing: ``"interpolate"`` fills missing values; otherwise they stay NaN.

    Raises:
        DataError: If the files can't be fetched or don't hold what the card promises.
    """
    paths = {} if card.embedded else fetch(card)
    if card.layout == "rows":
        series = _row_series(card, paths)
    elif card.layout == "long":
        series = _long_series(card, paths)
    else:
        series = _wide_series(card, paths)
    if missing == "interpolate":
        for one in series:
            fill_values(one.values)
    return series, [_bounds(card, one) for one in series]


def load_labels(card: Card) -> dict[str, NDArray[np.bool_]]:
    """Which rows of each of a card's series are anomalous, ``(length,)`` beside its values.

    Raises:
        UsageError: If the card has no labels.
        DataError: As ``read_card_series`` does.
    """
    spans = next((name for name, role in card.roles.items() if role == "labels"), None)
    if not card.label_column and spans is None:
        raise UsageError(f"data: {card.name} has no labels of anomalies")
    series, _ = read_card_series(card)
    paths = fetch(card)
    if spans is None:  # NaN, so not anomalous, where a row was missing
        marked = _long_series(card, paths, target=card.label_column)
        return {one.unique_id: mark.values == 1 for one, mark in zip(series, marked, strict=True)}
    windows = {Path(key).stem: value for key, value in json.loads(paths[spans].read_text("utf-8")).items()}
    labels = {one.unique_id: np.zeros(len(one.values), dtype=bool) for one in series}
    for one in series:
        for first, last in windows.get(one.unique_id, []):
            inside = (one.stamps >= pd.Timestamp(first)) & (one.stamps <= pd.Timestamp(last))
            labels[one.unique_id] |= np.asarray(inside)
    return labels


def _wide_series(card: Card, paths: dict[str, Path]) -> list[Series]:
    """A column a series, the rows as they stand; several files of one column are called as the files."""
    if card.embedded:
        embedded = importlib.import_module("mambakit.domains.timeseries.tables.embedded")
        frames = {"": embedded.load(card.embedded)}
    else:
        header = 0 if card.time_column else None
        frames = {
            name: pd.read_csv(path, header=header, encoding="utf-8", encoding_errors="replace")
            for name, path in paths.items()
            if name not in card.roles
        }
    _check_rows(card, sum(map(len, frames.values())))
    series = []
    for file, frame in frames.items():
        names = [Path(file).stem] if len(frames) > 1 else list(card.columns)
        if card.time_column:
            stamps: pd.Index = pd.DatetimeIndex(pd.to_datetime(frame.pop(card.time_column)))
        else:
            stamps = pd.date_range(card.first_stamp or "2000-01-01", periods=len(frame), freq=card.frequency)
        if frame.shape[1] != len(card.columns):
            raise DataError(
                f"{card.name}: its card promises {len(card.columns)} columns, the file holds {frame.shape[1]}"
            )
        frequency = card.frequency or infer_frequency(stamps)
        values = np.ascontiguousarray(frame.to_numpy(dtype=np.float64).T)
        series += [Series(name, stamps, own, frequency) for name, own in zip(names, values, strict=True)]
    return series


def _check_rows(card: Card, n_rows: int) -> None:
    if card.rows is not None and n_rows != card.rows:
        raise DataError(f"{card.name}: its card promises {card.rows} rows, its files hold {n_rows}")


def _long_series(card: Card, paths: dict[str, Path], target: str | None = None) -> list[Series]:
    """A row a series and stamp, checked as a user's table is."""
    frame = pd.concat([_frame(card, path) for name, path in paths.items() if name not in card.roles])
    _check_rows(card, len(frame))
    future = next((path for name, path in paths.items() if card.roles.get(name) == "future"), None)
    columns = Columns(
        id=card.id_column or "unique_id",
        time=_TIME if card.time_parts else str(card.time_column),
        target=target or str(card.target),
        past=() if target else card.past,
        future=() if target else card.future,
        static=() if target else card.static,
    )
    table = read_table(
        frame,
        columns=columns,
        future_table=None if future is None or target else _frame(card, future),
        name=card.name,
    )
    if table.left_out:
        raise DataError(f"{card.name}: {table.left_out[0].reason}")
    return table.series


def _row_series(card: Card, paths: dict[str, Path]) -> list[Series]:
    """A row a series, blanks behind its last value; a file of role ``test`` goes on with each."""
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for name in sorted(paths, key=lambda name: card.roles.get(name) == "test"):
        frame = _frame(card, paths[name]).set_index(card.id_column)
        if card.rows is not None and len(frame) != card.rows:
            raise DataError(f"{card.name}: its card promises {card.rows} series, {name} holds {len(frame)}")
        for one, values in zip(frame.index, frame.to_numpy(dtype=np.float64), strict=True):
            there = np.flatnonzero(~np.isnan(values))
            rows.setdefault(str(one), []).append(values[: there[-1] + 1 if len(there) else 0])
    return [
        Series(one, pd.RangeIndex(1, len(values) + 1), values, "1")
        for one, values in ((one, np.concatenate(parts)) for one, parts in rows.items())
    ]


def _frame(card: Card, path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, encoding="utf-8", encoding_errors="replace", skipinitialspace=True)
    if card.time_parts:
        frame[_TIME] = pd.to_datetime(frame[list(card.time_parts)])
    return frame


def _bounds(card: Card, one: Series) -> tuple[int, int, int]:
    length = len(one.values)
    if card.splits:
        bounds = tuple(card.splits[name][1] for name in ("train", "validation", "test"))
        if bounds[2] > length:
            raise DataError(f"{card.name}: its splits end at row {bounds[2]}, {one.unique_id} has {length}")
        return bounds  # type: ignore[return-value]  # three of them
    if card.horizon:
        return max(0, length - 2 * card.horizon), max(0, length - card.horizon), length
    train, validation = card.fractions["train"], card.fractions["validation"]
    return int(round(length * train, 6)), int(round(length * (train + validation), 6)), length
