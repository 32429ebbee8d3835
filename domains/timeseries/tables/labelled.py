"""Labelled series: one or several channels and a class each, from ``.ts`` text or a long table.

The ``.ts`` format of the UCR and UEA archives (www.timeseriesclassification.com): comments behind ``#``,
headers behind ``@``, and after ``@data`` a line a series: ``1.2,1.3,?:0.4,0.5,0.6:label``, its channels apart
by colons, ``?`` for a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data import fetch, load_card
from mambakit.core.errors import DataError, UsageError

_MISSING = frozenset({"?", "nan", "na", ""})
_READERS = {".csv": pd.read_csv, ".gz": pd.read_csv, ".parquet": pd.read_parquet, ".pq": pd.read_parquet}


@dataclass(frozen=True)
class LabelledSeries:
    """One series and its class.

    Attributes:
        unique_id: Its name.
        values: ``(length, n_channels)`` float64, in their own units; NaN where one is missing.
        label: Its class; None where it is not known.
        last: The stamp of its last row; the row's number, from 0, where there are no stamps.
    """

    unique_id: str
    values: NDArray[np.float64]
    label: str | None = None
    last: Any = None

    def __post_init__(self) -> None:
        if self.last is None:
            object.__setattr__(self, "last", len(self.values) - 1)


@dataclass(frozen=True)
class LabelledData:
    """Series of the same channels, for training or for a test.

    Attributes:
        name: What to call them.
        channels: Names of the channels.
        series: One or more.
        classes: All classes, also those that no series here is of; in the order of the file's header, or
            sorted.
    """

    name: str
    channels: tuple[str, ...]
    series: tuple[LabelledSeries, ...]
    classes: tuple[str, ...]


def load_labelled(source: str, split: str | None = None) -> LabelledData:
    """The labelled series that ``--data`` or ``--input`` names: a card, or a .ts, CSV or Parquet file.

    Args:
        source: A card's name or a path.
        split: Which of a card's splits, ``"train"`` or ``"test"``; a file has none.

    Raises:
        DataError: If there is no such file, or it can't be used.
        UsageError: If there is no such card or split, or the card is not one of labelled series.
    """
    path = Path(source)
    if path.suffix != "" or path.exists():
        return read_labelled(path)
    card = load_card(source)
    if card.domain != "timeseries" or not card.classes:
        raise UsageError(f"data: {card.name} has no labelled series; it is a data set to forecast")
    if split not in card.splits:
        raise UsageError(f"split: {card.name} has {' and '.join(card.splits)}, got {split!r}")
    paths = fetch(card)
    begin, end = card.splits[split]
    file = next(file for file in card.files if file.split == split)
    data = read_ts(paths[file.name])
    found, promised = (len(data.series), data.classes), (end - begin, card.classes)
    if found != promised:
        raise DataError(f"{card.name}: its card promises {promised} series and classes, the file has {found}")
    return LabelledData(f"{card.name} {split}", card.columns, data.series, data.classes)


def read_labelled(path: Path) -> LabelledData:
    """The labelled series of a ``.ts``, CSV or Parquet file; see ``read_ts`` and ``labelled_of``.

    Raises:
        DataError: If there is no such file, or it can't be used.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.suffix.lower() == ".ts":
        return read_ts(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: expected a .ts, .csv or .parquet file, got {path.suffix or 'no extension'!r}"
        )
    try:
        frame = reader(path, **({"dtype": {"unique_id": str, "label": str}} if reader is pd.read_csv else {}))
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own are ValueErrors
        raise DataError(f"{path} can't be read ({' '.join(str(error).split())})") from error
    return labelled_of(frame, name=path.stem, source=str(path))


class _Header(NamedTuple):
    n_channels: int | None
    labelled: bool
    classes: tuple[str, ...]


def read_ts(path: Path | str) -> LabelledData:
    """The series of a ``.ts`` file; names are their numbers in the file, from 0.

    Channels of one series may differ in length: the shorter ones are missing at the end.

    Raises:
        DataError: On a file that is no such text, time stamps, a target that is no class, a value that is
            no finite number, a class that the header does not list, or another number of channels; the
            message names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as text ({error})") from error
    begin = next((n for n, line in enumerate(lines) if line.strip().lower() == "@data"), None)
    if begin is None:
        raise DataError(f"{path}: there is no line '@data'; a .ts file has headers behind @ and then @data")
    header = _read_header(lines[:begin], path)
    n_channels = header.n_channels
    series: list[LabelledSeries] = []
    for number, line in enumerate(lines[begin + 1 :], start=begin + 2):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{path}: line {number}"
        *channels, last = line.strip().split(":")
        if not header.labelled:
            channels, label = [*channels, last], None
        else:
            label = last.strip()
            if label not in header.classes:
                raise DataError(f"{where}: {label!r} is no class of the header, {', '.join(header.classes)}")
        n_channels = len(channels) if n_channels is None else n_channels
        if len(channels) != n_channels:
            raise DataError(f"{where}: it has {len(channels)} channels instead of {n_channels}")
        parsed = [_parse(channel, f"{where}, channel {i + 1}") for i, channel in enumerate(channels)]
        values = np.full((max(map(len, parsed)), n_channels), np.nan)
        for i, channel in enumerate(parsed):
            values[: len(channel), i] = channel
        series.append(LabelledSeries(str(len(series)), values, label))
    if not series:
        raise DataError(f"{path} has no series behind @data")
    names = tuple(f"channel {i + 1}" for i in range(n_channels or 0))
    return LabelledData(path.stem, names, tuple(series), header.classes)


def labelled_of(frame: pd.DataFrame, *, name: str = "table", source: str = "the table") -> LabelledData:
    """The series of a long table: ``unique_id``, ``ds``, a column for each channel, and ``label``.

    Args:
        frame: Rows in any order; they are sorted by ``ds``. Missing values stay missing. Without ``label``
            the classes are not known.
        name: What to call the series.
        source: What to call the table in error messages.

    Raises:
        DataError: On an empty table, a missing column, a value that is no finite number, a stamp that is no
            date or comes twice, or a series of two labels; the message names the row, the first being 1.
    """
    frame = frame.rename(columns=lambda column: str(column).strip())
    if frame.empty:
        raise DataError(f"{source} has no rows")
    channels = [column for column in frame.columns if column not in ("unique_id", "ds", "label")]
    absent = [column for column in ("unique_id", "ds") if column not in frame.columns]
    if absent or not channels:
        raise DataError(
            f"{source}: expected the columns unique_id, ds, one or more of values, and label; "
            f"found: {', '.join(frame.columns)}"
        )
    values = np.stack([_numbers(frame[column], source) for column in channels], axis=1)
    stamps = _stamps(frame["ds"], source)
    _refuse(frame["unique_id"].isna(), lambda row: f"{source}: row {row + 1} has no unique_id")
    ids = frame["unique_id"].astype(str)
    _refuse(
        pd.DataFrame({"id": ids, "ds": stamps}).duplicated(),
        lambda row: (
            f"{source}: row {row + 1}: series {ids.iloc[row]!r} has a row for {frame['ds'].iloc[row]} already"
        ),
    )
    series = []
    for one, rows in ids.groupby(ids, sort=False).indices.items():
        order = rows[np.argsort(stamps[rows], kind="stable")]
        label = _label_of(frame["label"], rows, f"{source}: series {one!r}") if "label" in frame else None
        series.append(LabelledSeries(str(one), values[order], label, frame["ds"].iloc[order[-1]]))
    classes = sorted({one.label for one in series if one.label is not None})
    return LabelledData(name, tuple(channels), tuple(series), tuple(classes))


def require_labels(data: LabelledData, classes: Sequence[str] | None = None) -> NDArray[np.int64]:
    """The index of each series' class, ``(n_series,)``.

    Args:
        data: The series.
        classes: All that are known; the data's own by default.

    Raises:
        DataError: If a series has no label, or one that is not among the classes.
    """
    numbers = {label: i for i, label in enumerate(data.classes if classes is None else classes)}
    for one in data.series:
        if one.label not in numbers:
            what = "no label" if one.label is None else f"the label {one.label!r}"
            raise DataError(
                f"{data.name}: series {one.unique_id!r} has {what}; "
                f"the classes are {', '.join(numbers) or 'not given'}"
            )
    return np.array([numbers[str(one.label)] for one in data.series], dtype=np.int64)


def _read_header(lines: Sequence[str], path: Path) -> _Header:
    n_channels: int | None = None
    labelled, classes = False, tuple[str, ...]()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where, key, rest = f"{path}: line {number}", words[0].lower(), words[1:]
        if not key.startswith("@"):
            raise DataError(f"{where}: expected a header such as @classLabel, got {line[:40]!r}")
        if key == "@timestamps" and rest[:1] == ["true"]:
            raise DataError(
                f"{where}: series with time stamps are not read; write one value a step, or a CSV"
            )
        if key == "@targetlabel" and rest[:1] == ["true"]:
            raise DataError(f"{where}: its targets are numbers, and a classifier needs classes")
        if key == "@univariate" and rest[:1] == ["true"]:
            n_channels = 1
        elif key in ("@dimensions", "@dimension"):
            if len(rest) != 1 or not rest[0].isdigit() or int(rest[0]) < 1:
                raise DataError(f"{where}: expected a number of channels, got {' '.join(rest)!r}")
            n_channels = int(rest[0])
        elif key == "@classlabel":
            labelled, classes = rest[:1] == ["true"], tuple(rest[1:])
            if labelled and (not classes or len(set(classes)) < len(classes)):
                raise DataError(f"{where}: expected 'true' and then each class once, got {' '.join(rest)!r}")
    return _Header(n_channels, labelled, classes)


def _parse(text: str, where: str) -> NDArray[np.float64]:
    words = [word.strip() for word in text.split(",")]
    try:  # far quicker than word by word, where nothing is missing
        values = np.array(words, dtype=np.float64)
    except ValueError:
        values = np.array([_number(word, where, i) for i, word in enumerate(words)])
    if np.isinf(values).any():
        raise DataError(f"{where}: value {int(np.isinf(values).argmax()) + 1} is infinite")
    return values


def _number(word: str, where: str, index: int) -> float:
    if word.lower() in _MISSING:
        return math.nan
    try:
        return float(word)
    except ValueError:
        raise DataError(
            f"{where}: value {index + 1} is {word!r} and no number; write ? for a missing one"
        ) from None


def _numbers(column: pd.Series, source: str) -> NDArray[np.float64]:
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = (numbers.isna() & column.notna()) | np.isinf(numbers)
    _refuse(
        wrong,
        lambda row: (
            f"{source}: row {row + 1}: {str(column.iloc[row])!r} in {column.name!r} is no finite number"
        ),
    )
    return numbers.to_numpy()


def _stamps(column: pd.Series, source: str) -> NDArray[np.int64] | NDArray[np.float64]:
    """What rows are sorted by."""
    if pd.api.types.is_numeric_dtype(column):
        stamps = column
    else:
        stamps = pd.to_datetime(column, errors="coerce", format="mixed", utc=True)
    _refuse(
        stamps.isna(),
        lambda row: f"{source}: row {row + 1}: {str(column.iloc[row])!r} in column 'ds' is no date or number",
    )
    ordered: NDArray[np.int64] | NDArray[np.float64] = stamps.to_numpy()
    return ordered


def _label_of(column: pd.Series, rows: NDArray[np.int64], what: str) -> str | None:
    labels = column.iloc[rows]
    known = labels.dropna().unique()
    if len(known) > 1:
        row = int(rows[(labels == known[1]).to_numpy().argmax()])
        raise DataError(f"{what} has two labels, {str(known[0])!r} and in row {row + 1} {str(known[1])!r}")
    return str(known[0]) if len(known) else None


def _refuse(wrong: pd.Series, message) -> None:  # type: ignore[no-untyped-def]  # a function of the row
    """Raise a DataError about the first row where ``wrong`` holds."""
    if wrong.any():
        raise DataError(message(int(wrong.to_numpy().argmax())))
