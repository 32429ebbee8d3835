"""Surprise: minus the logarithm of a tail probability, of a value under a forecast or under its own past.

It is about Exp(1), with mean 1, where the distribution is right.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# No single surprise counts for more.
CAP = 20.0
# Rows over which what is usual is forgotten.
MEMORY = 2000.0
_LEAST_SPREAD = 1e-6
_LEAST_ROWS = 23.5  # 24 of them, weighted
# What is farther from the mean is counted as so many deviations, so that an anomaly does not become usual.
_MOST_LEARNED = 2.0
_FARTHEST = 30.0  # where the tail is far beyond CAP and erfc is still above zero


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
    beside = min(max(bisect.bisect_left(levels, 0.5), 1), n - 1)
    portion = (0.5 - levels[beside - 1]) / (levels[beside] - levels[beside - 1])
    middle = quantiles[..., beside - 1, None].lerp(quantiles[..., beside, None], portion)
    beyond = []
    for edge, gap, tail in ((first, first - value, levels[0]), (last, value - last, 1 - levels[-1])):
        scale = ((edge - middle).abs() / math.log(0.5 / tail)).clamp(min=_LEAST_SPREAD)
        beyond.append(torch.where(gap > 0, gap / scale - math.log(2 * tail), -torch.inf))
    y = torch.where((value < first) | (value > last), torch.maximum(*beyond), inside)
    y = torch.where(quantiles.isnan().any(-1, keepdim=True) | value.isnan(), torch.nan, y)
    return y.clamp(min=0)[..., 0]


class Usual:
    """Normal distribution of a number over its past, weights falling to 1/e over some rows (West 1979).

    These are MEMORY rows, or eight windows where that is more.

    Of few independent rows the next one is Student's t with ``independent - 1`` degrees of freedom.

    Args:
        window: Rows that each number is a mean over, so that only numbers so far apart are independent.
    """

    def __init__(self, window: int = 1) -> None:
        self.window = window
        self.weight = self.mean = self.squares = 0.0

    def surprise(self, x: float, *, above: bool = False) -> float:
        """Of the next number, up to CAP; NaN for NaN, and before there are 24 of them and two windows.

        Args:
            x: The number; it is learned from afterwards.
            above: Whether only a high number surprises, not a low one too.
        """
        if math.isnan(x):
            return math.nan
        found = math.nan
        if self.weight >= _LEAST_ROWS and self.weight >= 2 * self.window:
            deviation = max(math.sqrt(self.squares / self.weight), _LEAST_SPREAD)
            t = (x - self.mean) / deviation
            x = self.mean + min(max(t, -_MOST_LEARNED), _MOST_LEARNED) * deviation
            found = _tail(t, self.weight / self.window, above)
        keep = 1 - 1 / max(MEMORY, 8 * self.window)
        self.weight = keep * self.weight + 1
        change = x - self.mean
        self.mean += change / self.weight
        self.squares = keep * self.squares + change * (x - self.mean)
        return found


def _tail(t: float, independent: float, above: bool) -> float:
    """Surprise of a number ``t`` deviations from the mean of so many; Student's t as a normal number.

    Wallace 1959, Annals of Mathematical Statistics 30, 1124: within some per cent for all tails.
    """
    freedom = independent - 1
    square = t * t / (1 + 1 / independent)
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(square / freedom))
    z = math.copysign(min(z, _FARTHEST), t)
    tail = math.erfc((z if above else abs(z)) / math.sqrt(2))
    return min(-math.log(tail / 2 if above else tail), CAP)
