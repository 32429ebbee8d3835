"""Scores of one property; labels are known, and each function says what labels can't tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

# A probability of 0 that was wrong would have an infinite log-loss.
_LEAST = 1e-6


def regression_scores(target: NDArray[np.float64], said: NDArray[np.float64]) -> dict[str, float | None]:
    """``rmse``, ``mae`` and ``r2`` (None of labels that don't differ).

    Args:
        target, said: ``(n,)`` in the same unit.
    """
    if not len(target):
        return dict.fromkeys(("rmse", "mae", "r2"))
    error = said - target
    spread = float(((target - target.mean()) ** 2).sum())
    return {
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
        "r2": 1 - float((error**2).sum()) / spread if spread > 0 else None,
    }


def classification_scores(target: NDArray[np.float64], said: NDArray[np.float64]) -> dict[str, float | None]:
    """``roc_auc``, ``pr_auc`` (average precision; both None of one class alone) and ``log_loss``.

    Args:
        target: 0 and 1, ``(n,)``.
        said: Probabilities of 1, ``(n,)``.
    """
    if not len(target):
        return dict.fromkeys(("roc_auc", "pr_auc", "log_loss"))
    loss = float(log_loss(target, np.clip(said, _LEAST, 1 - _LEAST), labels=[0.0, 1.0]))
    if len(np.unique(target)) < 2:
        return {"roc_auc": None, "pr_auc": None, "log_loss": loss}
    return {
        "roc_auc": float(roc_auc_score(target, said)),
        "pr_auc": float(average_precision_score(target, said)),
        "log_loss": loss,
    }
