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
    n = said.shape[1]
    if said.shape != clean.shape:
        raise ValueError(f"said: expected shape {tuple(clean.shape)}, got {tuple(said.shape)}")
    each = si_snr(said[:, None, :], clean[:, :, None])  # [b, source, output]
    orders = torch.tensor(list(permutations(range(n))), device=said.device)  # [orders, source]
    sources = torch.arange(n, device=said.device)
    means = each[:, sources, orders].mean(-1)  # [b, orders]
    best, which = means.max(1)
    return best, orders[which]


def si_snr_gain(said: Tensor, clean: Tensor, mixture: Tensor) -> Tensor:
    """SI-SNRi in dB, ``(batch,)``: the best pairing's, above that of the mixture ``(batch, n)`` itself."""
    best, _ = best_si_snr(said, clean)
    return best - si_snr(mixture[:, None].expand_as(clean), clean).mean(1)
