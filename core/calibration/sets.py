"""Conformal prediction sets: the classes that hold the right one with the probability asked for.

    lac   score 1 - p_y                         smallest sets on the average   (Sadinle et al. 2019)
    aps   p of all classes from the likeliest to y                        adaptive (Romano et al. 2020)
    raps  aps + penalty * max(0, rank of y - free_ranks)              (Angelopoulos et al. 2021, eq. 4)

Overview: Angelopoulos & Bates 2021, arXiv:2107.07511, section 2.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from mambakit.core.calibration.ranks import check_alpha, conformal_quantile

METHODS = ("lac", "aps", "raps")


class ConformalSets:
    """Sets of classes from a finished classifier's probabilities and held-out samples.

    A set holds the right class with probability ``1 - alpha`` at least, for samples that are exchangeable
    with the held-out ones, over the draw of both.

    Args:
        method: ``"lac"``, ``"aps"`` or ``"raps"``.
        randomized: Draw how much of each class's own probability counts, so that the probability is
            ``1 - alpha`` exactly instead of at least; aps and raps alone. Sets may then be empty.
        penalty: What raps adds for each rank beyond ``free_ranks``.
        free_ranks: The likeliest so many classes are free of it.

    Raises:
        ValueError: On another method, a negative penalty or rank, or ``randomized`` with lac.
    """

    def __init__(
        self, method: str = "lac", *, randomized: bool = False, penalty: float = 0.01, free_ranks: int = 5
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        if penalty < 0 or free_ranks < 0:
            raise ValueError(f"penalty, free_ranks: expected at least 0, got {penalty} and {free_ranks}")
        if randomized and method == "lac":
            raise ValueError("randomized: lac has nothing to draw; use aps or raps")
        self.method = method
        self.randomized = randomized
        self.penalty = penalty
        self.free_ranks = free_ranks
        self.scores: Tensor | None = None

    def fit(
        self,
        probabilities: Tensor,
        target: Tensor,
        *,
        ignore_index: int = -100,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Keep the scores of held-out samples, which no step of training has seen.

        Args:
            probabilities: ``(..., n_classes)``, after any temperature.
            target: ``(...)`` int64.
            ignore_index: Targets that do not count.
            generator: Of the draws, with ``randomized``.

        Raises:
            ValueError: On shapes that do not fit, a target that is no class, or numbers that are no
                probabilities.
        """
        if target.shape != probabilities.shape[:-1]:
            raise ValueError(
                f"target: expected shape {tuple(probabilities.shape[:-1])}, got {tuple(target.shape)}"
            )
        counts = target != ignore_index
        n_classes, classes = probabilities.shape[-1], target[counts]
        if bool(((classes < 0) | (classes >= n_classes)).any()):
            raise ValueError(
                f"target: expected classes in 0..{n_classes - 1}, got {classes.unique().tolist()}"
            )
        scores = self._class_scores(probabilities[counts], generator)  # [n, k]
        self.scores = scores.gather(1, classes[:, None]).squeeze(1).sort().values
        return self

    def sets(
        self, probabilities: Tensor, alpha: float, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Which classes are in, bool like ``probabilities``; all of them with too few held-out samples.

        Args:
            probabilities: ``(..., n_classes)``.
            alpha: The share of misses allowed, inside (0, 1); see ``samples_needed``.
            generator: Of the draws, with ``randomized``.

        Raises:
            RuntimeError: Before ``fit``.
            ValueError: On a bad ``alpha``, or numbers that are no probabilities.
        """
        check_alpha(alpha)
        scores = self._fitted()
        limit = conformal_quantile(scores, torch.tensor(len(scores), device=scores.device), alpha)
        return self._class_scores(probabilities, generator) <= limit.to(probabilities.device)

    def options(self) -> dict[str, Any]:
        """What ``from_saved`` builds it from, beside ``tensors``."""
        return {
            "method": self.method,
            "randomized": self.randomized,
            "penalty": self.penalty,
            "free_ranks": self.free_ranks,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted."""
        return {"scores": self._fitted()}

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of ``options`` and ``tensors``."""
        made = cls(**options)
        made.scores = tensors["scores"]
        return made

    def _fitted(self) -> Tensor:
        if self.scores is None:
            raise RuntimeError("ConformalSets: it has no scores yet; call fit with held-out samples first")
        return self.scores

    def _class_scores(self, probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
        """The score each class would have as the target, float64, like ``probabilities``."""
        p = probabilities.detach().double()
        if not bool(((p >= 0) & (p <= 1 + 1e-6)).all()):
            raise ValueError("probabilities: expected numbers in 0..1; apply a softmax to logits")
        if self.method == "lac":
            return 1 - p
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        scores = ordered.cumsum(-1)
        if self.randomized:
            draws = torch.rand(*p.shape[:-1], 1, dtype=p.dtype, generator=generator, device=p.device)
            scores = scores - draws * ordered
        if self.method == "raps":
            ranks = torch.arange(1, p.shape[-1] + 1, device=p.device)
            scores = scores + self.penalty * (ranks - self.free_ranks).clamp(min=0)
        return torch.empty_like(scores).scatter_(-1, order, scores)
