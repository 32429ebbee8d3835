"""Split conformal prediction intervals: a finished model, held-out samples, and no assumption about either.

    conformal = SplitConformal().fit(model(x_held_out), y_held_out)
    low, high = conformal.interval(model(x), alpha=0.1)             # holds 90 % of the targets at least

Papadopoulos et al. 2002; Lei et al. 2018, arXiv:1604.04173, algorithm 2. Quantiles: Romano et al. 2019,
arXiv:1905.03222, algorithm 1. Groups: Vovk 2012, "Conditional validity of inductive conformal predictors".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from mambakit.core.calibration.ranks import (
    check_alpha,
    check_prediction,
    check_score,
    conformal_quantile,
    interval_at,
    interval_scores,
)


class SplitConformal:
    """Intervals that hold each output with the probability asked for, whatever the model.

    Exact for samples that are exchangeable with the held-out ones, over the draw of both, and each output
    (a step of the horizon, a channel) on its own: not all of them at once. For a series that
    drifts see ``AdaptiveConformal``.

    Args:
        score: ``"residual"`` around point predictions ``(batch, ...)``, or ``"quantile"`` (CQR), which
            widens or narrows predicted pairs ``(batch, ..., 2)`` of a low and a high quantile.
        pooled: Dimensions of an output that share one width, from 0: of ``(horizon, channels)`` outputs
            ``pooled=[1]`` has one a step. More samples each; the promise then holds on the average over them.
        n_groups: Kinds of samples that are calibrated apart, so that the promise holds within each.

    Raises:
        ValueError: On another score, or no group.
    """

    def __init__(self, score: str = "residual", *, pooled: Sequence[int] = (), n_groups: int = 1) -> None:
        check_score(score)
        if n_groups < 1:
            raise ValueError(f"n_groups: expected at least 1, got {n_groups}")
        self.score = score
        self.pooled = sorted({int(d) for d in pooled})
        self.n_groups = n_groups
        self.scaled = False
        self.scores: Tensor | None = None

    def fit(
        self, prediction: Tensor, target: Tensor, *, scale: Tensor | None = None, groups: Tensor | None = None
    ) -> Self:
        """Keep the scores of held-out samples, which no step of training has seen.

        Args:
            prediction: ``(n, ...)``, or ``(n, ..., 2)`` for quantiles.
            target: ``(n, ...)``; NaN where missing, which does not count.
            scale: A predicted spread like the target, > 0: intervals become proportional to it.
            groups: ``(n,)`` int64 in ``0..n_groups-1``.

        Raises:
            ValueError: On shapes that do not fit, or a NaN prediction, scale or group out of range.
        """
        if target.dim() == 0:
            raise ValueError("target: expected (n, ...), one for each held-out sample, got a single number")
        scores = interval_scores(prediction, target, self.score, scale)  # [n, ...]
        self._check_pooled(scores.dim() - 1)
        self.scaled = scale is not None
        by_group = [self._pool(scores[members]) for members in self._members(groups, len(scores))]
        longest = max(len(one) for one in by_group)
        fill = [one.new_full((longest - len(one), *one.shape[1:]), torch.nan) for one in by_group]
        filled = [torch.cat(pair) for pair in zip(by_group, fill, strict=True)]
        self.scores = torch.stack(filled).sort(1).values  # [g, n, ...], NaN last
        return self

    @property
    def counts(self) -> Tensor:
        """Held-out scores of each group and output, ``(n_groups, ...)``; see ``samples_needed``."""
        return (~self._fitted().isnan()).sum(1)

    def interval(
        self,
        prediction: Tensor,
        alpha: float,
        *,
        scale: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(low, high)``, each ``(batch, ...)``, that hold ``1 - alpha`` of the targets at least.

        Infinite where there are fewer than ``samples_needed(alpha)`` scores: nothing less is certain then.
        A quantile interval can be empty, low above high.

        Args:
            prediction: ``(batch, ...)``, or ``(batch, ..., 2)`` for quantiles.
            alpha: The share of misses allowed, inside (0, 1).
            scale: As in ``fit``; given there, it is needed here.
            groups: ``(batch,)`` int64.

        Raises:
            RuntimeError: Before ``fit``.
            ValueError: On a bad ``alpha``, other outputs than fitted, a scale where none was fitted or the
                other way round, or a group out of range.
        """
        check_alpha(alpha)
        check_prediction(prediction, self.score)
        scores = self._fitted()
        if self.scaled != (scale is not None):
            raise ValueError(
                f"scale: it was {'fitted with' if self.scaled else 'fitted without'} one, so the interval "
                f"{'needs' if self.scaled else 'takes'} {'one' if self.scaled else 'none'}"
            )
        shape = prediction.shape if self.score == "residual" else prediction.shape[:-1]
        radius = conformal_quantile(scores.movedim(1, 0), self.counts, alpha)  # [g, ...]
        for d in self.pooled:
            radius = radius.unsqueeze(d + 1)
        expected = [1 if d - 1 in self.pooled else n for d, n in enumerate(shape)]
        if list(radius.shape[1:]) != expected[1:]:
            raise ValueError(
                f"prediction: it has outputs of shape {tuple(shape[1:])}, but those fitted have "
                f"{tuple(radius.shape[1:])} (1 where pooled)"
            )
        of_row = self._groups(groups, len(prediction)).to(radius.device)
        return interval_at(prediction, radius[of_row].expand(shape), self.score, scale)

    def options(self) -> dict[str, Any]:
        """What ``from_saved`` builds it from, beside ``tensors``."""
        return {
            "score": self.score,
            "pooled": self.pooled,
            "n_groups": self.n_groups,
            "scaled": self.scaled,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted."""
        return {"scores": self._fitted()}

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of ``options`` and ``tensors``."""
        options = dict(options)
        scaled = options.pop("scaled")
        made = cls(**options)
        made.scaled = scaled
        made.scores = tensors["scores"]
        return made

    def _fitted(self) -> Tensor:
        if self.scores is None:
            raise RuntimeError("SplitConformal: it has no scores yet; call fit with held-out samples first")
        return self.scores

    def _check_pooled(self, dims: int) -> None:
        if any(not 0 <= d < dims for d in self.pooled):
            raise ValueError(f"pooled: expected dimensions in 0..{dims - 1} of an output, got {self.pooled}")

    def _pool(self, scores: Tensor) -> Tensor:
        if not self.pooled:
            return scores
        last = list(range(1, 1 + len(self.pooled)))
        return scores.movedim([d + 1 for d in self.pooled], last).flatten(0, len(self.pooled))

    def _groups(self, groups: Tensor | None, batch: int) -> Tensor:
        if groups is None:
            if self.n_groups > 1:
                raise ValueError(
                    f"groups: expected each sample's group, as there are {self.n_groups}, got None"
                )
            return torch.zeros(batch, dtype=torch.int64)
        if groups.shape != (batch,):
            raise ValueError(f"groups: expected shape (batch={batch},), got {tuple(groups.shape)}")
        if batch and not 0 <= int(groups.min()) <= int(groups.max()) < self.n_groups:
            raise ValueError(
                f"groups: values must be in 0..{self.n_groups - 1}, got {groups.unique().tolist()}"
            )
        return groups.long()

    def _members(self, groups: Tensor | None, batch: int) -> list[Tensor]:
        of_row = self._groups(groups, batch)
        return [(of_row == g).nonzero().squeeze(1) for g in range(self.n_groups)]
