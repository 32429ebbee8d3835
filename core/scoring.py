"""Scores of probabilistic predictions: pure functions on tensors, one number for each target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pinball(quantiles: Tensor, target: Tensor, levels: Tensor | Sequence[float]) -> Tensor:
    """Pinball loss of each value and level (Koenker & Bassett 1978), ``(..., n_quantiles)``.

    Args:
        quantiles: ``(..., n_quantiles)``.
        target: ``(...)``.
        levels: ``(n_quantiles,)``.
    """
    levels = torch.as_tensor(levels, dtype=quantiles.dtype, device=quantiles.device)
    error = target[..., None] - quantiles
    return torch.maximum(levels * error, (levels - 1) * error)


def crps_from_samples(samples: Tensor, target: Tensor, *, fair: bool = False) -> Tensor:
    """Continuous ranked probability score ``E|X - y| - E|X - X'| / 2`` (Gneiting & Raftery 2007, eq. 21).

    In O(m log m): the pairs' distances are a weighted sum of the sorted samples.

    Args:
        samples: ``(..., n_samples)``.
        target: ``(...)``.
        fair: Leave the pairs of a sample with itself out, so that the mean over sets of samples is the
            score of the distribution they are from (Ferro 2014); else it is that of the samples themselves.

    Returns:
        ``(...)``, in the target's unit; less is better.

    Raises:
        ValueError: On one sample with ``fair``.
    """
    m = samples.shape[-1]
    if m < 1 + fair:
        raise ValueError(f"samples: expected at least {1 + fair} for each target, got {m}")
    ordered = samples.sort(-1).values
    weights = 2 * torch.arange(m, device=samples.device, dtype=samples.dtype) - (m - 1)
    half_spread = (ordered * weights).sum(-1) / (m * (m - fair))
    return (samples - target[..., None]).abs().mean(-1) - half_spread


def crps_from_quantiles(quantiles: Tensor, target: Tensor, levels: Tensor | Sequence[float]) -> Tensor:
    """The score as twice the pinball loss over all levels (Gneiting & Ranjan 2011, eq. 12), summed up.

    Each level stands for those nearer to it than to any other, from 0 to 1.

    Args:
        quantiles: ``(..., n_quantiles)``.
        target: ``(...)``.
        levels: ``(n_quantiles,)``, increasing.

    Returns:
        ``(...)``, in the target's unit; less is better.
    """
    losses = pinball(quantiles, target, levels)
    at = torch.as_tensor(levels, dtype=torch.float64)
    bounds = torch.cat([at.new_zeros(1), (at[1:] + at[:-1]) / 2, at.new_ones(1)])
    return 2 * (losses * bounds.diff().to(losses)).sum(-1)


def winkler(low: Tensor, high: Tensor, target: Tensor, alpha: float) -> Tensor:
    """Width of the interval, and ``2 / alpha`` times how far the target is outside (Winkler 1972).

    Divided by a seasonal naive error it is the M4 competition's MSIS.

    Args:
        low, high, target: ``(...)``.
        alpha: The interval is meant to hold ``1 - alpha`` of the targets.
    """
    outside = (low - target).clamp(min=0) + (target - high).clamp(min=0)
    return high - low + 2 / alpha * outside
