"""From a model's log-probabilities to those that are drawn from, and the draw itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Seed = int | tuple[int, ...]

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

    def __init__(self, seeds: Sequence[Seed], device: torch.device) -> None:
        self._streams = [_stream(seed) for seed in seeds]
        self._device = device
        self._block = torch.empty(0, 0)

    def at(self, position: int) -> Tensor:
        """Those of one position, ``(rows,)`` float64 in [0, 1); positions are asked for in order."""
        if position % _BLOCK == 0:
            numbers = np.stack([stream.random(_BLOCK) for stream in self._streams], axis=1)
            self._block = torch.from_numpy(numbers).to(self._device)
        return self._block[position % _BLOCK]


class Draws:
    """Uniform numbers for rows at different positions, each row's from its own seed (those of ``Uniforms``).

    Args:
        n_rows: How many rows.
        steps: How many numbers of each are asked for at once; divides 64.
        device: Where they are wanted.
    """

    def __init__(self, n_rows: int, steps: int, device: torch.device) -> None:
        self._streams: list[np.random.Generator | None] = [None] * n_rows
        self._numbers = np.zeros((n_rows, _BLOCK // steps, steps))
        self._used = np.full(n_rows, self._numbers.shape[1])
        self._device = device

    def begin(self, row: int, seed: Seed) -> None:
        """``row`` has another sequence from now on."""
        self._streams[row] = _stream(seed)
        self._used[row] = self._numbers.shape[1]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows, in this order."""
        self._streams = [self._streams[row] for row in rows]
        self._numbers, self._used = self._numbers[rows], self._used[rows]

    def next(self) -> Tensor:
        """``(steps, rows)`` float64 in [0, 1); those of rows that never began are any."""
        for row in (self._used == self._numbers.shape[1]).nonzero()[0]:
            stream = self._streams[row]
            if stream is not None:
                self._numbers[row] = stream.random(self._numbers.shape[1:])
            self._used[row] = 0
        taken = self._numbers[np.arange(len(self._used)), self._used]
        self._used += 1
        return torch.from_numpy(np.ascontiguousarray(taken.T)).to(self._device)


def _stream(seed: Seed) -> np.random.Generator:
    # torch's own generator takes 32 bits of a seed, and neighbouring ones unmixed
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
