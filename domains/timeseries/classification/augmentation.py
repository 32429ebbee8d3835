"""Training series made anew each time: stretched and cropped in time, scaled, shifted, with noise, mixed.

The ways that pay on small sets of series: Um et al. 2017 (arXiv:1706.00527), Iwana & Uchida 2021
(arXiv:2007.15951); mixup: Zhang et al. 2018 (arXiv:1710.09412).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mambakit.domains.timeseries.classification.config import AugmentConfig


def augment(values: Tensor, lengths: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Each series in a way of its own, drawn from torch's global generator.

    Args:
        values: Standardised, ``(batch, length, n_channels)``; NaN where missing, anything at padding.
        lengths: Rows of each series, ``(batch,)`` int64.
        config: What to do, and how much of it.

    Returns:
        The same for the new series, which may be longer or shorter.
    """
    if config.speed or config.crop:
        values, lengths = _in_time(values, lengths, config)
    batch, _, n_channels = values.shape
    if config.scale:
        values = values * (config.scale * values.new_empty(batch, 1, n_channels).normal_()).exp()
    if config.shift:
        values = values + config.shift * values.new_empty(batch, 1, n_channels).normal_()
    if config.jitter:
        values = values + config.jitter * torch.randn_like(values)
    if config.missing:
        values = values.masked_fill(torch.rand_like(values) < config.missing, math.nan)
    return values, lengths


def mix(values: Tensor, lengths: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """Each series mixed with another one of the batch, stretched to its own length.

    Args:
        values: ``(batch, length, n_channels)``; NaN where missing.
        lengths: ``(batch,)``.
        order: Which one it is mixed with, ``(batch,)`` int64.
        share: How much of it is its own, ``(batch,)``, inside 0..1.
    """
    rows = torch.arange(values.shape[1], device=values.device)
    step = (lengths[order] - 1).clamp(min=0) / (lengths - 1).clamp(min=1)
    other = sample(values[order], rows * step[:, None], lengths[order])
    share = share[:, None, None]
    return share * values + (1 - share) * other


def sample(values: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
    """Values between rows, on a straight line between their neighbours; NaN next to a missing one.

    Args:
        values: ``(batch, length, n_channels)``.
        positions: Where, in rows, ``(batch, n)``; those before the first and behind the last row are at it.
        lengths: ``(batch,)``.

    Returns:
        ``(batch, n, n_channels)``.
    """
    last = (lengths - 1).clamp(min=0)[:, None]
    positions = torch.minimum(positions.clamp(min=0), last.to(positions))
    low = positions.floor()
    weight = (positions - low)[..., None]
    low = low.long()
    high = torch.minimum(low + 1, last)

    def at(index: Tensor) -> Tensor:
        return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

    # a row that is hit exactly does not ask its neighbour, which may be missing
    return torch.where(weight > 0, (1 - weight) * at(low) + weight * at(high), at(low))


def _in_time(values: Tensor, lengths: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """A random part of each series, at a random speed."""
    u, v, w = torch.rand(3, len(values), device=values.device)
    keep = 1 - config.crop * u
    first = (lengths - 1) * (1 - keep) * v
    speed = (1 + config.speed) ** (2 * w - 1)
    made = ((lengths - 1) * keep / speed).round().long().clamp(min=0) + 1
    made = torch.where(lengths > 0, made, lengths)
    span = (lengths - 1).clamp(min=0) * keep
    step = span / (made - 1).clamp(min=1)
    rows = torch.arange(int(made.max()), device=values.device)
    return sample(values, first[:, None] + rows * step[:, None], lengths), made
