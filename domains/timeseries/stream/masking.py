"""Hiding values at random, so that a network learns from complete series what missing values mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mambakit.domains.timeseries.stream.parts import Read

# Of each window: what share of points is hidden, or how long a hidden block is on average and how much of the
# window blocks begin to hide. Drawn between these, so that one network serves few missing values and many.
_SHARE = (0.05, 0.6)
_BLOCK = (2.0, 32.0)
_HIDDEN_BY_BLOCKS = (0.05, 0.5)


@torch.no_grad()
def hidden_rows(
    n_windows: int,
    n_mixed: int,
    length: int,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where values are to be hidden, ``(n_windows * n_mixed, length)`` bool.

    Half the windows lose single points, each series its own; half lose blocks of geometric length, and half
    of those in all series at once, as where a station was off. Nothing waits for the device.
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    def within(low: float, high: float) -> Tensor:
        return low + (high - low) * draw(n_windows, 1, 1)

    points = draw(n_windows, n_mixed, length) < within(*_SHARE)
    longest = min(_BLOCK[1], max(length / 4, _BLOCK[0]))
    mean_length = within(math.log(_BLOCK[0]), math.log(longest)).exp()
    begins = draw(n_windows, n_mixed, length) < within(*_HIDDEN_BY_BLOCKS) / mean_length
    lengths = (draw(n_windows, n_mixed, length).clamp(min=1e-7).log() / (1 - 1 / mean_length).log()).ceil()
    at = torch.arange(length, device=device)
    ends = torch.where(begins, at + lengths, 0.0).cummax(-1).values
    blocks = ends > at
    together = draw(n_windows, 1, 1) < 0.5
    blocks = torch.where(together, blocks[:, :1], blocks)
    return torch.where(draw(n_windows, 1, 1) < 0.5, points, blocks).flatten(0, 1)


def hide(read: Read, where: Tensor) -> tuple[Read, Tensor]:
    """A piece without some of its values, and those values, ``(rows, length)``, NaN elsewhere."""
    hidden = torch.where(where, read.values, torch.nan)
    return read._replace(values=torch.where(where, torch.nan, read.values)), hidden


def hide_some(read: Read, share: float, n_mixed: int) -> tuple[Read, Tensor]:
    """``hide`` at random in a share of the windows, the first ones: at least one of them, none if it is zero.

    The number does not vary, so that tensors keep their shapes; which windows are first is chance.

    Returns:
        The piece, and the hidden values of the first rows, ``(first rows, length)``.
    """
    rows, length = read.values.shape
    n = min(rows // n_mixed, max(1, round(share * rows / n_mixed))) if share else 0
    first = n * n_mixed
    if not n:
        return read, read.values[:0]
    where = hidden_rows(n, n_mixed, length, read.values.device)
    masked, hidden = hide(read, torch.cat([where, where.new_zeros(rows - first, length)]))
    return masked, hidden[:first]
