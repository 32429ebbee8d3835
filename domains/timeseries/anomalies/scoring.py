"""Anomaly scores: how surprised a forecaster was by each row, and how unusual the rows around it are.

F_h = distribution forecast of the row from h rows before, h = 1..k        (quantiles, exponential tails)
score from the surprises under all F_h, the level and the steps            (parts.py)
anomaly = score above what a share ``rate`` of normal rows exceeds          (exponential tail beyond its 90 %)

Nothing looks further ahead than the rows that a score waits for, so rows are scored as they come, with a
state of fixed size. A missing value has no score, and a forecast made when less than half of the lookback
was observed is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.timeseries.anomalies.parts import PARTS, RowScorer, Scored
from mambakit.domains.timeseries.anomalies.surprise import surprise
from mambakit.domains.timeseries.stream.forecasting import in_training_order
from mambakit.domains.timeseries.stream.network import StreamForecaster
from mambakit.domains.timeseries.stream.parts import Read
from mambakit.domains.timeseries.stream.rows import Begun, Rows
from mambakit.domains.timeseries.tables.table import Series

RATE = 1e-3
NORMAL = 0.15
COLUMNS = ("unique_id", "ds", "y", "y_hat", "lo", "hi", "score", *PARTS, "anomaly")
_LEAST_SEEN = 0.5
_TAIL_FROM = 0.9
_LEAST_NORMAL = 50
# Rows of a piece, and numbers of its forecasts: rows x series x steps x levels.
_PIECE = 1024
_MOST_NUMBERS = 4_000_000


class StreamScorer:
    """Scores rows of one series, or of those that are read together, as they come.

    Args:
        model: A stream forecaster.
        smooth: Rows around each row that its score is of; the trained horizon by default.

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
        self.scorers = [
            RowScorer(config.horizon, smooth, config.season_length) for _ in range(config.n_mixed)
        ]
        device = next(model.parameters()).device
        shape = (config.n_mixed, config.horizon, config.horizon, len(model.levels))
        self._made = torch.full(shape, torch.nan, device=device)  # forecasts of the last k rows
        self._ids: list[str] = []
        self._begun = [Begun()] * config.n_mixed
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
        size = max(1, min(_PIECE, _MOST_NUMBERS // self._made[:, 0].numel()))
        parts = []
        for first in range(0, n, size):
            parts.append(self._piece(series, rows, first, min(n, first + size)))
        return pd.concat(parts, ignore_index=True)

    def finish(self) -> pd.DataFrame:
        """The last rows, whose scores still wait for rows that never come."""
        found = [
            [_line(row, scored) for row, scored in zip(waiting, scorer.finish(), strict=True)]
            for waiting, scorer in zip(self._waiting, self.scorers, strict=True)
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
            made.append(tokenizer.rows(one, ahead=config.horizon, begun=self._begun[i]))
        self._begun = [
            begun.after(np.asarray(one.values, np.float64))
            for begun, one in zip(self._begun, series, strict=True)
        ]
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
        surprises = found.cpu().double().numpy()
        outer = torch.stack([model.point(of_row), of_row[..., 0], of_row[..., -1]], -1).nanmean(2)
        scale = torch.tensor([(one.offset, one.unit) for one in rows], dtype=torch.float64)
        band = outer.cpu().double() * scale[:, None, None, 1] + scale[:, None, None, 0]
        return _frame(
            [
                list(self._rows(g, one, rows[g].values, first, band[g].numpy(), surprises[g]))
                for g, one in enumerate(series)
            ]
        )

    def _rows(
        self,
        g: int,
        one: Series,
        scaled: NDArray[np.float32],
        first: int,
        band: NDArray[np.float64],
        surprises: NDArray[np.float64],
    ) -> Iterator[tuple[Any, ...]]:
        waiting, scorer = self._waiting[g], self.scorers[g]
        for i, row in enumerate(range(first, first + len(band))):
            waiting.append((one.unique_id, one.stamps[row], one.values[row], *band[i]))
            scored = scorer.add(surprises[i], float(scaled[row]))
            if scored is not None:
                yield _line(waiting.pop(0), scored)


def anomaly_scores(
    model: StreamForecaster,
    series: Sequence[Series],
    *,
    normal: float = NORMAL,
    rate: float = RATE,
    smooth: int | None = None,
    left_out: list[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """How anomalous each row of some series is, each read once from its beginning.

    Args:
        model: A stream forecaster; series that it reads together must all be there, on the same stamps.
        series: What to score; missing values are NaN, and have no score.
        normal: Rows from the beginning that are believed normal, and set the threshold: a share of each
            series below 1, a number of rows above. NAB's probation period is 0.15.
        rate: Share of rows like the normal ones that may be called anomalous: one in a thousand by default. A
            series that drifts away from them has more: up to one in seventy on the NAB series.
        smooth: Rows around each row that its score is of; the trained horizon by default.
        left_out: Takes name and reason of each series that can't be scored; without it that is an error.

    Returns:
        ``COLUMNS``: the forecast of the row and its outermost quantiles, averaged over the horizon of rows
        that it was forecast from; the score, about 1 for normal rows; the parts that say where it comes from
        (``parts.py``); whether it lies above the series' threshold.

    Raises:
        UsageError: If ``normal``, ``rate`` or ``smooth`` makes no sense.
        DataError: If a series has too few normal rows or lacks covariates, and there is no ``left_out`` that
            takes it or the model reads all of them together; or none can be scored.
    """
    if not 0 < rate < 1:
        raise UsageError(f"rate: expected a share inside (0, 1), got {rate}")
    if not normal > 0:
        raise UsageError(f"normal: expected a share or a number of rows above 0, got {normal}")
    by_name = {one.unique_id: one for one in series}
    together = model.config.n_mixed > 1
    groups = [in_training_order(model, by_name)] if together else [[name] for name in by_name]
    made: dict[str, pd.DataFrame] = {}
    for names in groups:
        scorer = StreamScorer(model, smooth=smooth)
        try:
            longer = [_reaching(by_name[name], model.config.horizon) for name in names]
            scored = pd.concat([scorer.update(longer), scorer.finish()], ignore_index=True)
            for name, one in scored.groupby("unique_id", sort=False):
                made[str(name)] = _flagged(one, normal, rate)
        except DataError as error:
            if left_out is None or together:  # which needs every one of them
                raise
            left_out.append((names[0], str(error)))
    if not made:
        raise DataError(left_out[0][1] if left_out else "there is no series to score")
    return pd.concat([made[name] for name in by_name if name in made], ignore_index=True)


def _flagged(scored: pd.DataFrame, normal: float, rate: float) -> pd.DataFrame:
    """The rows of one series, and whether each lies above its threshold."""
    score = scored["score"].to_numpy()
    n_normal = int(normal if normal >= 1 else normal * len(score))
    level = threshold(score[:n_normal], rate, name=str(scored["unique_id"].iloc[0]))
    return scored.assign(anomaly=score > level)


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


def _reaching(one: Series, horizon: int) -> Series:
    """With covariates a horizon beyond the end: what is forecast there is compared with nothing."""
    if one.future is None or len(one.future) >= len(one.values) + horizon:
        return one
    short = len(one.values) + horizon - len(one.future)
    return replace(one, future=pd.concat([one.future, *[one.future.iloc[-1:]] * short], ignore_index=True))


def _line(row: tuple[Any, ...], scored: Scored) -> tuple[Any, ...]:
    return (*row, scored.score, *scored.parts)


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
