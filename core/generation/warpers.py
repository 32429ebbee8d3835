"""From a model's log-probabilities to those that are drawn from, and the draw itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BLOCK = 64  # positions drawn at once; fixed, so that a draw does not depend on how many will be needed


def warp(
    log_probs: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """The distribution after temperature, then top-k, top-p and min-p, each of what the one before left.

    Of equally likely ids the smaller one comes first. At least one id always stays.

    Args:
        log_probs: ``(..., n_ids)``, normalised or not; -inf for ids that may not come.
        temperature: Divides them.
        top_k: Keep the k likeliest ids (Fan et al. 2018, arXiv:1805.04833).
        top_p: Keep the fewest likeliest ids whose probabilities reach this (Holtzman et al. 2020,
            arXiv:1904.09751).
        min_p: Keep the ids at least this share as likely as the likeliest (Nguyen et al. 2024,
            arXiv:2407.01082).

    Returns:
        Normalised log-probabilities, like ``log_probs``; -inf for what was left out.
    """
    # the largest becomes 0 first: a small temperature then overflows to -inf only
    warped = (log_probs - log_probs.amax(-1, keepdim=True)) / temperature
    if top_k is not None or top_p < 1:
        warped, order = torch.sort(warped, dim=-1, descending=True, stable=True)
        if top_k is not None:
            warped = warped[..., :top_k]
            order = order[..., :top_k]
        if top_p < 1:
            before = warped.double().softmax(-1).cumsum(-1).roll(1, -1)
            before[..., 0] = 0.0
            warped = warped.masked_fill(before >= top_p, -math.inf)
        warped = torch.full_like(log_probs, -math.inf).scatter(-1, order, warped)
    if min_p > 0:
        warped = warped.masked_fill(warped < math.log(min_p), -math.inf)
    return warped.log_softmax(-1)


def draw(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row by inversion of the cumulative distribution, in float64.

    An id of probability zero is never drawn.

    Args:
        log_probs: ``(rows, n_ids)``.
        uniforms: ``(rows,)`` float64 in [0, 1).
    """
    cumulative = log_probs.double().exp().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    # rounding may bring the target up to the total: the last id that has any probability is the last choice
    below = (cumulative <= target) & (cumulative < cumulative[:, -1:])
    return below.sum(-1)


class Uniforms:
    """A stream of uniform numbers for each row, which no other row and no batch size changes.

    Args:
        seeds: One seed a row: a whole number that is not negative, or a tuple of them.
        device: Where the numbers are wanted.
    """

    def __init__(self, seeds: Sequence[int | tuple[int, ...]], device: torch.device) -> None:
        # torch's own generator takes 32 bits of a seed, and neighbouring ones unmixed
        self._streams = [np.random.Generator(np.random.PCG64(np.random.SeedSequence(s))) for s in seeds]
        self._device = device
        self._block = torch.empty(0, 0)

    def at(self, position: int) -> Tensor:
        """Those of one position, ``(rows,)`` float64 in [0, 1); positions are asked for in order."""
        if position % _BLOCK == 0:
            numbers = np.stack([stream.random(_BLOCK) for stream in self._streams], axis=1)
            self._block = torch.from_numpy(numbers).to(self._device)
        return self._block[position % _BLOCK]
