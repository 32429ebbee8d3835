"""The finite-sample quantile of conformal prediction, and the scores it is taken of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCORES = ("residual", "quantile")

# (n + 1)(1 - alpha) is a whole number more often than its float is: 10 * (1 - 0.7) comes out above 3
_SLACK = 1e-9


def check_alpha(alpha: float) -> None:
    """Raise a ValueError unless ``0 < alpha < 1``."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected the share of misses allowed, inside (0, 1), got {alpha}")


def samples_needed(alpha: float) -> int:
    """The fewest calibration samples that give finite intervals: ``ceil(1 / alpha) - 1``.

    Raises:
        ValueError: Unless ``0 < alpha < 1``.
    """
    check_alpha(alpha)
    return math.ceil(1 / alpha - _SLACK) - 1


def exact_rank(count: Tensor, alpha: Tensor | float) -> Tensor:
    """``(n + 1)(1 - alpha)`` in float64, whole numbers as such; rounded up it is the quantile's rank."""
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=count.device)
    return (count + 1) * (1 - alpha) - _SLACK


def conformal_quantile(ordered: Tensor, count: Tensor, alpha: Tensor | float) -> Tensor:
    """The ``ceil((n + 1)(1 - alpha))``-th smallest of n scores (Lei et al. 2018, section 2).

    With exchangeable scores a new one is at most this with probability ``1 - alpha`` at least, and
    ``1 / (n + 1)`` more at most if there are no ties.

    Args:
        ordered: Sorted scores ``(n_most, ...)``, what is missing (NaN) at the end.
        count: How many of them there are, ``(...)``.
        alpha: A number, or ``(...)``.

    Returns:
        ``(...)``: infinite where the rank is more than n (too few scores for so small an ``alpha``, or
        ``alpha <= 0``), minus infinity where it is below 1 (``alpha >= 1``).
    """
    rank = exact_rank(count, alpha).ceil().to(torch.int64)
    if len(ordered):
        index = (rank - 1).clamp(0, len(ordered) - 1)
        value = ordered.gather(0, index[None]).squeeze(0)
    else:
        value = ordered.new_zeros(count.shape)
    return value.masked_fill(rank > count, math.inf).masked_fill(rank < 1, -math.inf)


def interval_scores(prediction: Tensor, target: Tensor, score: str, scale: Tensor | None = None) -> Tensor:
    """How far each target is outside what was predicted, float32 at least; NaN where it is missing.

    ``residual``: ``|y - prediction|`` (Lei et al. 2018). ``quantile``: ``max(low - y, y - high)`` of
    predictions ``(..., 2)``, negative inside (Romano et al. 2019, eq. 6). Both over ``scale``, if given.

    Raises:
        ValueError: On shapes that do not fit, a scale that is not positive, or a NaN prediction of a
            target that is there.
    """
    check_prediction(prediction, score)
    shape = prediction.shape if score == "residual" else prediction.shape[:-1]
    if target.shape != shape:
        raise ValueError(f"target: expected shape {tuple(shape)} as predicted, got {tuple(target.shape)}")
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    prediction, target = prediction.detach().to(dtype), target.detach().to(prediction.device, dtype)
    missing = target.isnan()
    if score == "residual":
        scores = (target - prediction).abs()
    else:
        scores = torch.maximum(prediction[..., 0] - target, target - prediction[..., 1])
    if scale is not None:
        scores = scores / _checked_scale(scale, scores)
    if bool((scores.isnan() & ~missing).any()):
        raise ValueError("prediction: it is NaN for a target that is there; calibrate a model that is finite")
    return scores


def interval_at(
    prediction: Tensor, radius: Tensor, score: str, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(low, high)``: every target whose score is at most ``radius``; empty (low > high) for -inf."""
    check_prediction(prediction, score)
    radius = radius.to(prediction.device, torch.promote_types(prediction.dtype, torch.float32))
    if scale is not None:
        radius = radius * _checked_scale(scale, radius)
    if score == "residual":
        return prediction - radius, prediction + radius
    return prediction[..., 0] - radius, prediction[..., 1] + radius


def check_score(score: str) -> None:
    """Raise a ValueError on an unknown kind of score."""
    if score not in SCORES:
        raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {score!r}")


def check_prediction(prediction: Tensor, score: str) -> None:
    """Raise a ValueError unless quantile predictions are pairs."""
    if score == "quantile" and (prediction.dim() == 0 or prediction.shape[-1] != 2):
        raise ValueError(
            f"prediction: expected (..., 2), a low and a high quantile, got {tuple(prediction.shape)}"
        )


def _checked_scale(scale: Tensor, like: Tensor) -> Tensor:
    if not bool((scale > 0).all()):
        raise ValueError(f"scale: expected positive numbers, got {float(scale.min())}")
    if scale.dim() and scale.shape != like.shape:
        raise ValueError(f"scale: expected shape {tuple(like.shape)}, got {tuple(scale.shape)}")
    return scale.detach().to(like)
