"""Anomaly scores: how surprised the forecasts made of a row were when its value came.

F_h = distribution forecast of the row from h rows before, h = 1..k        (quantiles, exponential tails)
a_h = -log of twice the smaller tail of F_h, at most CAP                    (about Exp(1) where calibrated)
b_h = a_h / running mean of a_h over the last MEMORY rows                  (an often wrong lead counts less)
b   = (b_1 + mean of b_1..b_k) / 2      (b_1 sees every jump; the longer leads have not yet seen the anomaly)
score = mean of b over the ``smooth`` rows around the row: it waits for half of them
anomaly = score above what a share ``rate`` of normal rows exceeds          (exponential tail beyond its 90 %)

Everything looks back alone, so rows are scored as they come, with a state of fixed size. A missing value has
no score, and a forecast made when less than half of the lookback was observed is not counted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.parts import Read
from mambakit.domains.timeseries.stream.rows import Rows
from mambakit.domains.timeseries.tables.table import Series

RATE = 1e-3
NORMAL = 0.15
COLUMNS = ("unique_id", "ds", "y", "y_hat", "lo", "hi", "score", "anomaly")
_CAP = 20.0
# Chosen on anomalies put into other series; benchmarks/timeseries_anomalies.py says which.
_MEMORY = 2000.0
# The running mean of a lead begins at 1, what a calibrated forecast has, as if it had been seen so often;
# a great surprise is not to hide those that follow it.
_PRIOR = 20.0
_MOST_IN_MEAN = 6.0
_LEAST_SEEN = 0.5
_TAIL_FROM = 0.9
_LEAST_NORMAL = 50
_LEAST_SPREAD = 1e-6
_PIECE = 1024


def surprise(value: Tensor, quantiles: Tensor, levels: Sequence[float]) -> Tensor:
    """Minus the logarithm of twice the smaller tail probability; 0 at the median, NaN without a value.

    Between levels the distribution function is linear. Beyond the outermost ones tails are exponential, with
    the scale that joins the median and the outermost level.

    Args:
        value: Any shape.
        quantiles: The same and ``(n_levels,)`` behind it, increasing; NaN where there is no forecast.
        levels: Their levels, increasing, on both sides of 0.5.
    """
    level = torch.tensor(levels, dtype=quantiles.dtype, device=quantiles.device)
    n, value = len(levels), value[..., None]
    above = (quantiles <= value).sum(-1, keepdim=True).clamp(1, n - 1)
    low, high = quantiles.gather(-1, above - 1), quantiles.gather(-1, above)
    share = ((value - low) / (high - low).clamp(min=_LEAST_SPREAD)).clamp(0, 1)
    inside = level[above - 1] + share * (level[above] - level[above - 1])
    inside = -(2 * inside.minimum(1 - inside)).log()
    first, last = quantiles[..., :1], quantiles[..., -1:]
    middle = quantiles[..., n // 2, None]
    beyond = []
    for edge, gap, tail in ((first, first - value, levels[0]), (last, value - last, 1 - levels[-1])):
        scale = ((edge - middle).abs() / math.log(0.5 / tail)).clamp(min=_LEAST_SPREAD)
        beyond.append(torch.where(gap > 0, gap / scale - math.log(2 * tail), -torch.inf))
    y = torch.where((value < first) | (value > last), torch.maximum(*beyond), inside)
    y = torch.where(quantiles.isnan().any(-1, keepdim=True) | value.isnan(), torch.nan, y)
    return y.clamp(min=0)[..., 0]


class Scored(NamedTuple):
    """A row and its score; NaN where it has none."""

    row: int
    score: float


class Smoother:
    """From the surprises of a row under each lead to scores, a row at a time.

    Args:
        smooth: Rows that a score is the mean over; it belongs to the row in their middle.
    """

    def __init__(self, n_leads: int, smooth: int) -> None:
        self.total = np.full(n_leads, _PRIOR)
        self.count = np.full(n_leads, _PRIOR)
        self.smooth, self.wait = smooth, smooth // 2
        self.recent: deque[float] = deque(maxlen=smooth)
        self.rows = 0

    def add(self, surprises: NDArray[np.float64]) -> Scored | None:
        """Take in the next row, ``(n_leads,)``, NaN where there is none; the row that has its score now."""
        there = ~np.isnan(surprises)
        mean = math.nan
        if there.any():
            capped = np.where(there, surprises, 0.0).clip(max=_CAP)
            relative = capped / (self.total / self.count)
            whole = relative.sum() / there.sum()
            mean = (relative[0] + whole) / 2 if there[0] else whole
            keep = 1 - 1 / _MEMORY
            prior = (1 - keep) * _PRIOR  # which never fades, so that no mean falls to zero
            self.total = np.where(
                there, keep * self.total + prior + capped.clip(max=_MOST_IN_MEAN), self.total
            )
            self.count = np.where(there, keep * self.count + prior + 1, self.count)
        self.recent.append(float(mean))
        self.rows += 1
        return self._score(self.rows - 1 - self.wait) if self.rows > self.wait else None

    def finish(self) -> Iterator[Scored]:
        """The rows that are still waiting, by what came."""
        return (self._score(row) for row in range(max(0, self.rows - self.wait), self.rows))

    def _score(self, row: int) -> Scored:
        oldest = self.rows - len(self.recent)
        first = max(0, row - (self.smooth - 1 - self.wait) - oldest)
        values = np.array(self.recent)
        around = values[first:]
        there = ~np.isnan(around)
        missing = math.isnan(values[row - oldest])
        return Scored(row, math.nan if missing else float(around[there].mean()))


class StreamScorer:
    """Scores rows of one series, or of those that are read together, as they come.

    Args:
        model: A stream forecaster.
        smooth: Rows that a score is the mean over; the trained horizon by default.

    Raises:
        UsageError: If ``smooth`` is below 1, the model reads irregular rows, or its levels don't lie on both
            sides of the median.
    """

    def __init__(self, model: StreamForecaster, *, smooth: int | None = None) -> None:
        smooth = model.config.horizon if smooth is None else smooth
        if smooth < 1:
            raise UsageError(f"smooth: expected at least 1 row, got {smooth}")
        if not model.levels[0] < 0.5 < model.levels[-1]:
            raise UsageError(f"model: scores need quantiles on both sides of 0.5, got {list(model.levels)}")
        if model.config.irregular:
            raise UsageError(
                "model: scores need rows at a regular step; put them on a grid with missing values"
            )
        self.model, self.smooth = model, smooth
        config = model.config
        self.state: Any = None
        self.smoothers = [Smoother(config.horizon, smooth) for _ in range(config.n_mixed)]
        device = next(model.parameters()).device
        shape = (config.n_mixed, config.horizon, config.horizon, len(model.levels))
        self._made = torch.full(shape, torch.nan, device=device)  # forecasts of the last k rows
        self._ids: list[str] = []
        self._scale: list[tuple[float, float]] = []
        self._waiting: list[list[tuple[Any, ...]]] = [[] for _ in range(config.n_mixed)]

    def update(self, series: Sequence[Series]) -> pd.DataFrame:
        """Take in the next rows; the rows that have their score by that, as ``anomaly_scores`` gives them.

        Args:
            series: One, or those that the model reads together in its order, each with its new rows alone;
                covariates known ahead reach a horizon further.

        Raises:
            DataError: If they are not the series that were read before, or lack covariates.
        """
        rows = self._tokens(series)
        n = len(series[0].values)
        parts = []
        for first in range(0, n, _PIECE):
            parts.append(self._piece(series, rows, first, min(n, first + _PIECE)))
        return pd.concat(parts, ignore_index=True)

    def finish(self) -> pd.DataFrame:
        """The last rows, whose scores still wait for rows that never come."""
        found = [
            [(*row, scored.score) for row, scored in zip(waiting, smoother.finish(), strict=True)]
            for waiting, smoother in zip(self._waiting, self.smoothers, strict=True)
        ]
        self._waiting = [[] for _ in self._waiting]
        return _frame(found)

    def _tokens(self, series: Sequence[Series]) -> list[Rows]:
        """The new rows as the model reads them, and a horizon ahead."""
        config, tokenizer = self.model.config, self.model.tokenizer
        if len(series) != config.n_mixed:
            raise DataError(f"the model reads {config.n_mixed} series together, got {len(series)}")
        names = [one.unique_id for one in series]
        if self._ids and names != self._ids:
            raise DataError(f"expected rows of {', '.join(self._ids)}, got {', '.join(names)}")
        made = []
        for i, one in enumerate(series):
            if not len(one.values):
                raise DataError(f"series {one.unique_id!r} has no new rows")
            rows = tokenizer.rows(one, ahead=config.horizon)
            if not self._ids:
                self._scale.append((rows.offset, rows.unit))
            offset, unit = self._scale[i]
            values = ((np.asarray(one.values, np.float64) - offset) / unit).astype(np.float32)
            made.append(replace(rows, values=values, offset=offset, unit=unit))
        self._ids = names
        return made

    @torch.no_grad()
    def _piece(self, series: Sequence[Series], rows: list[Rows], first: int, end: int) -> pd.DataFrame:
        model, horizon, n = self.model, self.model.config.horizon, end - first
        device = self._made.device

        def stack(name: str, last: int) -> Tensor:
            return torch.from_numpy(np.stack([getattr(one, name)[first:last] for one in rows])).to(device)

        index = torch.tensor([one.index for one in rows], device=device)
        known = stack("known", end + horizon)
        values = stack("values", end)
        static = torch.from_numpy(np.stack([one.static for one in rows])).to(device)
        read = Read(values, stack("past", end), known[:, :n], stack("elapsed", end), static, index)
        before = (self.state if self.state is not None else model.init_state(len(rows), device))["values"]
        origin, self.state = model.read(read, self.state, origins=torch.arange(n, device=device))
        ahead = known.unfold(1, horizon, 1)[:, 1 : n + 1].transpose(-1, -2)  # [g, n, k, known]
        quantiles = model.ahead(origin, ahead, index)
        seen = torch.cat([before, values], 1).isfinite().float().unfold(1, before.shape[1], 1)[:, 1:].mean(-1)
        quantiles = torch.where((seen >= _LEAST_SEEN)[..., None, None], quantiles, torch.nan)
        made = torch.cat([self._made, quantiles], 1)
        self._made = made[:, -horizon:].clone()
        lead = torch.arange(horizon, device=device)
        at = horizon + torch.arange(n, device=device)[:, None] - 1 - lead
        of_row = made[:, at, lead]  # [g, n, k, levels]: forecasts made of each row
        found = surprise(values[..., None].expand(-1, -1, horizon), of_row, model.levels)
        surprises = found.double().cpu().numpy()
        outer = torch.stack([model.point(of_row), of_row[..., 0], of_row[..., -1]], -1).nanmean(2)
        scale = torch.tensor([(one.offset, one.unit) for one in rows], dtype=torch.float64)
        band = outer.double().cpu() * scale[:, None, None, 1] + scale[:, None, None, 0]
        return _frame(
            [
                list(self._rows(g, one, first, end, band[g].numpy(), surprises[g]))
                for g, one in enumerate(series)
            ]
        )

    def _rows(
        self,
        g: int,
        one: Series,
        first: int,
        end: int,
        band: NDArray[np.float64],
        surprises: NDArray[np.float64],
    ) -> Iterator[tuple[Any, ...]]:
        waiting, smoother = self._waiting[g], self.smoothers[g]
        for i, row in enumerate(range(first, end)):
            waiting.append((one.unique_id, one.stamps[row], one.values[row], *band[i]))
            scored = smoother.add(surprises[i])
            if scored is not None:
                yield (*waiting.pop(0), scored.score)


def anomaly_scores(
    model: StreamForecaster,
    series: Sequence[Series],
    *,
    normal: float = NORMAL,
    rate: float = RATE,
    smooth: int | None = None,
) -> pd.DataFrame:
    """How anomalous each row of some series is, each read once from its beginning.

    Args:
        model: A stream forecaster; series that it reads together must all be there, on the same stamps.
        series: What to score; missing values are NaN, and have no score.
        normal: Rows from the beginning that are believed normal, and set the threshold: a share of each
            series below 1, a number of rows above. NAB's probation period is 0.15.
        rate: Share of rows like the normal ones that may be called anomalous: one in a thousand by default. A
            series that drifts away from them has more: one in fifty to a hundred on the NAB series.
        smooth: Rows that a score is the mean over; the trained horizon by default.

    Returns:
        ``unique_id, ds, y, y_hat, lo, hi, score, anomaly``: the forecast of the row and its outermost
        quantiles, averaged over the horizon of rows that it was forecast from; the score, 1 in the mean of
        normal rows; whether it lies above the series' threshold.

    Raises:
        UsageError: If ``normal``, ``rate`` or ``smooth`` makes no sense.
        DataError: If a series has too few normal rows, or lacks covariates.
    """
    if not 0 < rate < 1:
        raise UsageError(f"rate: expected a share inside (0, 1), got {rate}")
    if not normal > 0:
        raise UsageError(f"normal: expected a share or a number of rows above 0, got {normal}")
    frames = []
    for group in _groups(model, series):
        scorer = StreamScorer(model, smooth=smooth)
        longer = [_reaching(one, model.config.horizon) for one in group]
        scored = pd.concat([scorer.update(longer), scorer.finish()], ignore_index=True)
        frames += [one for _, one in scored.groupby("unique_id", sort=False)]
    order = {one.unique_id: i for i, one in enumerate(series)}
    frames.sort(key=lambda one: order[one["unique_id"].iloc[0]])
    for one in frames:
        score = one["score"].to_numpy()
        n_normal = int(normal if normal >= 1 else normal * len(score))
        level = threshold(score[:n_normal], rate, name=str(one["unique_id"].iloc[0]))
        one["anomaly"] = score > level
    return pd.concat(frames, ignore_index=True)


def threshold(normal: NDArray[np.float64], rate: float = RATE, *, name: str = "y") -> float:
    """The score that a share ``rate`` of normal rows exceeds.

    Rarer than one row in ten it is read off an exponential tail fitted to the highest tenth, since no few
    hundred rows show one in a thousand (peaks over a threshold, Siffer et al. 2017, with a tail index of 0).

    Raises:
        DataError: With fewer than 50 scores.
    """
    there = normal[~np.isnan(normal)]
    if len(there) < _LEAST_NORMAL:
        raise DataError(
            f"series {name!r} has {len(there)} scored rows among its normal ones, but a threshold needs "
            f"{_LEAST_NORMAL}; say with --normal how many rows at its beginning are normal"
        )
    if rate >= 1 - _TAIL_FROM:
        return float(np.quantile(there, 1 - rate))
    high = float(np.quantile(there, _TAIL_FROM))
    beyond = there[there > high] - high
    mean = float(beyond.mean()) if len(beyond) else 0.0
    return high + mean * math.log((1 - _TAIL_FROM) / rate)


def _groups(model: StreamForecaster, series: Sequence[Series]) -> list[list[Series]]:
    """Series that are read together, in the order of the model's training."""
    n = model.config.n_mixed
    if n == 1:
        return [[one] for one in series]
    by_name = {one.unique_id: one for one in series}
    names = list(model.tokenizer.ids)
    absent = [name for name in names if name not in by_name]
    if absent or len(series) != len(names):
        what = f"{absent[0]!r} is missing" if absent else f"there are {len(series)} series"
        raise DataError(f"the model reads {len(names)} series together, but {what}")
    groups = [[by_name[name] for name in names[i : i + n]] for i in range(0, len(names), n)]
    for group in groups:
        for one in group[1:]:
            if not one.stamps.equals(group[0].stamps):
                raise DataError(
                    f"series {one.unique_id!r} has other stamps than {group[0].unique_id!r}, but the model "
                    "reads them together"
                )
    return groups


def _reaching(one: Series, horizon: int) -> Series:
    """With covariates a horizon beyond the end: what is forecast there is compared with nothing."""
    if one.future is None or len(one.future) >= len(one.values) + horizon:
        return one
    short = len(one.values) + horizon - len(one.future)
    return replace(one, future=pd.concat([one.future, *[one.future.iloc[-1:]] * short], ignore_index=True))


def _frame(rows: Sequence[Sequence[tuple[Any, ...]]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in rows for row in part], columns=list(COLUMNS[:-1]))


def alarms(table: pd.DataFrame) -> pd.DataFrame:
    """One line for each run of flagged rows of ``anomaly_scores``: unique_id, begin, end, rows, score.

    ``score`` is the highest in it.
    """
    found = []
    for name, one in table.groupby("unique_id", sort=False):
        flagged = one["anomaly"].to_numpy(bool)
        number = np.cumsum(np.diff(flagged, prepend=False))
        for _, rows in one[flagged].groupby(number[flagged]):
            ds = rows["ds"]
            found.append((str(name), ds.iloc[0], ds.iloc[-1], len(rows), float(rows["score"].max())))
    return pd.DataFrame(found, columns=["unique_id", "begin", "end", "rows", "score"])
