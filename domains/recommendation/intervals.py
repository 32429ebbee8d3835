"""Means over cases with their confidence intervals; users, not cases, are what was drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]
Interval = Literal["normal", "bootstrap"]


@dataclass(frozen=True)
class Mean:
    """A mean and its interval.

    Attributes:
        value: The mean over cases; NaN over none.
        low, high: The interval's ends; NaN with fewer than two users.
        n: Cases.
    """

    value: float
    low: float
    high: float
    n: int


def mean_over_users(
    values: Array,
    users: NDArray[np.int64],
    *,
    level: float = 0.95,
    interval: Interval = "normal",
    resamples: int = 1000,
    seed: int = 0,
) -> Mean:
    """The mean of one number a case, and what it may be with other users drawn from the same people.

    Cases of one user are no independent evidence: the mean is a ratio of sums over users, and its variance
    that of a ratio estimator (Cochran 1977, section 6.3; the usual one where each user has one case).

    Args:
        values: ``(n,)``; NaN does not count.
        users: Whose case each is, ``(n,)``.
        level: The share of draws whose interval holds the true mean.
        interval: Of the normal distribution, or of percentiles over resampled users (Efron 1979).
        resamples: How many, for the bootstrap.
        seed: Of the bootstrap.
    """
    there = np.isfinite(values)
    _, who = np.unique(users[there], return_inverse=True)
    counts = np.bincount(who).astype(np.float64)
    sums = np.bincount(who, weights=values[there])
    n_users, n = len(counts), int(there.sum())
    if not n:
        return Mean(np.nan, np.nan, np.nan, 0)
    mean = float(sums.sum() / n)
    if n_users < 2:
        return Mean(mean, np.nan, np.nan, n)
    if interval == "bootstrap":
        rng = np.random.default_rng(seed)
        found = np.empty(resamples)
        for i in range(resamples):
            drawn = rng.integers(0, n_users, n_users)
            found[i] = sums[drawn].sum() / counts[drawn].sum()
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return Mean(mean, float(low), float(high), n)
    spread = sums - mean * counts
    error = np.sqrt(n_users / (n_users - 1) * (spread**2).sum()) / n
    reach = float(ndtri((1 + level) / 2)) * float(error)
    return Mean(mean, mean - reach, mean + reach, n)
