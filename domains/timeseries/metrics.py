"""Forecast errors: pure functions on tensors, and a running total over windows.

NaN targets are missing values and never count; a NaN forecast of a target that is there makes the error NaN.
What is averaged over targets that share a unit is *pooled*: the long-term forecasting benchmarks average so
over windows, steps and series. M4 averages each series first and then over series; ``scores.SeriesScores``
gives both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mambakit.core.calibration import SplitConformal
from mambakit.core.errors import DataError
from mambakit.core.scoring import pinball, winkler
from mambakit.domains.timeseries import conformal

# Two levels p and q hold a central interval if p + q = 1, up to what floats lose
_SLACK = 1e-9


def weighted_quantile_loss(quantiles: Tensor, target: Tensor, levels: Tensor | Sequence[float]) -> Tensor:
    """``2 sum(pinball) / sum(|target|)``, averaged over levels (Park et al. 2022, eq. 1).

    GIFT-Eval and GluonTS call it mean weighted quantile loss, and CRPS for the levels 0.1 .. 0.9. For a point
    forecast, taken as every quantile, it is the normalised deviation ``sum(|error|) / sum(|target|)`` if the
    levels are symmetric.

    Args:
        quantiles: ``(..., n_quantiles)``.
        target: ``(...)``.
        levels: ``(n_quantiles,)``.
    """
    there = ~target.isnan()
    return 2 * pinball(quantiles, target, levels).mean(-1)[there].sum() / target[there].abs().sum()


def coverage(low: Tensor, high: Tensor, target: Tensor) -> Tensor:
    """Share of targets inside ``[low, high]``."""
    return ((low <= target) & (target <= high))[~target.isnan()].double().mean()


def smape_terms(point: Tensor, target: Tensor) -> Tensor:
    """Symmetric absolute percentage error of each target, in percent, 0 to 200 (Makridakis 1993; M4).

    Where forecast and target are both zero the error is zero; NaN where the target is.
    """
    total = point.abs() + target.abs()
    ratio = (point - target).abs() / total.clamp(min=1e-300)
    return 200 * torch.where(total == 0, 0.0, ratio)


def smape(point: Tensor, target: Tensor) -> Tensor:
    """Mean of ``smape_terms`` over the targets that are there."""
    return smape_terms(point, target)[~target.isnan()].mean()


def mase_scale(history: Tensor, season_length: int) -> Tensor:
    """Mean absolute seasonal difference of each series, ``(n_series,)`` (Hyndman & Koehler 2006).

    Only pairs of rows count that are both there; NaN where there is none.

    Args:
        history: Training rows, ``(length, n_series)``, longer than a season; else a season of 1 is used.
        season_length: Rows in a season.
    """
    season = season_length if len(history) > season_length else 1
    return (history[season:] - history[:-season]).abs().nanmean(0)


def mase(point: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Mean absolute error over ``scale``, from ``mase_scale``, ``(...)`` or what broadcasts to it.

    Targets of series whose scale is zero or NaN stay out.
    """
    return _mean_over(scale, (point - target).abs(), target)


def msis(low: Tensor, high: Tensor, target: Tensor, scale: Tensor, *, alpha: float = 0.05) -> Tensor:
    """Mean scaled interval score: the Winkler score over the seasonal naive scale (M4, eq. 4).

    Gneiting & Raftery 2007, eq. 43. M4 takes the 95 % interval and each series' ``mase_scale``.

    Args:
        low, high, target: ``(...)``.
        scale: ``(...)``, or what broadcasts to it.
        alpha: The interval is meant to hold ``1 - alpha`` of the targets.
    """
    return _mean_over(scale, winkler(low, high, target, alpha), target)


def owa(smape: float, mase: float, naive2_smape: float, naive2_mase: float) -> float:
    """M4's overall weighted average: the mean of sMAPE and MASE, each over that of Naive 2.

    Of the averages over series, not the average of ratios (Makridakis et al. 2020, section 2.2).
    """
    return 0.5 * (smape / naive2_smape + mase / naive2_mase)


def central_pairs(levels: Sequence[float]) -> dict[float, tuple[int, int]]:
    """Central intervals that quantile levels hold: nominal coverage in percent, to the pair's indices.

    ``(0.1, 0.5, 0.9)`` holds ``{80: (0, 2)}``. Widest first.
    """
    found: dict[float, tuple[int, int]] = {}
    for i, low in enumerate(levels):
        for j, high in enumerate(levels):
            if low < 0.5 and abs(low + high - 1) < _SLACK:
                found[round(100 * (high - low), 6)] = (i, j)
    return dict(sorted(found.items(), reverse=True))


class Errors:
    """Sums up errors over batches of windows, in float64, so that the order of batches does not matter.

    Args:
        levels: Quantile levels, increasing; empty for point forecasts alone.
        scale: Of each series for MASE, ``(n_series,)``; NaN MASE where a series' scale is zero.
        calibrator: Of the intervals between the outermost levels, from ``conformal.calibrate``.
    """

    def __init__(
        self,
        levels: Sequence[float] = (),
        scale: Tensor | None = None,
        calibrator: SplitConformal | None = None,
    ) -> None:
        self.levels = tuple(levels)
        self.scale = scale
        self.calibrator = calibrator
        self.sums: dict[str, Tensor] = {}

    def add(
        self,
        point: Tensor,
        target: Tensor,
        quantiles: Tensor | None = None,
        *,
        scaled_back: tuple[Tensor, Tensor] | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """Adds windows; NaN targets do not count.

        Args:
            point, target: ``(batch, horizon, n_series)``, in the units errors are measured in.
            quantiles: ``(batch, horizon, n_series, n_quantiles)``.
            scaled_back: Point and target in their own units, for sMAPE; else the units above serve.
            scale: MASE scale in the units above, ``(n_series,)`` or ``(batch, 1, n_series)``.
        """
        there = ~target.isnan()
        error = torch.where(there, (point - target).double(), 0.0)
        self._sum("count", there.sum((0, 2)))
        self._sum("se", error.square().sum((0, 2)))
        self._sum("ae", error.abs().sum())
        self._sum("abs", torch.where(there, target.abs().double(), 0.0).sum())
        own_point, own_target = scaled_back or (point, target)
        self._sum(
            "smape", torch.where(there, smape_terms(own_point.double(), own_target.double()), 0.0).sum()
        )
        scale = self.scale if scale is None else scale
        if scale is not None:
            scale = scale.to(error).expand_as(error)
            usable = there & (scale > 0)
            self._sum("ase", torch.where(usable, error.abs() / torch.where(usable, scale, 1.0), 0.0).sum())
            self._sum("ase_count", usable.sum())
        if quantiles is not None and self.levels:
            loss = pinball(quantiles, target, self.levels).mean(-1).double()
            self._sum("pinball", torch.where(there, loss, 0.0).sum())
            # how many levels lie under the target: a histogram of these counts holds every coverage
            rank = (quantiles < target[..., None]).sum(-1)[there]
            self._sum("ranks", rank.bincount(minlength=len(self.levels) + 1))
            low, high = quantiles[..., 0], quantiles[..., -1]
            self._sum("inside", ((low <= target) & (target <= high)).double().sum())
            if self.calibrator is not None:
                self._sum("calibrated", self._inside_calibrated(quantiles, target))

    @property
    def count(self) -> int:
        """Targets that were there."""
        return int(self.sums["count"].sum()) if "count" in self.sums else 0

    def result(self) -> dict[str, float]:
        """mse, mae, smape, and where they can be had mase, wql and coverage.

        ``coverage`` is the share of targets between the lowest and the highest level, ``coverage-calibrated``
        the share inside the calibrated interval that promises as many.
        """
        count = self.count
        if not count:
            return {}
        total = {name: float(value.sum()) for name, value in self.sums.items()}
        result = {"mse": total["se"] / count, "mae": total["ae"] / count, "smape": total["smape"] / count}
        if "ase" in total:
            result["mase"] = total["ase"] / total["ase_count"] if total["ase_count"] else float("nan")
        if "pinball" in total:
            result["wql"] = 2 * total["pinball"] / total["abs"] if total["abs"] else float("nan")
            result["coverage"] = total["inside"] / count
        if "calibrated" in total:
            result["coverage-calibrated"] = total["calibrated"] / count
        return result

    def mse_by_step(self) -> list[float]:
        """Mean squared error at each step of the horizon; NaN where no target was there."""
        return (self.sums["se"] / self.sums["count"]).tolist() if "se" in self.sums else []

    def ranks(self) -> list[int]:
        """How many targets had 0, 1, ... of the levels under them, ``n_levels + 1``: a PIT histogram."""
        return self.sums["ranks"].tolist() if "ranks" in self.sums else []

    def _inside_calibrated(self, quantiles: Tensor, target: Tensor) -> Tensor:
        """How many targets are inside; NaN if too few were calibrated on for so wide an interval."""
        assert self.calibrator is not None
        said = quantiles.transpose(1, 2).flatten(0, 1).cpu().double().numpy()
        came = target.transpose(1, 2).flatten(0, 1).cpu().double().numpy()
        try:
            low, high = conformal.interval(self.calibrator, said, 100 * (self.levels[-1] - self.levels[0]))
        except DataError:
            return torch.tensor(torch.nan, dtype=torch.float64)
        return torch.tensor(((low <= came) & (came <= high)).sum(), dtype=torch.float64)

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value


def _mean_over(scale: Tensor, values: Tensor, target: Tensor) -> Tensor:
    """Mean of values over their scale, where there is a target and a scale above zero."""
    scale = scale.expand_as(values)
    usable = ~target.isnan() & (scale > 0)
    return (values[usable] / scale[usable]).mean()
