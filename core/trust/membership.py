"""Whether a model gives away what it was trained on: membership inference by the loss.

Yeom et al. 2018 (Privacy Risk in Machine Learning, arXiv:1709.01604): who knows a case's loss takes it for
one of the training's if the loss is low. With a reference model trained without these cases, the loss is
judged against how hard the case is (Watson et al. 2022, arXiv:2111.08440), a cheap relative of the likelihood
ratio of Carlini et al. 2022 (arXiv:2112.03570). Their figure at few false alarms is reported too: an attack
that is right about a few people is a breach, whatever its average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mambakit.core.errors import DataError

Array = NDArray[np.float64]
THRESHOLD, CALIBRATED = "loss threshold", "against a reference"
FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Attacked:
    """Losses of cases that a model was trained on, and of others.

    Attributes:
        members: ``(n_members,)``, the loss of each.
        others: ``(n_others,)``.
        about: What a case is, in a few words.
        notes: What else than memory may tell the two apart.
    """

    members: Array
    others: Array
    about: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Membership:
    """How well the attacks tell members from others.

    Attributes:
        rows: A mapping an attack: ``attack``, ``auc``, ``tpr@1%fpr`` and ``advantage``, each with the ends
            ``-lo`` and ``-hi`` of its interval, ``members`` and ``others``.
        curves: By attack the false alarms and the hits of every threshold, rising.
    """

    rows: list[dict[str, Any]]
    curves: dict[str, tuple[Array, Array]]

    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows)


def membership(
    attacked: Attacked,
    reference: Attacked | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Membership:
    """Attacks a model by its losses.

    Args:
        attacked: Of the model.
        reference: Of a model that saw neither, on the same cases in the same order.
        resamples: Of the bootstrap over cases that intervals are of (Efron 1979).
        level: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        DataError: If there are fewer than two members or others, a loss is NaN, or the reference's are of
            another number of cases.
    """
    scores = {THRESHOLD: (-attacked.members, -attacked.others)}
    if reference is not None:
        if (len(reference.members), len(reference.others)) != (len(attacked.members), len(attacked.others)):
            raise DataError("reference: it was measured on other cases than the model")
        members, others = reference.members - attacked.members, reference.others - attacked.others
        scores[CALIBRATED] = members, others
    rows, curves = [], {}
    for name, (inside, outside) in scores.items():
        if min(len(inside), len(outside)) < 2:
            raise DataError(f"expected two members and others or more, got {len(inside)} and {len(outside)}")
        if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
            raise DataError("a loss is not a finite number; the attack needs one of every case")
        # Yeom's adversary knows the mean loss of the training cases, and takes less for a member's
        bound = float(inside.mean())
        found = _figures(inside, outside, bound)
        rng = np.random.default_rng(seed)
        drawn = [
            _figures(
                inside[rng.integers(0, len(inside), len(inside))],
                outside[rng.integers(0, len(outside), len(outside))],
                bound,
            )
            for _ in range(resamples)
        ]
        low, high = np.quantile(np.array(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
        row: dict[str, Any] = {"attack": name}
        for i, figure in enumerate(("auc", "tpr@1%fpr", "advantage")):
            row |= {figure: found[i], f"{figure}-lo": float(low[i]), f"{figure}-hi": float(high[i])}
        rows.append(row | {"members": len(inside), "others": len(outside)})
        curves[name] = roc(inside, outside)
    return Membership(rows, curves)


def roc(inside: Array, outside: Array) -> tuple[Array, Array]:
    """False alarms and hits of taking scores from each threshold on for members', from (0, 0) to (1, 1).

    Args:
        inside: Scores of members, more is likelier.
        outside: Of the others.
    """
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    a, b = np.sort(inside), np.sort(outside)
    hits = 1 - np.searchsorted(a, thresholds, side="left") / len(a)
    alarms = 1 - np.searchsorted(b, thresholds, side="left") / len(b)
    return np.concatenate([[0.0], alarms]), np.concatenate([[0.0], hits])


def _figures(inside: Array, outside: Array, bound: float) -> tuple[float, float, float]:
    alarms, hits = roc(inside, outside)
    area = float(np.trapezoid(hits, alarms))  # ties count half: Mann & Whitney 1947
    few = float(hits[alarms <= FALSE_ALARMS].max())
    return area, few, float((inside >= bound).mean() - (outside >= bound).mean())


def roc_figure(found: Membership) -> Any:
    """Hits over false alarms, both on logarithmic axes, as what counts is at few false alarms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    for row in found.rows:
        alarms, hits = found.curves[row["attack"]]
        axis.step(alarms, hits, where="post", label=f"{row['attack']}, AUC {row['auc']:.3f}")
    least = 0.5 / max(max(row["members"], row["others"]) for row in found.rows)
    ends = [least, 1]
    axis.plot(ends, ends, color="0.5", lw=1, ls="--", label="guessing")
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axis.set_xlabel("others taken for members")
    axis.set_ylabel("members found")
    axis.legend(fontsize=8)
    return figure
