"""Accuracy of full rankings: the rank of each target among all items, and what is read from it.

A rank counts from 1; items of the same score share the mean of their places, so that neither a constant
scorer nor the order of the items gains anything. A rank is within the first ``k`` if it is below ``k + 1``
(``within``, in training's validation and in evaluation alike): of two that share places 10 and 11, rank 10.5,
both are within 10. Functions of ranks give one number a case, whose mean over cases is the metric.

Metrics among sampled negatives are no estimates of these: they can turn the order of two recommenders round
(Krichene & Rendle 2020, "On Sampled Metrics for Item Recommendation", KDD). They are made only for comparison
with older papers, and are called so: ``sampled-ndcg@10/100-uniform``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Negatives = Literal["uniform", "popularity"]


def target_ranks(
    scores: Tensor, targets: Tensor, seen: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The rank of each target: 1 + items above it + half of those that tie with it.

    Args:
        scores: ``(n, n_items)``, none NaN.
        targets: The item of each row, ``(n,)`` int64.
        seen: Items that a row's user had before, as rows and items, ``(n_pairs,)`` int64 each; a pair may
            come twice. A target that was seen stays rankable.

    Returns:
        Among all items, and with the seen ones left out: ``(n,)`` float64 each, 1 to n_items.
    """
    n_items = scores.shape[1]
    own = scores.gather(1, targets[:, None])
    # twice the rank less one, in whole numbers: an item above counts 2 and a tied one 1
    doubled = 2 * _count(scores > own) + _count(scores == own) - 1
    filtered = doubled
    if seen is not None:
        pairs = torch.unique(seen[0] * n_items + seen[1])
        rows, items = pairs // n_items, pairs % n_items
        rows, items = rows[items != targets[rows]], items[items != targets[rows]]
        value, limit = scores[rows, items], own[rows, 0]
        weight = 2 * (value > limit).long() + (value == limit).long()
        filtered = doubled - torch.zeros_like(doubled).index_add_(0, rows, weight)
    return 1 + doubled.double() / 2, 1 + filtered.double() / 2


def top_items(scores: Tensor, k: int) -> Tensor:
    """The ``k`` items of the highest scores, best first, ``(n, k)`` int64; of tied ones the first in order.

    Items with a score of minus infinity are never among them; where a list is short, -1 stands.

    Args:
        scores: ``(n, n_items)``, none NaN.
        k: May be more than there are items.
    """
    n, n_items = scores.shape
    found = torch.full((n, k), -1, dtype=torch.int64, device=scores.device)
    width = min(k, n_items)
    if not width or not n:
        return found
    values, items = scores.topk(width, dim=1)
    last = values[:, -1:]
    # topk takes any of the items that tie for the last places: take the first ones instead
    open_rows = (_count(scores >= last) > width).nonzero()[:, 0]
    if len(open_rows):
        some, limit = scores[open_rows], last[open_rows]
        above, tied = some > limit, some == limit
        room = (width - _count(above))[:, None]
        chosen = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))
        items[open_rows] = chosen.nonzero()[:, 1].view(-1, width)
    items = items.sort(1).values  # so that the stable sort by score leaves tied ones in order
    values = scores.gather(1, items)
    values, order = values.sort(dim=1, descending=True, stable=True)
    found[:, :width] = items.gather(1, order).masked_fill(values == -torch.inf, -1)
    return found


def within(ranks: Array, k: int) -> NDArray[np.bool_]:
    """Whether a rank is among the first ``k``: a shared one if the mean of its places is below ``k + 1``."""
    return ranks < k + 1


def hits(ranks: Array, k: int) -> Array:
    """Hit rate: 1 where the target is among the first ``k``, else 0; one target's recall is the same."""
    return within(ranks, k).astype(np.float64)


def ndcg(ranks: Array, k: int) -> Array:
    """Normalised discounted cumulative gain of one target: ``1 / log2(1 + rank)`` within ``k``, else 0.

    Järvelin & Kekäläinen 2002; the best gain that is possible is 1, so nothing else is to be divided by.
    """
    return np.where(within(ranks, k), 1 / np.log2(1 + ranks), 0.0)


def reciprocal_ranks(ranks: Array, k: int) -> Array:
    """``1 / rank`` within ``k``, else 0: its mean is MRR@k (Voorhees 1999)."""
    return np.where(within(ranks, k), 1 / ranks, 0.0)


def recall(ranks: Array, k: int) -> Array:
    """Share of several targets that are among the first ``k``.

    Divided by the number of targets, also where that is more than ``k``.

    Args:
        ranks: Of a case's targets, ``(n, n_targets)``; NaN where a case has fewer.
        k: How many places count.

    Returns:
        ``(n,)``; NaN for a case without a target.
    """
    n_targets = np.isfinite(ranks).sum(1)
    found = within(ranks, k).sum(1)
    return np.divide(found, n_targets, out=np.full(len(ranks), np.nan), where=n_targets > 0)


def sampled_name(metric: str, n_negatives: int, negatives: Negatives) -> str:
    """What a sampled metric is called: ``sampled-ndcg@10/100-uniform``."""
    return f"sampled-{metric}/{n_negatives}-{negatives}"


def sample_negatives(
    allowed: NDArray[np.bool_], n_negatives: int, *, weights: Array | None = None, seed: int | list[int] = 0
) -> NDArray[np.int64]:
    """Different items that a target is ranked among, ``(n_negatives,)`` or fewer where there are no more.

    Args:
        allowed: Which items may be drawn, ``(n_items,)``; not the target.
        n_negatives: How many.
        weights: Probabilities up to a factor, ``(n_items,)``, such as popularity; alike by default. Items of
            no weight are never drawn.
        seed: The same seed draws the same items.
    """
    items = np.flatnonzero(allowed if weights is None else allowed & (weights > 0))
    p = None if weights is None else weights[items] / weights[items].sum()
    size = min(n_negatives, len(items))
    return np.random.default_rng(seed).choice(items, size=size, replace=False, p=p)


def _count(mask: Tensor) -> Tensor:
    """True ones of each row, int64; summing bytes takes a quarter of the time of summing bools."""
    return mask.view(torch.uint8).sum(1, dtype=torch.int32).long()
