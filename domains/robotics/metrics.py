"""Returns made comparable: normalised scores, robust means, and intervals around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambakit.core.errors import UsageError


def normalised_score(returns: ArrayLike, random: float, expert: float) -> NDArray[np.float64]:
    """0 for the random reference and 100 for the expert's, of every return.

    Raises:
        UsageError: If the references are equal.
    """
    if expert == random:
        raise UsageError(f"random, expert: expected two different returns, got {random:g} twice")
    return 100.0 * (np.asarray(returns, dtype=np.float64) - random) / (expert - random)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half (Agarwal et al. 2021, arXiv:2108.13264); nan of nothing.

    Values at the cut count in part, so that a hundredth more values changes the result by as little.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if not len(ordered):
        return float("nan")
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float((weights * ordered).sum() / weights.sum())


def bootstrap_interval(
    values: Sequence[ArrayLike], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean, drawing within each run (as Agarwal et al.).

    Args:
        values: One array of scores a run (a training seed), or one array in a list.

    Returns:
        The two ends, nan where there is nothing to draw from.

    Raises:
        UsageError: If ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"level: expected a number between 0 and 1, got {level:g}")
    runs = [np.asarray(run, dtype=np.float64).ravel() for run in values]
    runs = [run for run in runs if len(run)]
    if not runs:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([run[rng.integers(len(run), size=(resamples, len(run)))] for run in runs], axis=1)
    means = [interquartile_mean(row) for row in drawn]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
