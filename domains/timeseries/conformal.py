"""Conformal intervals of quantile forecasts, a width for each step of the horizon, calibrated once.

    conformal = calibrate(quantiles, targets)                # of origins that no training step has seen
    low, high = interval(conformal, new_quantiles, 95)       # any level, from the one calibration

A target's score is how far it lies outside the predicted pair of the outermost levels, over the width of that
pair (conformalized quantile regression, Romano et al. 2019, arXiv:1905.03222, with the spread as scale). So
the network says where its forecast is uncertain and to which side, and the held-out scores say by how much it
is mistaken about that. Coverage holds for series and origins exchangeable with the held-out ones; a drift
breaks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mambakit.core.calibration import AdaptiveConformal, SplitConformal, samples_needed
from mambakit.core.errors import DataError, UsageError

KEY = "interval"
"""Where a model keeps it: ``model.calibrators[KEY]``."""
# Scores of one step alone are noisy: with fewer than these the steps share one width, in units of their
# spread.
LEAST_OF_A_STEP = 100
# A spread below this share of the value is rounding: the series is forecast constant.
_LEAST_SPREAD = 1e-9

Array = NDArray[np.float64]


def calibrate(quantiles: Array, targets: Array, *, by_step: bool | None = None) -> SplitConformal:
    """The scores of forecasts that were made before their targets were known.

    Args:
        quantiles: ``(n, horizon, n_levels)``, increasing along the last dimension; many series and origins
            one below the other, in any units: the spread takes them out.
        targets: ``(n, horizon)``; NaN where missing, which does not count.
        by_step: A width for each step, or one that all share in units of their own spread; None takes the
            first where every step has 100 targets.

    Raises:
        UsageError: On other shapes, or fewer than two levels.
        DataError: If no target is there, or a quantile is NaN where one is.
    """
    if quantiles.ndim != 3 or quantiles.shape[-1] < 2 or targets.shape != quantiles.shape[:2]:
        raise UsageError(
            "quantiles, targets: expected (n, horizon, n_levels >= 2) and (n, horizon), "
            f"got {quantiles.shape} and {targets.shape}"
        )
    spread = _spread(quantiles)
    # what is forecast constant has no spread to measure its misses with
    usable = (quantiles[..., -1] > quantiles[..., 0]) & np.isfinite(targets)
    bad = np.isfinite(targets) & np.isnan(quantiles).any(-1)
    if bad.any():
        raise DataError(f"calibration: the forecast is NaN at step {int(np.nonzero(bad)[1][0]) + 1}")
    if not usable.any():
        raise DataError("calibration: there is no target; it needs rows that were not trained on")
    if by_step is None:
        by_step = int(usable.sum(0).min()) >= LEAST_OF_A_STEP
    pair = np.nan_to_num(quantiles[..., [0, -1]])
    return SplitConformal("quantile", pooled=() if by_step else (0,)).fit(
        torch.from_numpy(pair),
        torch.from_numpy(np.where(usable, targets, np.nan)),
        scale=torch.from_numpy(np.nan_to_num(spread, nan=1.0)),
    )


def interval(conformal: SplitConformal, quantiles: Array, level: float) -> tuple[Array, Array]:
    """``(low, high)``, each ``(n, horizon)``, that hold ``level`` per cent of the targets.

    Steps beyond the calibrated horizon take the width of the last calibrated one, in units of their own
    spread. The interval holds the median at least: one that came out empty becomes that.

    Args:
        conformal: From ``calibrate``.
        quantiles: ``(n, horizon, n_levels)``, of the levels that were calibrated.
        level: In per cent, such as 80.

    Raises:
        UsageError: On a level outside (0, 100).
        DataError: If too few targets were calibrated with for so high a level.
    """
    alpha = share_of_misses(level)
    fewest, needed = int(conformal.counts.min()), samples_needed(alpha)
    if fewest < needed:
        raise DataError(
            f"the {level:g} % interval needs {needed} held-out targets, the calibration has {fewest}; "
            "calibrate on more origins"
        )
    horizon = quantiles.shape[1]
    pair = torch.from_numpy(np.ascontiguousarray(quantiles[..., [0, -1]]))
    scale = torch.from_numpy(_spread(quantiles))
    low, high = _to_horizon(conformal, horizon).interval(pair, alpha, scale=scale)
    middle = quantiles[..., quantiles.shape[-1] // 2]
    constant = quantiles[..., 0] == quantiles[..., -1]
    return (
        np.where(constant, quantiles[..., 0], np.minimum(low.numpy(), middle)),
        np.where(constant, quantiles[..., -1], np.maximum(high.numpy(), middle)),
    )


def coverages(quantiles: Array, targets: Array, levels: Sequence[float], conformal: SplitConformal) -> Any:
    """Share of targets inside each calibrated interval, by level in per cent."""
    there = np.isfinite(targets)
    found = {}
    for level in levels:
        low, high = interval(conformal, quantiles, level)
        found[level] = float(((low <= targets) & (targets <= high))[there].mean())
    return found


def adaptive(level: float, quantiles: Array, targets: Array, *, gamma: float = 0.02) -> AdaptiveConformal:
    """Intervals of a stream that drifts: one step ahead, begun with the scores of held-out forecasts.

    Args:
        level: In per cent.
        quantiles: ``(n, n_levels)`` of one step ahead, the latest last.
        targets: ``(n,)``.
        gamma: How fast to adapt.

    Feed it pairs of the outermost levels: ``interval(pair, state)``, then ``update(pair, target, state)``.
    """
    made = AdaptiveConformal(share_of_misses(level), gamma, score="quantile")
    return made.fit(torch.from_numpy(quantiles[:, [0, -1]].copy()), torch.from_numpy(targets))


def share_of_misses(level: float) -> float:
    """0.2 for an interval of 80 per cent.

    Raises:
        UsageError: On a level outside (0, 100).
    """
    if not 0 < level < 100:
        raise UsageError(f"levels: expected per cents inside (0, 100), such as 80, got {level:g}")
    return (100 - level) / 100


def _spread(quantiles: Array) -> Array:
    width = quantiles[..., -1] - quantiles[..., 0]
    least = _LEAST_SPREAD * np.abs(quantiles).max(-1)
    return np.maximum(width, np.maximum(least, 1e-300))


def _to_horizon(conformal: SplitConformal, horizon: int) -> SplitConformal:
    """The same with as many steps as asked for: the first ones, or the last one again and again."""
    scores = conformal.tensors()["scores"]
    if conformal.pooled:  # one width for every step
        return conformal
    step = torch.arange(horizon).clamp(max=scores.shape[-1] - 1)
    return SplitConformal.from_saved(conformal.options(), {"scores": scores[..., step]})
