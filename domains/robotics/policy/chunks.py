"""Temporal ensembling: one action of all the chunks that foretold it (Zhao et al. 2023, arXiv:2304.13705).

The weights are exp(-decay * i), the oldest prediction that there is being i = 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ensembled(points: Tensor, seq_idx: Tensor | None, decay: float) -> Tensor:
    """The actions at every step of whole episodes.

    Args:
        points: What each step foretells, ``(batch, length, chunk, width)``: of itself, and of those after.
        seq_idx: ``(batch, length)`` of packed rows.
        decay: See above.

    Returns:
        ``(batch, length, width)``.
    """
    batch, length, chunk, _ = points.shape
    if chunk == 1:
        return points[:, :, 0]
    places = torch.arange(length, device=points.device)
    if seq_idx is None:
        age = places.expand(batch, -1)
    else:
        first = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
        age = places - torch.where(first, places, 0).cummax(1).values
    ahead = torch.arange(chunk, device=points.device)
    said = torch.stack([_delayed(points[:, :, i], i) for i in range(chunk)], dim=2)
    return weighted(said, age[..., None] >= ahead, decay)


def weighted(said: Tensor, there: Tensor, decay: float) -> Tensor:
    """The mean of what was said of one step.

    Args:
        said: ``(..., chunk, width)``, the newest first.
        there: ``(..., chunk)`` bool, True at the newest at least: True up to some age.
        decay: See above.
    """
    chunk = said.shape[-2]
    newness = torch.arange(chunk, device=said.device)
    order = there.sum(-1, keepdim=True) - 1 - newness  # the oldest there is 0
    weights = torch.exp(-decay * order.to(said.dtype)).masked_fill(~there, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    return (said * weights[..., None]).sum(-2)


def _delayed(x: Tensor, steps: int) -> Tensor:
    """``(batch, length, width)`` moved to later by so many steps, zeros first."""
    return F.pad(x, (0, 0, steps, 0))[:, : x.shape[1]] if steps else x
