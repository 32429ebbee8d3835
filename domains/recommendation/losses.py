"""What training minimises: how well the next item is told from all others, or from some that are drawn.

s+ is the score of the right item, s- one of k drawn ones, among the n items with a training event.

cross-entropy     -log softmax(s)[right], over all items
sampled-softmax   -log softmax of s - log(k q) over the right one and the drawn ones, q the odds of each draw;
                  what is drawn by chance and is right is left out (Bengio & Senecal 2008; Yi et al. 2019)
gbce              -beta log sigmoid(s+) - sum log(1 - sigmoid(s-)), with a = k / (n - 1) and
                  beta = a (t (1 - 1/a) + 1/a) (Petrov & Macdonald 2023, arXiv:2308.07192)
bce               gbce with t = 0
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.linear_cross_entropy import linear_cross_entropy
from mambakit.domains.recommendation.config import LossConfig
from mambakit.domains.recommendation.model import Catalogue


def draw_items(odds: Tensor, n: int) -> Tensor:
    """``(n,)`` items, drawn with replacement by odds ``(n_items,)`` that add up to one."""
    return torch.multinomial(odds, n, replacement=True)


def popularity_odds(item: Tensor, n_items: int, power: float) -> Tensor:
    """How often each item is drawn: its count to a power, never one without any; ``(n_items,)``."""
    counts = torch.bincount(item, minlength=n_items)
    odds = counts.float() ** power * (counts > 0)
    return odds / odds.sum()


def next_item_loss(
    hidden: Tensor, target: Tensor, catalogue: Catalogue, config: LossConfig, odds: Tensor | None = None
) -> Tensor:
    """The mean loss of some positions.

    Args:
        hidden: ``(n, d_model)``.
        target: ``(n,)`` int64.
        catalogue: All items; the bias of those that are never right is minus infinity.
        config: Which loss.
        odds: Of drawing each item, ``(n_items,)``, zero for those that are never right; all others alike if
            None. Cross-entropy draws none.
    """
    if config.loss == "cross-entropy":
        return linear_cross_entropy(hidden, catalogue.vectors, target, catalogue.bias).mean()
    possible = catalogue.bias.isfinite()
    n_items = possible.sum()
    if odds is None:
        odds = possible / n_items
    drawn = draw_items(odds, config.n_negatives)
    right = (hidden * catalogue.vectors[target]).sum(-1).float() + catalogue.bias[target]
    wrong = (hidden @ catalogue.vectors[drawn].T.to(hidden.dtype)).float() + catalogue.bias[drawn]
    by_chance = drawn == target[:, None]
    if config.loss == "sampled-softmax":
        wrong = (wrong - (config.n_negatives * odds[drawn]).log()).masked_fill(by_chance, -torch.inf)
        return (torch.cat([right[:, None], wrong], 1).logsumexp(1) - right).mean()
    t = config.gbce_t if config.loss == "gbce" else 0.0
    alpha = config.n_negatives / (n_items - 1).clamp(min=1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    against = F.softplus(wrong).masked_fill(by_chance, 0.0)
    return (beta * F.softplus(-right) + against.sum(1)).mean()
