"""What a model that learns one task after the other keeps, and passes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Stream:
    """Measures of a stream of T tasks, higher scores being better (of errors give the negative).

    From R, ``(T, T)``: ``R[i, j]`` is the score on task j after learning tasks 0 to i.
    """

    average: float
    """``mean_j R[T-1, j]`` (ACC in Lopez-Paz & Ranzato 2017, arXiv:1706.08840, equation 2)."""
    backward_transfer: float
    """``mean_{j<T-1} R[T-1, j] - R[j, j]`` (BWT, equation 3): below zero where later tasks did harm."""
    forward_transfer: float | None
    """``mean_{j>0} R[j-1, j] - b[j]`` (FWT, equation 4), b the score without training; None without b."""
    forgetting: float
    """``mean_{j<T-1} max_{i<T-1} R[i, j] - R[T-1, j]`` (Chaudhry et al. 2018, arXiv:1801.10112)."""

    @classmethod
    def of(cls, scores: ArrayLike, untrained: ArrayLike | None = None) -> Stream:
        """The measures.

        Args:
            scores: R, ``(T, T)``.
            untrained: b, ``(T,)``.

        Raises:
            ValueError: If R is not square, is of fewer than two tasks, or b is not of as many.
        """
        r = np.asarray(scores, dtype=np.float64)
        if r.ndim != 2 or r.shape[0] != r.shape[1] or len(r) < 2:
            raise ValueError(f"scores: expected (tasks, tasks) of two tasks or more, got {r.shape}")
        diagonal, last = np.diag(r), r[-1]
        forward = None
        if untrained is not None:
            b = np.asarray(untrained, dtype=np.float64)
            if b.shape != (len(r),):
                raise ValueError(f"untrained: expected ({len(r)},), got {b.shape}")
            forward = float((np.diag(r, 1) - b[1:]).mean())
        return cls(
            average=float(last.mean()),
            backward_transfer=float((last - diagonal)[:-1].mean()),
            forward_transfer=forward,
            forgetting=float((r[:-1].max(0) - last)[:-1].mean()),
        )
