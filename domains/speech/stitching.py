"""Signals that are too long to be read at once: windows that overlap, faded over from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

WINDOW_S, OVERLAP_S = 30.0, 2.0


def stitched(read: Callable[[Tensor], Tensor], samples: Tensor, rate_hz: int) -> Tensor:
    """What a model that reads both ways says of long signals, in memory that does not grow with their length.

    Windows of 30 s overlap by 2 s. A network that takes speakers apart may name them in another order in the
    next window: the order is taken whose outputs agree best where two windows overlap (continuous speech
    separation, Chen et al. 2020, arXiv:2001.11482). A signal of one window is read as a whole.

    Args:
        read: Signals ``(batch, n)`` to outputs ``(batch, n_sources, n)``.
        samples: ``(batch, n)``.
        rate_hz: Their rate.

    Returns:
        ``(batch, n_sources, n)``.
    """
    window, overlap = round(WINDOW_S * rate_hz), round(OVERLAP_S * rate_hz)
    n = samples.shape[1]
    whole = read(samples[:, :window])
    fade = torch.linspace(0, 1, overlap, device=samples.device, dtype=samples.dtype)
    pieces = [whole]
    for start in range(window - overlap, n - overlap, window - overlap):
        said = read(samples[:, start : start + window])
        before = pieces.pop()
        ending = before[..., -overlap:]
        said = _in_order_of(ending, said)
        mixed = ending * (1 - fade) + said[..., :overlap] * fade
        pieces += [before[..., :-overlap], mixed, said[..., overlap:]]
    return torch.cat(pieces, -1)


def _in_order_of(ending: Tensor, said: Tensor) -> Tensor:
    """The sources in the order in which their first samples are most like ``ending``, row by row."""
    n_sources, overlap = ending.shape[1:]
    if n_sources == 1:
        return said
    orders = torch.tensor(list(permutations(range(n_sources))), device=said.device)
    alike = torch.einsum("bin,bjn->bij", ending, said[..., :overlap])  # [b, i, j]
    sums = alike[:, torch.arange(n_sources, device=said.device), orders].sum(-1)  # [b, orders]
    order = orders[sums.argmax(1)]
    return said.gather(1, order[..., None].expand_as(said))
