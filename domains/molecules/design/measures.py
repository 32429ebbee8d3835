"""How good a run of oracle calls was: means of the best, area under their curve, hits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def top_mean(rewards: ArrayLike, k: int = 10) -> float:
    """Mean of the ``k`` greatest rewards, of all where there are fewer; 0 of none."""
    values = np.sort(np.asarray(rewards, dtype=np.float64))[::-1][:k]
    return float(values.mean()) if len(values) else 0.0


def auc_top(
    rewards: ArrayLike, budget: int, *, k: int = 10, every: int = 100, extrapolate: bool = True
) -> float:
    """Area under the top-k mean by oracle calls, in parts of the budget, as PMO defines it.

    Gao et al. 2022 (arXiv:2206.12411): trapezia between 0 and every hundredth call; a run that ended early
    keeps its last mean up to the budget.

    Args:
        rewards: Of unique molecules in the order of their calls, ``(n_calls,)``; those beyond the budget are
            left out.
        budget: Calls allowed.
        k: Size of the top.
        every: Calls between two points.
        extrapolate: Whether what is left of the budget counts with the last mean; else it counts nothing.

    Returns:
        0 to 1, for rewards between 0 and 1.
    """
    values = np.asarray(rewards, dtype=np.float64)[:budget]
    n = len(values)
    points = [*range(every, n, every), n]
    means = [0.0, *(top_mean(values[:at], k) for at in points)]
    widths = np.diff([0, *points])
    area = float(np.sum(widths * (np.array(means[1:]) + np.array(means[:-1])) / 2)) if n else 0.0
    if extrapolate:
        area += (budget - n) * means[-1]
    return area / budget


def hits(rewards: Sequence[float], scaffolds: Sequence[str], threshold: float) -> dict[str, int | None]:
    """Molecules at or above a reward: how many, of how many scaffolds, and the calls of the 1st, 10th, 100th.

    Calls are counted from 1; None where there are not so many.
    """
    at = [i for i, reward in enumerate(rewards) if reward >= threshold]
    found: dict[str, int | None] = {"hits": len(at), "scaffolds": len({scaffolds[i] for i in at})}
    for name, n in (("first", 1), ("tenth", 10), ("hundredth", 100)):
        found[name] = at[n - 1] + 1 if len(at) >= n else None
    return found
