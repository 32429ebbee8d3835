"""Forecast errors: pure functions on tensors, and a running total over windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mambakit.core.scoring import pinball


def weighted_quantile_loss(quantiles: Tensor, target: Tensor, levels: Tensor | Sequence[float]) -> Tensor:
    """``2 sum(pinball) / sum(|target|)``, averaged over levels (Park et al. 2022, eq. 1)."""
    return 2 * pinball(quantiles, target, levels).mean(-1).sum() / target.abs().sum()


def coverage(low: Tensor, high: Tensor, target: Tensor) -> Tensor:
    """Share of targets inside ``[low, high]``."""
    return ((low <= target) & (target <= high)).double().mean()


def smape(point: Tensor, target: Tensor) -> Tensor:
    """Symmetric mean absolute percentage error, in percent, 0 to 200 (Makridakis 1993; M4).

    Where forecast and target are both zero the error is zero.
    """
    total = point.abs() + target.abs()
    return 200 * torch.where(total > 0, (point - target).abs() / total.clamp(min=1e-300), 0.0).mean()


def mase_scale(history: Tensor, season_length: int) -> Tensor:
    """Mean absolute seasonal difference of each series, ``(n_series,)`` (Hyndman & Koehler 2006).

    Args:
        history: Training rows, ``(length, n_series)``, longer than a season; else a season of 1 is used.
        season_length: Rows in a season.
    """
    season = season_length if len(history) > season_length else 1
    return (history[season:] - history[:-season]).abs().mean(0)


class Errors:
    """Sums up errors over batches of windows, in float64, so that the order of batches does not matter.

    Args:
        levels: Quantile levels; empty for point forecasts alone.
        scale: Of each series for MASE, ``(n_series,)``; NaN MASE where a series' scale is zero.
    """

    def __init__(self, levels: Sequence[float] = (), scale: Tensor | None = None) -> None:
        self.levels = tuple(levels)
        self.scale = scale
        self.count = 0
        self.sums: dict[str, Tensor] = {}
        self.by_step: Tensor | None = None

    def add(
        self,
        point: Tensor,
        target: Tensor,
        quantiles: Tensor | None = None,
        *,
        scaled_back: tuple[Tensor, Tensor] | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """Adds windows.

        Args:
            point, target: ``(batch, horizon, n_series)``, in the units errors are measured in.
            quantiles: ``(batch, horizon, n_series, n_quantiles)``.
            scaled_back: Point and target in their own units, for sMAPE; else the units above serve.
            scale: MASE scale in the units above, ``(n_series,)`` or ``(batch, 1, n_series)``.
        """
        error = (point - target).double()
        self.count += error.numel()
        self._sum("se", error.square().sum())
        self._sum("ae", error.abs().sum())
        self._sum("abs", target.abs().double().sum())
        own_point, own_target = scaled_back or (point, target)
        self._sum("smape", smape(own_point.double(), own_target.double()) * error.numel())
        step = error.square().sum((0, 2))
        self.by_step = step if self.by_step is None else self.by_step + step
        scale = self.scale if scale is None else scale
        if scale is not None:
            scale = scale.to(error).expand_as(error)
            usable = scale > 0
            self._sum("ase", torch.where(usable, error.abs() / scale.clamp(min=1e-300), 0.0).sum())
            self._sum("ase_count", usable.double().sum())
        if quantiles is not None and self.levels:
            self._sum("pinball", pinball(quantiles, target, self.levels).mean(-1).double().sum())
            low, high = quantiles[..., 0], quantiles[..., -1]
            self._sum("inside", ((low <= target) & (target <= high)).double().sum())

    def result(self) -> dict[str, float]:
        """mse, mae, smape, and where they can be had mase, wql and coverage.

        ``coverage`` is the share of targets between the lowest and the highest level.
        """
        if not self.count:
            return {}
        total = {name: float(value) for name, value in self.sums.items()}
        result = {
            "mse": total["se"] / self.count,
            "mae": total["ae"] / self.count,
            "smape": total["smape"] / self.count,
        }
        if "ase" in total:
            result["mase"] = total["ase"] / total["ase_count"] if total["ase_count"] else float("nan")
        if "pinball" in total:
            result["wql"] = 2 * total["pinball"] / total["abs"] if total["abs"] else float("nan")
            result["coverage"] = total["inside"] / self.count
        return result

    def mse_by_step(self) -> list[float]:
        """Mean squared error at each step of the horizon."""
        if self.by_step is None:
            return []
        return (self.by_step * len(self.by_step) / self.count).tolist()

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
