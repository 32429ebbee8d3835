"""From a table or a data card to series split in time, and groups of aligned ones."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.data import card_names, load_card
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.config import season_of
from mambakit.domains.timeseries.tables.cards import read_card_series
from mambakit.domains.timeseries.tables.table import Columns, Missing, Series, read_table, step_numbers

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
