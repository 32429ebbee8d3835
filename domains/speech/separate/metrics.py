"""The loss and the score of separation, whichever way round the sources come."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor


def si_snr(said: Tensor, clean: Tensor) -> Tensor:
    """SI-SDR of signals without their means, in dB: ``(..., n)`` to ``(...)``; silence gives no NaN.

    Le Roux et al. 2019 (arXiv:1811.02508), equation 3.
    """
    said, clean = said - said.mean(-1, keepdim=True), clean - clean.mean(-1, keepdim=True)
    tiny = 1e-8
    scale = (said * clean).sum(-1, keepdim=True) / (clean.square().sum(-1, keepdim=True) + tiny)
    target = scale * clean
    ratio = (target.square().sum(-1) + tiny) / ((said - target).square().sum(-1) + tiny)
    return 10 * torch.log10(ratio)


def best_si_snr(said: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The best mean SI-SNR over all ways of pairing outputs with sources (Yu et al. 2017, arXiv:1607.00325).

    Args:
        said: ``(batch, n_sources, n)``.
        clean: The same shape.

    Returns:
        ``(batch,)`` in dB, and the output for each source, ``(batch, n_sources)`` int64.
    """
    means = _of_orders(said, clean)
    best, which = means.max(1)
    return best, torch.tensor(_orders(said.shape[1]), device=said.device)[which]


def pairing_loss(said: Tensor, clean: Tensor, most_db: float) -> Tensor:
    """The negative of ``best_si_snr``, of which more than ``most_db`` does not count; a scalar."""
    return -_of_orders(said, clean).amax(1).clamp(max=most_db).mean()


def _of_orders(said: Tensor, clean: Tensor) -> Tensor:
    """The mean SI-SNR of each way of pairing, ``(batch, n_orders)``; no tensor of it is made on the host."""
    if said.shape != clean.shape:
        raise ValueError(f"said: expected shape {tuple(clean.shape)}, got {tuple(said.shape)}")
    each = si_snr(said[:, None, :], clean[:, :, None])  # [b, source, output]
    means = [
        torch.stack([each[:, source, output] for source, output in enumerate(order)]).mean(0)
        for order in _orders(said.shape[1])
    ]
    return torch.stack(means, 1)


def _orders(n: int) -> list[tuple[int, ...]]:
    """For each way of pairing, the output for each source."""
    return list(permutations(range(n)))


def si_snr_gain(said: Tensor, clean: Tensor, mixture: Tensor) -> Tensor:
    """SI-SNRi in dB, ``(batch,)``: the best pairing's, above that of the mixture ``(batch, n)`` itself."""
    best, _ = best_si_snr(said, clean)
    return best - si_snr(mixture[:, None].expand_as(clean), clean).mean(1)
