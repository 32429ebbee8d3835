"""Returns made comparable: reference returns, normalised scores, robust means with intervals.

Score: 100 (R - random) / (expert - random) (Fu et al. 2020, arXiv:2004.07219, section 4). D4RL's
references were measured in gym's v2-era environments; v5 differs (a random hopper earns about 17 there, not
-20), so a score of a v5 environment is never a D4RL score and is labelled apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambakit.core.errors import UsageError

_D4RL = "D4RL's d4rl/infos.py (gym v2-era environments)"


@dataclass(frozen=True)
class Reference:
    """The returns that count as 0 and as 100."""

    random: float
    expert: float
    source: str
    """Who measured them, and where."""
    versions: tuple[str, ...] | None = None
    """Versions of the environment that they were measured in; None where they follow from the task."""


REFERENCES: dict[str, Reference] = {
    # by the id without its version
    "HalfCheetah": Reference(-280.178953, 12135.0, _D4RL, ("v2",)),
    "Hopper": Reference(-20.272305, 3234.3, _D4RL, ("v2",)),
    "Walker2d": Reference(1.629008, 4592.3, _D4RL, ("v2",)),
    "Ant": Reference(-325.6, 3879.7, _D4RL, ("v2",)),
    "AdroitHandPen": Reference(96.262799, 3076.8331017826877, _D4RL, ("v0",)),
    "AdroitHandHammer": Reference(-274.856578, 12794.134825156867, _D4RL, ("v0",)),
    "AdroitHandDoor": Reference(-56.512833, 2880.5693087298737, _D4RL, ("v0",)),
    "AdroitHandRelocate": Reference(-6.425911, 4233.877797728884, _D4RL, ("v0",)),
    "FrankaKitchen": Reference(0.0, 4.0, _D4RL, ("v0",)),
    "InvertedPendulum": Reference(5.1, 1000.0, "random measured in v5; 1000 is the most there is"),
    "Reacher": Reference(-43.6, -3.75, "random measured in v5; gymnasium's reward threshold"),
}


def reference_of(environment_id: str) -> Reference | None:
    """The references of an environment, whatever its version; None where there are none."""
    plain = environment_id.rpartition(":")[2].rpartition("/")[2]
    return REFERENCES.get(plain.rpartition("-v")[0] or plain)


def score_label(environment_id: str) -> str:
    """What a score in this environment must be called."""
    reference = reference_of(environment_id)
    if reference is None:
        return "raw return (no reference returns known)"
    found = "v" + environment_id.rpartition("-v")[2] if "-v" in environment_id else "no version"
    if reference.versions is None:
        return f"normalised score ({reference.source})"
    if found in reference.versions:
        return "D4RL normalised score"
    return f"D4RL-reference-normalised score ({found} environment, not comparable with D4RL's scores)"


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
