"""From a table or a data card to windows: groups of aligned series, splits in time, lazy indices.

A window is one number, the row of its first forecast step. The values lie in memory once; what a window
reads and what it should forecast are cut out of them a batch at a time, on the device that trains.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mambakit.core.data import card_names, load_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.config import season_of
from mambakit.domains.timeseries.tables.cards import read_card_series
from mambakit.domains.timeseries.tables.table import Columns, Missing, Series, read_table, step_numbers

SPLITS = ("train", "validation", "test")
# Reading across more series than this costs more than it brings: each is then read alone.
MOST_MIXED = 64

Bounds = tuple[int, int, int]
"""Rows where validation begins, where test begins, and where test ends."""


@dataclass(frozen=True)
class Group:
    """Series that share their stamps.

    Attributes:
        ids: Their names.
        stamps: ``(length,)``.
        values: ``(length, n_series)`` float64, in their own units.
        bounds: Rows where validation begins, where test begins, and where test ends.
    """

    ids: tuple[str, ...]
    stamps: pd.Index
    values: NDArray[np.float64]
    bounds: Bounds


@dataclass(frozen=True)
class SeriesData:
    """All series of a data set and how each is split in time.

    Attributes:
        name: The card's name, or the file's.
        series: One by one; they may lack values, have covariates, and be of any length.
        bounds: Of each: rows where validation begins, where test begins, and where test ends.
        frequency: Their common step; empty if they have none.
        season_length: Rows in a season; 1 for none.
        mix: Whether aligned series are read together in windows; None decides by their number.
    """

    name: str
    series: tuple[Series, ...]
    bounds: tuple[Bounds, ...]
    frequency: str
    season_length: int
    mix: bool | None = None

    @property
    def ids(self) -> list[str]:
        """The names of all series, in order."""
        return [one.unique_id for one in self.series]

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Aligned series together if they are few enough to be read across, else one by one: for windows.

        Raises:
            DataError: If a series lacks values, or the series have no common step.
        """
        require_complete(self.series)
        return tuple(group_series(self.series, bounds=self.bounds, mix=self.mix))

    @property
    def mixed(self) -> bool:
        """Whether a window holds several series."""
        return len(self.groups[0].ids) > 1

    def in_order(self, ids: Sequence[str]) -> SeriesData:
        """The series ``ids`` alone, in that order: a model knows a series by its place.

        Raises:
            KeyError: If there is no series of a name.
        """
        place = {name: i for i, name in enumerate(self.ids)}
        chosen = [place[name] for name in ids]
        series, bounds = tuple(self.series[i] for i in chosen), tuple(self.bounds[i] for i in chosen)
        return replace(self, series=series, bounds=bounds)


def split_series(
    name: str,
    series: Sequence[Series],
    *,
    bounds: Sequence[Bounds] | None = None,
    season_length: int | None = None,
    mix: bool | None = None,
) -> SeriesData:
    """Series as a data set.

    Args:
        name: What to call it.
        series: Of one step, for a season.
        bounds: As in ``SeriesData``; 70/10/20 in time by default.
        season_length: Rows in a season; by default the natural one of the step.
        mix: As in ``SeriesData``.
    """
    steps = {one.frequency for one in series}
    frequency = series[0].frequency if len({step.partition("-")[0] for step in steps}) == 1 else ""
    if bounds is None:
        bounds = [default_bounds(len(one.values)) for one in series]
    season = season_length or (season_of(frequency) if frequency else 1)
    return SeriesData(name, tuple(series), tuple(bounds), frequency, season, mix)


def load_data(
    source: str,
    *,
    missing: Missing = "mask",
    season_length: int | None = None,
    mix: bool | None = None,
    columns: Columns | None = None,
    irregular: bool = False,
    future_table: Path | str | None = None,
    static_table: Path | str | None = None,
) -> SeriesData:
    """The data set that ``--data`` names: a card, or a CSV or Parquet file.

    A card's rows are split as the card says. A file's table is checked, its bad series are named on
    stderr and left out, and each good one is split 70/10/20 in time.

    Args:
        source: A card's name or a path.
        missing: What to do about missing values: ``"mask"``, ``"interpolate"`` or ``"error"``; of a card
            only the first two change anything.
        season_length: Rows in a season, in place of the card's or the frequency's own.
        mix: Whether aligned series are read together in windows; None decides by their number.
        columns, irregular, future_table, static_table: Of a file, as ``read_table`` takes them.

    Raises:
        DataError, UsageError: If there is no such card or file, or its table can't be used.
    """
    path = Path(source)
    is_file = path.suffix != "" or path.exists()
    if not is_file:
        card = load_card(source)
        if card.domain != "timeseries":
            raise UsageError(f"data: {card.name} is a data set of the domain {card.domain}")
        if card.classes:
            raise UsageError(f"data: {card.name} holds labelled series, to be classified and not forecast")
        series, bounds = read_card_series(card, missing=missing)
        season = season_length or card.season_length
        return split_series(card.name, series, bounds=bounds, season_length=season, mix=mix)
    table = read_table(
        path,
        columns=columns,
        missing=missing,
        irregular=irregular,
        future_table=future_table,
        static_table=static_table,
    )
    if table.report():
        print(table.report(), file=sys.stderr)
    return split_series(path.stem, table.series, season_length=season_length, mix=mix)


def group_series(
    series: Sequence[Series], *, bounds: Sequence[Bounds] | None = None, mix: bool | None = None
) -> list[Group]:
    """Aligned series as one group (few enough of them, or ``mix``), others each as their own.

    Args:
        series: Complete ones.
        bounds: Of each; 70/10/20 in time by default.
        mix: Whether aligned series become one group; None decides by their number.
    """
    if bounds is None:
        bounds = [default_bounds(len(one.values)) for one in series]
    first = series[0].stamps
    aligned = all(one.stamps is first or one.stamps.equals(first) for one in series)
    if len(series) > 1 and aligned and (len(series) <= MOST_MIXED if mix is None else mix):
        values = np.stack([one.values for one in series], axis=1)
        return [Group(tuple(one.unique_id for one in series), first, values, bounds[0])]
    return [
        Group((one.unique_id,), one.stamps, one.values[:, None], end)
        for one, end in zip(series, bounds, strict=True)
    ]


def require_complete(series: Sequence[Series]) -> None:
    """Refuses what a network of fixed windows can't read.

    Raises:
        DataError: If a series lacks values or has no step, or two have different ones.
    """
    for one in series:
        lost = np.isnan(one.values)
        if lost.any():
            raise DataError(
                f"series {one.unique_id!r} has {int(lost.sum())} missing values, the first at "
                f"{one.stamps[int(lost.argmax())]}, which a network of fixed windows can't read; fill them "
                "with --missing interpolate, or use --network stream"
            )
        if not one.frequency:
            raise DataError(
                f"series {one.unique_id!r} has irregular stamps, which a network of fixed windows can't "
                "read; use --network stream"
            )
        if one.frequency.partition("-")[0] != series[0].frequency.partition("-")[0]:
            raise DataError(
                f"series {series[0].unique_id!r} has the step {series[0].frequency!r}, but {one.unique_id!r} "
                f"has {one.frequency!r}; one model reads one step"
            )


def require_aligned(series: Sequence[Series]) -> None:
    """Refuses series that a model which reads them together can't read.

    Raises:
        DataError: If two have different stamps.
    """
    for one in series[1:]:
        if not one.stamps.equals(series[0].stamps):
            raise DataError(
                f"series {one.unique_id!r} has other stamps than {series[0].unique_id!r}, but the model "
                "reads them together; give it all with the same stamps, or train without --mix true"
            )


def timeseries_cards() -> list[str]:
    """Names of the cards of this domain."""
    return [name for name in card_names() if load_card(name).domain == "timeseries"]


class Batch(NamedTuple):
    """Windows cut out of the values; ``batch`` may be several dimensions.

    Attributes:
        history: ``(batch, lookback, n_series)``, scaled.
        future: ``(batch, horizon, n_series)``, scaled.
        phase: Season's phase of the first forecast step, ``(batch,)`` int64.
        series: Index of each series, ``(n_series,)``, or ``(batch, n_series)`` where windows differ in it.
    """

    history: Tensor
    future: Tensor
    phase: Tensor
    series: Tensor


@dataclass(frozen=True)
class Values:
    """The scaled rows of all groups one below the other, ready to move to a device.

    Attributes:
        rows: ``(total, n_series)`` float32.
        phase: Season's phase of each row, ``(total,)`` int64.
        series: Index of each row's series, ``(total,)`` int64, or ``(n_series,)`` if all rows share them.
        shared: Whether they do.
    """

    rows: Tensor
    phase: Tensor
    series: Tensor
    shared: bool

    def to(self, device: torch.device | str) -> Values:
        """The same on a device."""
        return Values(self.rows.to(device), self.phase.to(device), self.series.to(device), self.shared)

    def cut(self, starts: Tensor, lookback: int, horizon: int) -> Batch:
        """The windows whose first forecast rows are ``starts`` ``(batch,)``."""
        offsets = torch.arange(-lookback, horizon, device=starts.device)
        window = self.rows[starts[..., None] + offsets]
        series = self.series if self.shared else self.series[starts][..., None]
        return Batch(window[..., :lookback, :], window[..., lookback:, :], self.phase[starts], series)


class Windows(Dataset[Tensor]):
    """Every window of one split, stride 1, as the row of its first forecast step; nothing is copied.

    Targets lie inside the split; the rows looked back at may lie before it.

    Args:
        data: The series.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        lookback: Rows looked back at.
        horizon: Rows forecast.
        stride: Rows from one window to the next.

    Raises:
        UsageError: On another split, or a lookback, horizon or stride below 1.
    """

    def __init__(self, data: SeriesData, split: str, *, lookback: int, horizon: int, stride: int = 1) -> None:
        if split not in SPLITS:
            raise UsageError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        for name, value in (("lookback", lookback), ("horizon", horizon), ("stride", stride)):
            if value < 1:
                raise UsageError(f"{name}: expected at least 1, got {value}")
        self.stride = stride
        part = SPLITS.index(split)
        firsts, counts, offset = [], [], 0
        for group in data.groups:
            begin, end = (0, *group.bounds)[part : part + 2]
            first = max(begin, lookback)
            counts.append(max(0, (end - horizon - first) // stride + 1))
            firsts.append(offset + first)
            offset += len(group.values)
        self._firsts = np.array(firsts)
        self.counts = np.array(counts)
        self._ends = self.counts.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def starts(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows of the first forecast steps of some windows, ``(n,)`` int64."""
        group = np.searchsorted(self._ends, indices, side="right")
        inside = indices - (self._ends[group] - self.counts[group])
        return torch.from_numpy(self._firsts[group] + inside * self.stride)

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.starts(np.array([index]))[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A batch at once; the data loader calls it."""
        return self.starts(np.asarray(indices))

    def loader(
        self, batch_size: int, *, shuffle: bool = False, members: int | None = None
    ) -> DataLoader[Tensor]:
        """Batches of starts; the last one may be smaller, none is dropped.

        With ``members`` a batch is ``(members, batch)``: each of them goes its own way through the windows.
        """
        windows = self if members is None else _Apart(self, members)
        return DataLoader(windows, batch_size, shuffle=shuffle, collate_fn=as_is)

    def batches(self, batch_size: int) -> list[Tensor]:
        """All starts in order, ``batch_size`` at a time."""
        return list(self.starts(np.arange(len(self))).split(batch_size))


class _Apart(Dataset[Tensor]):
    """Windows for several members at once, who are as far apart in them as can be."""

    def __init__(self, windows: Windows, members: int) -> None:
        self.windows = windows
        self.offsets = np.arange(members)[:, None] * (len(windows) // members)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.windows.starts((np.asarray(indices) + self.offsets) % len(self))


def as_is(batch: Any) -> Any:
    """``__getitems__`` has made the batch already."""
    return batch


def require_windows(data: SeriesData, *, lookback: int, horizon: int) -> list[str]:
    """Names of the series too short to train on; an error if nothing is left to train or validate on.

    Raises:
        DataError: Saying how many rows are needed.
        UsageError: On a lookback or horizon below 1.
    """
    train = Windows(data, "train", lookback=lookback, horizon=horizon)
    validation = Windows(data, "validation", lookback=lookback, horizon=horizon)
    longest = max(data.groups, key=lambda group: len(group.values))
    if not len(train) or not len(validation):
        need = max(int(np.ceil((lookback + horizon) / 0.7)), int(np.ceil(horizon / 0.1)))
        raise DataError(
            f"{data.name}: too short for lookback {lookback} and horizon {horizon}: the longest series, "
            f"{longest.ids[0]!r}, has {len(longest.values)} rows and about {need} are needed (70 % train, "
            "10 % validate); use a shorter --lookback or --horizon"
        )
    return [
        name
        for group, count in zip(data.groups, train.counts.tolist(), strict=True)
        if count == 0
        for name in group.ids
    ]


def series_in(data: SeriesData) -> list[Series]:
    """The series of a data set one by one, in order."""
    return list(data.series)


def phases(stamps: pd.Index, frequency: str, season_length: int) -> NDArray[np.int64]:
    """Season's phase of each stamp, ``0 .. season_length - 1``."""
    return step_numbers(stamps, frequency) % season_length


def default_bounds(length: int) -> Bounds:
    """70/10/20: the custom split of the long-term forecasting benchmarks."""
    n_train, n_test = int(length * 0.7), int(length * 0.2)
    return n_train, length - n_test, length
