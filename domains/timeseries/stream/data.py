"""Rows of many series in memory once, and windows of them by number: nothing is copied before it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.parts import Origin, Read
from mambakit.domains.timeseries.stream.rows import RowTokenizer, waves
from mambakit.domains.timeseries.tables.table import Series
from mambakit.domains.timeseries.window_data import as_is

Bounds = tuple[int, int, int]
# Rows of a piece when whole series are read, and series x steps x levels that are forecast at once.
_PIECE = 2048
_MOST_NUMBERS = 8_000_000
_MOST_SERIES = 64


@dataclass(frozen=True)
class Store:
    """All rows, one series below the other, ready to move to a device.

    A row holds no more than what can't be worked out when it is read: 4 bytes of a regular series without
    covariates, whose calendar follows from its first stamp. Nothing writes into the rows, so a copy shares
    them.

    Attributes:
        values: ``(total,)`` float32, NaN where missing.
        past: ``(total, n_past)``.
        future: ``(total, n_future)``.
        gaps: ``(total,)``, steps since the row before; ``(0,)`` where that is 1 throughout.
        clock: ``(total,)`` int64, local time in microseconds, if a calendar is read and a series does not
            tick evenly; else ``(0,)``.
        static: ``(n_series, n_static)``.
        series: ``(n_series,)`` int64, the place of each among those learned of.
        first: ``(n_series,)`` int64, its first row.
        length: ``(n_series,)`` int64, its rows.
        begin, tick: ``(n_series,)`` int64: local time of its first row, and from one row to the next.
        periods: ``(n_cycles,)`` int64, of the calendar.
        bounds: ``(n_series, 3)`` int64: where validation begins, where test begins, where test ends.
        offset, unit: ``(n_series,)`` float64: what was taken from the values, and what they were divided by.
    """

    values: Tensor
    past: Tensor
    future: Tensor
    gaps: Tensor
    clock: Tensor
    static: Tensor
    series: Tensor
    first: Tensor
    length: Tensor
    begin: Tensor
    tick: Tensor
    periods: Tensor
    bounds: Tensor
    offset: Tensor
    unit: Tensor

    def to(self, device: torch.device | str) -> Store:
        """The same on a device."""
        floats = ("offset", "unit")  # some devices have no float64
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if k not in floats})

    def __deepcopy__(self, memo: object) -> Store:
        return self  # averaged weights copy the task that reads from it

    def __len__(self) -> int:
        return len(self.first)

    def known(self, which: Tensor, place: Tensor) -> Tensor:
        """What is known ahead of some rows, ``(rows, n, n_known)``: covariates, then the calendar.

        Args:
            which: ``(rows,)`` series.
            place: ``(rows, n)`` rows of them, which must exist.
        """
        flat = self.first[which][:, None] + place
        if not len(self.periods):
            return self.future[flat]
        if len(self.clock):
            clock = self.clock[flat]
        else:
            clock = self.begin[which][:, None] + self.tick[which][:, None] * place
        return torch.cat([self.future[flat], waves(clock, self.periods)], -1)

    def elapsed(self, which: Tensor, place: Tensor) -> Tensor:
        """Steps since the row before, ``(rows, n)``; arguments as of ``known``."""
        if not len(self.gaps):
            return self.values.new_ones(place.shape)
        return self.gaps[self.first[which][:, None] + place]


def make_store(tokenizer: RowTokenizer, series: Sequence[Series], bounds: Sequence[Bounds]) -> Store:
    """The rows of some series.

    Raises:
        SampleError: If a series lacks covariates that the tokenizer knows.
    """
    total = sum(len(one.values) for one in series)
    values = np.empty(total, dtype=np.float32)
    past = np.empty((total, tokenizer.past.width), dtype=np.float32)
    future = np.empty((total, tokenizer.future.width), dtype=np.float32)
    gaps = np.empty(0 if all(one.frequency for one in series) else total, dtype=np.float32)
    clocks = [tokenizer.clock(one.stamps) for one in series] if tokenizer.cycles else []
    uneven = any(len(one) > 2 and (np.diff(one, 2) != 0).any() for one in clocks)
    static, index, offset, unit, first = [], [], [], [], 0
    for one in series:
        rows = tokenizer.rows(one, calendar=False)
        at = slice(first, first + len(one.values))
        values[at], past[at], future[at] = rows.values, rows.past, rows.known
        if len(gaps):
            gaps[at] = rows.elapsed
        static.append(rows.static)
        index.append(rows.index)
        offset.append(rows.offset)
        unit.append(rows.unit)
        first = at.stop
    lengths = torch.tensor([len(one.values) for one in series])
    nothing = np.zeros(0, dtype=np.int64)
    return Store(
        torch.from_numpy(values),
        torch.from_numpy(past),
        torch.from_numpy(future),
        torch.from_numpy(gaps),
        torch.from_numpy(np.concatenate(clocks) if uneven else nothing),
        torch.from_numpy(np.stack(static)),
        torch.tensor(index),
        lengths.cumsum(0) - lengths,
        lengths,
        torch.tensor([int(one[0]) if len(one) else 0 for one in clocks], dtype=torch.int64),
        torch.tensor([int(one[1] - one[0]) if len(one) > 1 else 0 for one in clocks], dtype=torch.int64),
        torch.tensor(tokenizer.periods, dtype=torch.int64),
        torch.tensor(bounds).view(-1, 3),
        torch.tensor(offset, dtype=torch.float64),
        torch.tensor(unit, dtype=torch.float64),
    )


class Window(NamedTuple):
    """Pieces of series and what comes after some rows of them.

    Attributes:
        read: The pieces.
        ahead: ``(rows, origins, horizon, n_known)``.
        target: ``(rows, origins, horizon)`` float32, NaN where there is none.
    """

    read: Read
    ahead: Tensor
    target: Tensor


def cut(
    store: Store, which: Tensor, start: Tensor, length: int, origins: Tensor, horizon: int, end: Tensor
) -> Window:
    """Windows of ``length`` rows, forecast after the rows ``origins`` of them.

    Args:
        store: The rows.
        which: ``(rows,)`` series.
        start: ``(rows,)`` first row of each window in its series; negative if it begins before that.
        length: Rows that are read; where there is no series they are missing, and no time passes before it.
        origins: ``(origins,)`` rows of the window.
        horizon: Steps ahead.
        end: ``(rows,)`` row of the series from which on there are no targets.
    """
    read, known, target = _stretch(store, which, start, length, horizon, end)
    steps = origins[:, None] + 1 + torch.arange(horizon, device=which.device)  # [o, h]
    return Window(read, known[:, steps], target[:, steps])


def _stretch(
    store: Store, which: Tensor, start: Tensor, length: int, horizon: int, end: Tensor
) -> tuple[Read, Tensor, Tensor]:
    """Windows, and what is known and what is to be forecast of each of their rows and the horizon's.

    ``(rows, length + horizon, n_known)`` and ``(rows, length + horizon)``; arguments as ``cut``'s.
    """
    offsets = torch.arange(length + horizon, device=which.device)
    place = start[:, None] + offsets
    begun = place >= 0
    inside = begun & (place < store.length[which][:, None])
    there = place.clamp(min=0).minimum(store.length[which][:, None] - 1)
    flat = store.first[which][:, None] + there
    values = torch.where(inside, store.values[flat], torch.nan)
    known = torch.where(begun[..., None], store.known(which, there), 0.0)
    read = Read(
        values[:, :length],
        store.past[flat[:, :length]],
        known[:, :length],
        torch.where(begun[:, :length], store.elapsed(which, there[:, :length]), 0.0),
        store.static[which],
        store.series[which],
    )
    return read, known, torch.where(place < end[:, None], values, torch.nan)


def windows_of(
    store: Store, part: int, *, length: int, n_mixed: int = 1, stride: int = 0, most_series: int | None = None
) -> Iterator[tuple[Tensor, Read, Tensor]]:
    """Windows of a split one after the other: series, rows, and which of them lie in the split.

    The last window of a series ends where the split does, and may begin before it.

    Args:
        store: The rows.
        part: 0, 1, 2: training, validation, test.
        length: Rows of a window.
        n_mixed: Series that are read together.
        stride: Rows from one to the next; by default a window's length.
        most_series: So many series, evenly chosen, instead of all.
    """
    groups = _some(torch.arange(0, len(store), n_mixed), most_series)
    bounds = store.bounds.cpu()
    chosen, starts = [], []
    for group in groups.tolist():
        begin, end = (0, *bounds[group].tolist())[part : part + 2]
        for last in range(end, begin, -(stride or length)):
            chosen.append(group)
            starts.append(max(0, last - length))
    nothing = torch.empty(0, dtype=torch.int64, device=store.values.device)
    for numbers in torch.arange(len(starts)).split(max(1, _MOST_SERIES // n_mixed)):
        first = torch.tensor(chosen)[numbers]
        which = (first[:, None] + torch.arange(n_mixed)).flatten().to(nothing.device)
        start = torch.tensor(starts)[numbers].repeat_interleave(n_mixed).to(nothing.device)
        end = store.bounds[which, part]
        begin = store.bounds[which, part - 1] if part else torch.zeros_like(end)
        place = start[:, None] + torch.arange(length, device=start.device)
        read = cut(store, which, start, length, nothing, 1, end).read
        yield which, read, (place >= begin[:, None]) & (place < end[:, None])


class Pieces(Dataset[Tensor]):
    """Training windows by number: ``(2,)`` int64, a series (or the first of a mixed group) and a first row.

    Args:
        store: The rows.
        length: Rows of a window.
        stride: Rows from one window to the next.
        least: Rows that are read before the first forecast.
        n_mixed: Series that are read together.
    """

    def __init__(self, store: Store, *, length: int, stride: int, least: int, n_mixed: int = 1) -> None:
        ends = store.bounds[::n_mixed, 0].cpu().numpy()
        span = np.where(ends >= 2, np.maximum(1, ends - least), 0)
        self.counts: NDArray[np.int64] = -(-span // stride)
        self.length, self.stride, self.n_mixed = length, stride, n_mixed
        self._ends = self.counts.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A batch at once; the data loader calls it."""
        numbers = np.asarray(indices)
        group = np.searchsorted(self._ends, numbers, side="right")
        inside = numbers - (self._ends[group] - self.counts[group])
        return torch.from_numpy(np.stack([group * self.n_mixed, inside * self.stride], axis=1))

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def loader(self, batch_size: int, *, shuffle: bool = True) -> DataLoader[Tensor]:
        """Batches; all of one size where there are enough, so that a GPU can record them."""
        drop = len(self) >= 4 * batch_size
        return DataLoader(self, batch_size, shuffle=shuffle, collate_fn=as_is, drop_last=drop)


class Found(NamedTuple):
    """Forecasts from rows of some series.

    Attributes:
        which: ``(rows,)`` the series.
        origins: ``(origins,)`` rows that are forecast from; outside a series' part it has no targets.
        quantiles: ``(rows, origins, horizon, n_quantiles)``, scaled.
        linear: ``(rows, origins, horizon)``, what least squares alone says.
        target: ``(rows, origins, horizon)``, NaN where there is none.
    """

    which: Tensor
    origins: Tensor
    quantiles: Tensor
    linear: Tensor
    target: Tensor


@torch.no_grad()
def forecasts(
    model: StreamForecaster, store: Store, part: int, *, stride: int = 1, most_series: int | None = None
) -> Iterator[Found]:
    """Forecasts after every ``stride``-th row of a split, each series read once from its beginning.

    The first step of each lies in the split; a forecast that would end after it is left out, unless the split
    is shorter than a horizon.

    Args:
        model: In evaluation mode, on the store's device.
        store: The rows.
        part: 0, 1, 2: training, validation, test.
        stride: Rows between forecasts.
        most_series: So many series, evenly chosen, instead of all.
    """
    n_mixed, horizon = model.config.n_mixed, model.config.horizon
    groups = _some(torch.arange(0, len(store), n_mixed), most_series)
    bounds = store.bounds.cpu()
    begin = torch.zeros(len(store), dtype=torch.int64) if part == 0 else bounds[:, part - 1]
    end = bounds[:, part]
    groups = groups[torch.argsort(end[groups], stable=True)]
    per_batch = max(1, _MOST_SERIES // n_mixed)
    for chosen in groups.split(per_batch):
        which = (chosen[:, None] + torch.arange(n_mixed)).flatten()
        first = max(int(begin[which].min()) - 1, 0)
        last = max(int((end[which] - horizon).max()), first + 1)
        yield from _through(model, store, which, first, last, stride, begin[which], end[which])


def _through(
    model: StreamForecaster,
    store: Store,
    which: Tensor,
    first: int,
    last: int,
    stride: int,
    begin: Tensor,
    end: Tensor,
) -> Iterator[Found]:
    device, horizon = store.values.device, model.config.horizon
    rows = which.to(device)
    state = None
    per_origin = len(which) * horizon * (len(model.levels) + model.config.n_known + 1)
    at_once = max(1, _MOST_NUMBERS // per_origin)
    wanted = torch.arange(first, last, stride)
    position = 0
    stop = int(wanted[-1]) + 1
    while position < stop:
        n = min(_PIECE, stop - position)
        here = wanted[(wanted >= position) & (wanted < position + n)]
        origins = (here - position).to(device)
        start = torch.full_like(rows, position)
        inside_end = end.to(device)
        read, known, goal = _stretch(store, rows, start, n, horizon, inside_end)
        origin, state = model.read(read, state, origins=origins)
        for i in range(0, len(here), at_once):
            few = slice(i, i + at_once)
            steps = origins[few, None] + 1 + torch.arange(horizon, device=device)
            ahead = known[:, steps]
            part = Origin(
                [hidden[:, few] for hidden in origin.hidden],
                *(getattr(origin, name)[:, few] for name in ("mean", "deviation", "recent", "known")),
            )
            quantiles = model.ahead(part, ahead, read.series)
            linear = model.plain(part, ahead, read.series)
            step = here[few][None] + 1
            late = (step < begin[:, None]) | (step + horizon > end[:, None]) & (begin + horizon <= end)[
                :, None
            ]
            target = torch.where(late.to(device)[..., None], torch.nan, goal[:, steps])
            yield Found(which, here[few], quantiles, linear, target)
        position += n


def _some(groups: Tensor, most: int | None) -> Tensor:
    """All of them, or so many evenly chosen ones."""
    if most is None or len(groups) <= most:
        return groups
    return groups[torch.linspace(0, len(groups) - 1, most).long()]
