"""Errors of forecasters by series, and their averages: over series as M4 has it, or pooled over targets.

| average | MSE, MAE, sMAPE, MASE, MSIS, coverage | wql |
|---|---|---|
| ``series`` | mean over a series' targets, then over series: M4, GIFT-Eval for MASE | pooled |
| ``pooled`` | mean over all targets: the long-term forecasting benchmarks | pooled |

The weighted quantile loss is a ratio of sums over all series in both, as in GluonTS and GIFT-Eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mambakit.core.errors import DataError
from mambakit.core.scoring import pinball, winkler
from mambakit.domains.timeseries.conformal import share_of_misses
from mambakit.domains.timeseries.forecasts import Forecast
from mambakit.domains.timeseries.metrics import central_pairs, owa, smape_terms

Array = NDArray[np.float64]
Average = Literal["series", "pooled"]
AVERAGES = ("series", "pooled")


class SeriesScores:
    """Sums of errors by forecaster and series; NaN targets do not count.

    Args:
        levels: Quantile levels of the weighted quantile loss, the same for every forecaster.
        intervals: Central intervals whose coverage is counted, in per cent; MSIS is of the widest.
    """

    def __init__(self, levels: Sequence[float], intervals: Sequence[float] = ()) -> None:
        self.levels = tuple(levels)
        self.intervals = tuple(sorted(intervals))
        for level in self.intervals:
            share_of_misses(level)
        self._parts: dict[str, list[dict[str, Any]]] = {}
        self._by_step: dict[str, Array] = {}
        self._ranks: dict[str, NDArray[np.int64]] = {}

    def add(self, name: str, forecasts: Sequence[Forecast], targets: Array, scales: Array) -> None:
        """Adds a forecast of each of several series.

        Args:
            name: The forecaster.
            forecasts: Of ``n`` series.
            targets: ``(n, horizon)``; NaN where missing.
            scales: ``mase_scale`` of each history, ``(n,)``; zero or NaN keeps a series out of MASE and MSIS.

        Raises:
            DataError: On a forecast that is NaN, or lacks one of the levels.
        """
        point = np.stack([one.point for one in forecasts])
        there = np.isfinite(targets)
        bad = np.isnan(point) & there
        if bad.any():
            row, step = (int(index[0]) for index in np.nonzero(bad))
            raise DataError(
                f"{name}: its forecast of series {forecasts[row].unique_id!r} is NaN at step {step + 1}"
            )
        quantiles = np.stack([one.quantiles for one in forecasts])[..., self._at(name, forecasts[0].levels)]
        p, t, q = torch.from_numpy(point), torch.from_numpy(targets), torch.from_numpy(quantiles)
        error = np.where(there, point - targets, 0.0)
        usable = there & (scales > 0)[:, None]
        scale = np.where(scales > 0, scales, 1.0)[:, None]
        loss = pinball(q, t, self.levels).mean(-1).numpy()
        rank = (quantiles < targets[..., None]).sum(-1)
        sums: dict[str, Any] = {
            "unique_id": [one.unique_id for one in forecasts],
            "n": there.sum(1),
            "se": (error**2).sum(1),
            "ae": np.abs(error).sum(1),
            "smape": np.where(there, smape_terms(p, t).numpy(), 0.0).sum(1),
            "ase": np.where(usable, np.abs(error) / scale, 0.0).sum(1),
            "scaled": usable.sum(1),
            "pinball": np.where(there, loss, 0.0).sum(1),
            "abs": np.where(there, np.abs(targets), 0.0).sum(1),
        }
        for level in self.intervals:
            pair = interval_of(forecasts, level)
            if pair is None:
                continue
            low, high = pair
            inside = (low <= targets) & (targets <= high)
            sums[f"inside-{level:g}"] = (inside & there).sum(1)
            if level == self.intervals[-1]:
                made = (torch.from_numpy(low), torch.from_numpy(high))
                scaled = winkler(*made, t, share_of_misses(level)).numpy() / scale
                sums["msis"] = np.where(usable, scaled, 0.0).sum(1)
        self._parts.setdefault(name, []).append(sums)
        ranks = np.bincount(rank[there], minlength=len(self.levels) + 1)
        by_step = np.stack([(error**2).sum(0), there.sum(0).astype(np.float64)])
        known = name in self._ranks
        self._ranks[name] = self._ranks[name] + ranks if known else ranks
        self._by_step[name] = self._by_step[name] + by_step if known else by_step

    def table(self) -> pd.DataFrame:
        """A row for each series and forecaster, in the order they came: n (targets), and the errors.

        Series without any target are left out; ``empty`` names them.
        """
        sums = self._sums()
        sums = sums[sums.n > 0]
        n = sums.n
        scaled = sums.scaled.where(sums.scaled > 0)
        found = pd.DataFrame(
            {
                "n": n,
                "mse": sums.se / n,
                "mae": sums.ae / n,
                "mase": sums.ase / scaled,
                "smape": sums.smape / n,
                "wql": 2 * sums.pinball / sums["abs"].where(sums["abs"] > 0),
            }
        )
        if "msis" in sums:
            found["msis"] = sums.msis / scaled
        for level in self.intervals:
            if f"inside-{level:g}" in sums:
                found[f"coverage-{level:g}"] = sums[f"inside-{level:g}"] / n
        return found.reset_index()

    @property
    def empty(self) -> list[str]:
        """Series without any target."""
        sums = self._sums().n.groupby("unique_id", sort=False).sum()
        return [str(name) for name in sums.index[sums == 0]]

    def rows(self, average: Average = "series") -> list[dict[str, object]]:
        """The average of each forecaster, one mapping each; OWA where ``naive2`` is among them.

        Raises:
            DataError: If no series has a target.
        """
        table = self.table()
        if table.empty:
            raise DataError("no series has a target to measure forecasts by")
        sums = self._sums()
        found: list[dict[str, object]] = []
        for name in table.forecaster.unique():
            own = table[table.forecaster == name].drop(columns=["unique_id", "forecaster", "n"])
            total = sums.xs(name, level="forecaster").sum(min_count=1)
            row = own.mean()
            if average == "pooled":
                row["mse"], row["mae"], row["smape"] = (total[k] / total.n for k in ("se", "ae", "smape"))
                scaled = total.scaled if total.scaled else np.nan
                row["mase"] = total.ase / scaled
                if "msis" in row:
                    row["msis"] = total.msis / scaled
                for level in self.intervals:
                    if f"coverage-{level:g}" in row:
                        row[f"coverage-{level:g}"] = total[f"inside-{level:g}"] / total.n
            row["wql"] = 2 * total.pinball / total["abs"] if total["abs"] else np.nan
            found.append({"forecaster": name, **{k: float(v) for k, v in row.items() if not np.isnan(v)}})
        _add_owa(found)
        return found

    def mse_by_step(self) -> dict[str, list[float]]:
        """Mean squared error at each step, pooled, of each forecaster."""
        return {
            name: (errors / np.where(counts > 0, counts, np.nan)).tolist()
            for name, (errors, counts) in self._by_step.items()
        }

    def ranks(self) -> dict[str, list[int]]:
        """How many targets had 0, 1, ... of the levels under them, of each forecaster."""
        return {name: counts.tolist() for name, counts in self._ranks.items()}

    def _sums(self) -> pd.DataFrame:
        """By series and forecaster, over origins."""
        frames = []
        for name, parts in self._parts.items():
            columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            sums = pd.DataFrame(columns).groupby("unique_id", sort=False).sum()
            frames.append(sums.assign(forecaster=name).set_index("forecaster", append=True))
        return pd.concat(frames)

    def _at(self, name: str, levels: Sequence[float]) -> list[int]:
        found = [int(np.argmin(np.abs(np.array(levels) - level))) for level in self.levels]
        far = [a for a, i in zip(self.levels, found, strict=True) if abs(levels[i] - a) > 1e-9]
        if far:
            raise DataError(f"{name}: its forecasts lack the quantile level {far[0]:g}")
        return found


def interval_of(forecasts: Sequence[Forecast], level: float) -> tuple[Array, Array] | None:
    """The central interval of ``level`` per cent, ``(n, horizon)`` each: calibrated, else of two quantiles.

    None if the forecasts have neither.
    """
    if level in forecasts[0].intervals:
        low, high = (np.stack([one.intervals[level][side] for one in forecasts]) for side in (0, 1))
        return low, high
    pairs = central_pairs(forecasts[0].levels)
    at = next((pair for found, pair in pairs.items() if abs(found - level) < 1e-6), None)
    if at is None:
        return None
    quantiles = np.stack([one.quantiles for one in forecasts])
    return quantiles[..., at[0]], quantiles[..., at[1]]


def _add_owa(rows: list[dict[str, object]]) -> None:
    base = next((row for row in rows if row["forecaster"] == "naive2"), None)
    if base is None or "mase" not in base or not base["mase"] or not base["smape"]:
        return
    for row in rows:
        if "mase" in row:
            row["owa"] = owa(*(float(r[k]) for r in (row, base) for k in ("smape", "mase")))  # type: ignore[arg-type]
