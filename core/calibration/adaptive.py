"""Adaptive conformal inference: intervals that keep their coverage while the series drifts.

Gibbs & Candes 2021, arXiv:2106.00170, eq. 2: after each target ``alpha_t += gamma * (alpha - missed)``, and
the next interval is that of ``alpha_t``. However the series behaves, the share of misses over T steps is
within ``(max(alpha, 1 - alpha) + gamma) / (gamma * T)`` of ``alpha`` (proposition 4.1).

With several gammas: Gibbs & Candes 2022, arXiv:2208.08401 (DtACI, algorithm 1). One ``alpha_t`` for each, and
their mean, weighted by how well each did of late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from mambakit.core.calibration.ranks import (
    check_alpha,
    check_score,
    conformal_quantile,
    exact_rank,
    interval_at,
    interval_scores,
)
from mambakit.core.state import State


class AdaptiveConformal:
    """Intervals for streams, each row and output adapting on its own.

        state = adaptive.init_state(batch=1)
        for x_t, y_t in series:
            prediction = model(x_t)
            low, high = adaptive.interval(prediction, state)
            state = adaptive.update(prediction, y_t, state)

    The state is a ``State``: saved, moved and picked by rows as a model's.

    Args:
        alpha: The share of misses allowed, inside (0, 1).
        gamma: How fast to adapt: with a large one the widths jump, with a small one coverage comes back late.
            Several: weighted by how well they do (DtACI).
        score: ``"residual"`` or ``"quantile"``, as in ``SplitConformal``.
        window: The latest so many scores count.
        memory: Steps over which the weights of several gammas remember.

    Raises:
        ValueError: On a number out of range, or another score.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        gamma: float | Sequence[float] = 0.01,
        *,
        score: str = "residual",
        window: int = 500,
        memory: int = 500,
    ) -> None:
        check_alpha(alpha)
        check_score(score)
        self.gammas = [float(gamma)] if isinstance(gamma, (int, float)) else [float(g) for g in gamma]
        if not self.gammas or not all(g > 0 for g in self.gammas):
            raise ValueError(f"gamma: expected positive numbers, got {gamma}")
        if window < 1 or memory < 1:
            raise ValueError(f"window, memory: expected at least 1, got {window} and {memory}")
        self.alpha = alpha
        self.score = score
        self.window = window
        self.memory = memory
        self.scores: Tensor | None = None

    def fit(self, prediction: Tensor, target: Tensor) -> Self:
        """Begin every stream with the scores of held-out samples ``(n, ...)``, the latest last.

        Raises:
            ValueError: On shapes that do not fit, or a NaN prediction.
        """
        self.scores = interval_scores(prediction, target, self.score)[-self.window :]
        return self

    def init_state(self, batch: int, output_shape: Sequence[int] | None = None) -> State:
        """The state before the first step.

        Args:
            batch: Streams.
            output_shape: Shape of one prediction's target; that of what was fitted by default, or a number.

        Raises:
            ValueError: If another shape was fitted.
        """
        fitted = self.scores
        shape = tuple(
            output_shape if output_shape is not None else () if fitted is None else fitted.shape[1:]
        )
        dtype = torch.float64 if fitted is None else fitted.dtype
        scores = torch.full((batch, self.window, *shape), torch.nan, dtype=dtype)
        if fitted is not None and len(fitted):
            if tuple(fitted.shape[1:]) != shape:
                raise ValueError(
                    f"output_shape: expected {tuple(fitted.shape[1:])} as fitted, got {tuple(shape)}"
                )
            scores[:, -len(fitted) :] = fitted.cpu()
        experts = (batch, len(self.gammas), *shape)
        return State.of(
            scores=scores,
            alpha=torch.full(experts, self.alpha, dtype=torch.float64),
            weight=torch.full(experts, 1 / len(self.gammas), dtype=torch.float64),
        )

    def interval(self, prediction: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """``(low, high)``, each ``(batch, ...)``, for the next target.

        Infinite while there are too few scores, or after so many misses that ``alpha_t <= 0``; empty
        (low above high) where ``alpha_t >= 1``.

        Args:
            prediction: ``(batch, ...)``, or ``(batch, ..., 2)`` for quantiles.
            state: Before it.

        Raises:
            ValueError: If the state is for other streams or outputs.
        """
        self._check(prediction, state)
        ordered = state["scores"].movedim(1, 0).sort(0).values
        count = (~ordered.isnan()).sum(0)
        radius = conformal_quantile(ordered, count, self.alpha_now(state))
        return interval_at(prediction, radius, self.score)

    def alpha_now(self, state: State) -> Tensor:
        """``alpha_t``, ``(batch, ...)``."""
        return (state["alpha"] * state["weight"]).sum(1)

    def update(self, prediction: Tensor, target: Tensor, state: State) -> State:
        """The state after a target has come; what it was is left as it is.

        A target that comes late is judged by the scores of now. NaN targets change nothing.

        Args:
            prediction: As given to ``interval``.
            target: ``(batch, ...)``.
            state: Before the target.

        Raises:
            ValueError: On shapes that do not fit, or a NaN prediction.
        """
        self._check(prediction, state)
        past, alpha, weight = state["scores"], state["alpha"], state["weight"]
        score = interval_scores(prediction, target, self.score).to(past)
        there = ~score.isnan()
        count = (~past.isnan()).sum(1)
        below = (past < score[:, None]).sum(1)
        # the target is inside the interval of every level under this one
        best = 1 - below / (count + 1).double()
        missed = exact_rank(count[:, None], alpha) <= below[:, None]
        gammas = torch.tensor(self.gammas, dtype=alpha.dtype, device=alpha.device)
        gammas = gammas.view(-1, *[1] * (alpha.dim() - 2))
        next_alpha = alpha + gammas * (self.alpha - missed.to(alpha.dtype))
        next_weight = self._weighed(alpha, weight, best)
        next_past = torch.cat([past[:, 1:], score[:, None]], dim=1)
        seen = there[:, None]
        return State.of(
            scores=torch.where(seen, next_past, past),
            alpha=torch.where(seen, next_alpha, alpha),
            weight=torch.where(seen, next_weight, weight),
        )

    def _weighed(self, alpha: Tensor, weight: Tensor, best: Tensor) -> Tensor:
        """Weights after the pinball losses of the levels, with the paper's rates for ``memory`` steps."""
        k = len(self.gammas)
        if k == 1:
            return weight
        a, steps = self.alpha, self.memory
        spread = (1 - a) ** 2 * a**3 + a**2 * (1 - a) ** 3
        rate = math.sqrt(3 / steps * (math.log(k * steps) + 2) / spread)
        mixing = 1 / (2 * steps)
        error = best[:, None] - alpha
        loss = a * error - error.clamp(max=0)
        weight = (weight.log() - rate * loss).softmax(1)
        return (1 - mixing) * weight + mixing / k

    def _check(self, prediction: Tensor, state: State) -> None:
        shape = prediction.shape if self.score == "residual" else prediction.shape[:-1]
        scores = state.get("scores")
        held = tuple(scores.shape[:1] + scores.shape[2:]) if isinstance(scores, Tensor) else None
        if held != tuple(shape):
            raise ValueError(
                f"state: expected one for predictions of shape {tuple(shape)}, got one for {held}; "
                "make it with init_state(batch, output_shape)"
            )

    def options(self) -> dict[str, Any]:
        """What ``from_saved`` builds it from, beside ``tensors``."""
        return {
            "alpha": self.alpha,
            "gamma": self.gammas,
            "score": self.score,
            "window": self.window,
            "memory": self.memory,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted, if anything was."""
        return {} if self.scores is None else {"scores": self.scores}

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of ``options`` and ``tensors``."""
        made = cls(**options)
        made.scores = tensors.get("scores")
        return made
