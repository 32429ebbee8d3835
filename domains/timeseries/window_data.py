"""Windows of fixed length, cut out of series: lazy indices, and the values that they point into.

A window is one number, the row of its first forecast step. The values lie in memory once; what a window
reads and what it should forecast are cut out of them a batch at a time, on the device that trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.data import SeriesData

SPLITS = ("train", "validation", "test")


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
