"""The tokenizer of the network that reads row by row: values, their mask, covariates and the calendar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset
from torch import Tensor

from mambakit.core.adapters import SampleError, Tokenizer, Tokens
from mambakit.domains.timeseries.stream.covariates import Columns
from mambakit.domains.timeseries.tables.stamps import month_day
from mambakit.domains.timeseries.tables.table import Series, next_stamps
from mambakit.domains.timeseries.tokenizer import scale_of

_DAY = 86400.0
# Cycles that a step can't see (shorter than two steps) or that a series hardly holds are left out.
_CYCLES = {"day": (_DAY, _DAY), "week": (7 * _DAY, 2 * _DAY), "year": (365.2425 * _DAY, 40 * _DAY)}
# What differs by less from the first value is that value, but for rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Rows:
    """One series as arrays, scaled; missing numbers are NaN in ``values`` alone.

    Attributes:
        values: ``(length,)`` float32.
        past: ``(length, n_past)`` float32.
        known: ``(length + n_ahead, n_known)`` float32: covariates known ahead, and the calendar.
        elapsed: ``(length + n_ahead,)`` float32, steps since the row before; 1 for the first.
        static: ``(n_static,)`` float32.
        index: The series' place among those learned of; their number for another.
        offset: What was taken from the values before they were divided by ``unit``.
        unit: As above; zero for an unseen series that has shown no second value.
    """

    values: NDArray[np.float32]
    past: NDArray[np.float32]
    known: NDArray[np.float32]
    elapsed: NDArray[np.float32]
    static: NDArray[np.float32]
    index: int
    offset: float
    unit: float


class Begun(NamedTuple):
    """What an unseen series is taken relative to, as far as its rows have shown it; None before that.

    Attributes:
        offset: Its first value.
        unit: How far the first value that is another lies from it. Until there is one, all that is read is
            zero, whatever the unit: so rows read one by one are scaled as all at once, and no unit of
            measurement matters.
    """

    offset: float | None = None
    unit: float | None = None

    def after(self, values: NDArray[np.float64]) -> Self:
        """With what some further rows show, NaN where missing."""
        if self.unit is not None:
            return self
        there = values[np.isfinite(values)]
        offset = float(there[0]) if self.offset is None and len(there) else self.offset
        moved = np.abs(there - (offset or 0.0))
        moved = moved[moved > _ROUNDING * abs(offset or 0.0)]
        return self._replace(offset=offset, unit=float(moved[0]) if len(moved) else None)

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """The rows relative to it."""
        offset, unit = self.offset or 0.0, self.unit or 1.0
        moved = values - offset
        moved = np.where(np.abs(moved) <= _ROUNDING * abs(offset), 0.0, moved)
        return (moved / unit).astype(np.float32)


class RowTokenizer(Tokenizer[Series]):
    """Series to float channels, a token a row, and the values back.

    ``fit`` learns each series' mean and deviation from the rows it is given, scales and categories of the
    covariates, and which cycles of the calendar there are. A series it has not seen is taken relative to its
    first value and its first change (``Begun``).
    """

    kind = "timeseries-rows"

    def __init__(self, frequency: str = "", season_length: int = 1) -> None:
        self.frequency = frequency
        self.season_length = season_length
        self.ids: dict[str, int] = {}
        self.mean = np.zeros(0)
        self.deviation = np.ones(0)
        self.past, self.future, self.static = Columns(), Columns(), Columns()
        self.cycles: list[str] = []
        self.step_s = 1.0
        self._fitted = False

    @property
    def lossy(self) -> str:
        """Digits beyond float32, and all covariates."""
        return "digits beyond float32; covariates are scaled, clipped and not decoded"

    @property
    def is_fitted(self) -> bool:
        """True after ``fit``."""
        return self._fitted

    @property
    def n_known(self) -> int:
        """Channels known ahead: future covariates, then the calendar's."""
        return self.future.width + 2 * len(self.cycles)

    def fit(self, samples: Iterable[Series]) -> Self:
        """Learn from the training rows of each series.

        Raises:
            SampleError: If there is none.
        """
        series = list(samples)
        if not series:
            raise SampleError("nothing to fit on: there is no series")
        self.ids = {one.unique_id: i for i, one in enumerate(series)}
        scales = [_robust(one.values) for one in series]
        self.mean = np.array([mean for mean, _ in scales])
        self.deviation = np.array([deviation for _, deviation in scales])
        self.past.fit([one.past for one in series if one.past is not None])
        self.future.fit([one.future for one in series if one.future is not None])
        statics = [dict(one.static) for one in series]
        self.static.fit([pd.DataFrame(statics)] if any(statics) else [])
        longest = max(series, key=lambda one: len(one.values))
        self.step_s = _step_seconds(longest.stamps, self.frequency)
        if isinstance(longest.stamps, pd.DatetimeIndex):
            self.cycles = [
                name
                for name, (length, most) in _CYCLES.items()
                if 2 * self.step_s <= length and self.step_s <= most
            ]
        self._fitted = True
        return self

    def rows(
        self,
        sample: Series,
        *,
        ahead: int = 0,
        beyond: int = 0,
        calendar: bool = True,
        begun: Begun = Begun(),  # noqa: B008  (immutable)
    ) -> Rows:
        """The arrays of a series, and of so many steps after it.

        Covariates must be known for ``ahead`` steps; for ``beyond`` further ones the last row's stand in.
        Without ``calendar`` the known channels are the covariates alone. ``begun`` is what earlier rows of
        an unseen series have shown.

        Raises:
            SampleError: If covariates that the model needs are missing, known ones for ``ahead`` steps too.
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        where = f"series {sample.unique_id!r}"
        values = np.asarray(sample.values, dtype=np.float64)
        n = len(values)
        index = self.ids.get(sample.unique_id, len(self.ids))
        if index < len(self.ids):
            offset, unit = float(self.mean[index]), float(self.deviation[index])
            scaled = ((values - offset) / unit).astype(np.float32)
        else:
            begun = begun.after(values)
            offset, unit = begun.offset or 0.0, begun.unit or 0.0
            scaled = begun.scaled(values)
        stamps = sample.stamps
        if ahead + beyond:
            stamps = stamps.append(self.next_stamps(sample, ahead + beyond))
        known = self.future.encode(sample.future, n + ahead, where)
        if beyond:
            known = np.concatenate([known, np.repeat(known[-1:], beyond, axis=0)])
        if calendar and self.cycles:
            known = np.concatenate([known, self.calendar(stamps)], axis=1)
        static = pd.DataFrame([dict(sample.static)]) if self.static.names else None
        return Rows(
            scaled,
            self.past.encode(sample.past, n, where),
            known,
            self.elapsed(stamps, sample.frequency),
            self.static.encode(static, 1, where)[0],
            index,
            offset,
            unit,
        )

    def next_stamps(self, sample: Series, n: int) -> pd.Index:
        """The stamps of the ``n`` steps after a series; ordinary gaps apart where it is irregular."""
        frequency, length = sample.frequency or self.frequency, len(sample.stamps)
        if not frequency:
            index = None if sample.future is None else sample.future.index
            if index is not None and len(index) >= length + n and index[:length].equals(sample.stamps):
                return index[length : length + n]  # those that are known ahead come with their stamps
            dates = isinstance(sample.stamps, pd.DatetimeIndex)
            frequency = f"{self.step_s:g}s" if dates else f"{max(1, round(self.step_s))}"
        return next_stamps(sample.stamps[-1], frequency, n)

    def calendar(self, stamps: pd.Index) -> NDArray[np.float32]:
        """Sine and cosine of the place in each cycle, ``(length, 2 * n_cycles)``, by local time."""
        return waves(torch.tensor(self.clock(stamps)), torch.tensor(self.periods)).numpy()

    def clock(self, stamps: pd.Index) -> NDArray[np.int64]:
        """What the clock on the wall shows at each stamp, in microseconds."""
        naive = stamps.tz_localize(None) if stamps.tz is not None else stamps
        return np.asarray(naive.as_unit("us").asi8)

    @property
    def periods(self) -> list[int]:
        """Length of each cycle of the calendar in microseconds."""
        return [round(_CYCLES[name][0] * 1e6) for name in self.cycles]

    def elapsed(self, stamps: pd.Index, frequency: str) -> NDArray[np.float32]:
        """Steps since the row before; 1 throughout where the series is regular."""
        gaps = np.ones(len(stamps), dtype=np.float32)
        if not frequency and len(stamps) > 1:
            gaps[1:] = _gaps(stamps) / self.step_s
        return gaps

    def encode(self, sample: Series) -> Tokens:
        """Value, mask, past and known channels, ``(length, 2 + n_past + n_known)`` float32; time in steps.

        The series' index stands in ``modality``.
        """
        rows = self.rows(sample)
        there = np.isfinite(rows.values)
        channels = np.concatenate(
            [np.where(there, rows.values, 0.0)[:, None], there[:, None], rows.past, rows.known], axis=1
        )
        return Tokens(
            torch.from_numpy(channels.astype(np.float32)),
            time=torch.from_numpy(rows.elapsed.astype(np.float64).cumsum()),
            modality=torch.full((len(channels),), rows.index, dtype=torch.int64),
        )

    def decode(self, tokens: Tokens) -> Series:
        """The values of a known series in their own units; stamps are numbered.

        Raises:
            SampleError: If the series is unknown: what was taken from its values is not in the tokens.
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        index = int(tokens.modality[0]) if tokens.modality is not None and len(tokens) else 0
        names = {place: name for name, place in self.ids.items()}
        if index not in names:
            raise SampleError("the tokens are of a series that is not known; its scale is lost")
        channels = tokens.values.double().numpy()
        values = np.where(
            channels[:, 1] > 0, channels[:, 0] * self.deviation[index] + self.mean[index], np.nan
        )
        return Series(names[index], pd.RangeIndex(len(values)), values, "1")

    def same(self, sample: Series, other: Series) -> bool:
        """One known series, and values within float32 rounding of its range."""
        if sample.unique_id != other.unique_id or sample.unique_id not in self.ids:
            return False
        index, eps = self.ids[sample.unique_id], float(np.finfo(np.float32).eps)
        a, b = np.asarray(sample.values, np.float64), np.asarray(other.values, np.float64)
        room = 4 * eps * (np.abs(a) + abs(self.mean[index]) + self.deviation[index])
        return a.shape == b.shape and bool((np.abs(a - b) <= room)[np.isfinite(a)].all())

    def state(self) -> dict[str, Any]:
        """Options and what was fitted."""
        return {
            "frequency": self.frequency,
            "season_length": self.season_length,
            "ids": list(self.ids),
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
            "past": self.past.state(),
            "future": self.future.state(),
            "static": self.static.state(),
            "cycles": self.cycles,
            "step_s": self.step_s,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer of ``state()``."""
        made = cls(str(state["frequency"]), int(state["season_length"]))
        made.ids = {str(name): i for i, name in enumerate(state["ids"])}
        made.mean = np.array(state["mean"], dtype=np.float64)
        made.deviation = np.array(state["deviation"], dtype=np.float64)
        made.past, made.future, made.static = (
            Columns.from_state(state[name]) for name in ("past", "future", "static")
        )
        made.cycles = [str(name) for name in state["cycles"]]
        made.step_s = float(state["step_s"])
        made._fitted = True
        if not len(made.ids) == len(made.mean) == len(made.deviation):
            raise ValueError("ids, mean, deviation: expected three lists of one length")
        return made


def waves(clock: Tensor, periods: Tensor) -> Tensor:
    """Sine and cosine of the place in each cycle, ``(..., 2 * n_cycles)`` float32.

    Args:
        clock: ``(...)`` int64 microseconds.
        periods: ``(n_cycles,)`` int64 microseconds.
    """
    angle = 2 * torch.pi * (clock[..., None].remainder(periods).double() / periods)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2).float()


def _robust(values: NDArray[np.float64]) -> tuple[float, float]:
    there = values[np.isfinite(values)]
    if not len(there):
        return 0.0, 1.0
    mean, deviation = scale_of(there)
    return float(mean), float(deviation)


def _gaps(stamps: pd.Index) -> NDArray[np.float64]:
    """From each stamp to the next: seconds of dates, of any year; else in their own measure."""
    if not isinstance(stamps, pd.DatetimeIndex):
        return np.diff(stamps.to_numpy()).astype(np.float64)
    return np.diff(stamps.asi8) / {"s": 1e0, "ms": 1e3, "us": 1e6, "ns": 1e9}[stamps.unit]


def _step_seconds(stamps: pd.Index, frequency: str) -> float:
    """Length of a step; of integers and irregular stamps in their own measure."""
    if not isinstance(stamps, pd.DatetimeIndex):
        return float(np.median(_gaps(stamps))) if len(stamps) > 1 else 1.0
    if len(stamps) > 1:
        return max(float(np.median(_gaps(stamps))), 1e-9)
    offset = to_offset((frequency.partition("-")[0] if month_day(frequency) else frequency) or "D")
    return float((pd.Timestamp("2024-01-01") + 1 * offset - pd.Timestamp("2024-01-01")).total_seconds())
