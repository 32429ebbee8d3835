"""Cross-entropy over a linear read-out without ever holding the logits of all classes.

With millions of classes the logits of a batch, ``n x n_classes``, are larger than all else together. Here
they are computed a block of classes at a time, once forward for the normaliser and once backward for the
gradient (the idea: Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models,
arXiv:2411.09009).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = 1 << 24


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, block: int | None = None
) -> Tensor:
    """``cross_entropy(x @ weight.T + bias, target, reduction="none")`` in memory of a block of classes.

    Sums are in float32 (float64 of float64), whatever the dtype of ``x``; not differentiable twice.

    Args:
        x: ``(n, d)``.
        weight: ``(n_classes, d)``.
        target: ``(n,)`` int64, the class of each row.
        bias: ``(n_classes,)``.
        block: Classes at once; by default as many as make 16 million logits.

    Returns:
        ``(n,)``, the negative log-likelihood of each row's class.

    Raises:
        ValueError: On shapes that don't go together.
    """
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x, weight: expected (n, d) and (n_classes, d), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if target.shape != x.shape[:1]:
        raise ValueError(f"target: expected shape ({len(x)},), got {tuple(target.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape ({len(weight)},), got {tuple(bias.shape)}")
    if block is None:
        block = max(1, _LOGITS_AT_ONCE // max(1, len(x)))
    if block < 1:
        raise ValueError(f"block: expected at least 1, got {block}")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, target, bias, block)
    return loss


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    y = (x @ weight[part].T).to(_sums_of(x))
    return y if bias is None else y.add_(bias[part])


def _sums_of(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, block: int
    ) -> Tensor:
        total = x.new_full((len(x),), -torch.inf, dtype=_sums_of(x))
        for begin in range(0, len(weight), block):
            y = _logits(x, weight, bias, slice(begin, begin + block))
            total = torch.logaddexp(total, y.logsumexp(1))
        own = (x * weight[target]).sum(1, dtype=total.dtype)
        own = own if bias is None else own + bias[target]
        ctx.save_for_backward(x, weight, target, bias, total)
        ctx.block = block
        return total - own

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, Tensor | None, None]:
        x, weight, target, bias, total = ctx.saved_tensors
        given = gradients[0].to(total.dtype)[:, None]
        sums = total.dtype
        for_x = torch.zeros_like(x, dtype=sums)
        for_weight = torch.empty_like(weight)
        for_bias = None if bias is None else torch.empty_like(bias)
        for begin in range(0, len(weight), ctx.block):
            part = slice(begin, begin + ctx.block)
            y = _logits(x, weight, bias, part).sub_(total[:, None]).exp_().mul_(given)
            inside = (target >= begin) & (target < begin + ctx.block)
            place = (target - begin).clamp(0, y.shape[1] - 1)[:, None]
            y.scatter_add_(1, place, torch.where(inside[:, None], -given, 0.0))
            if for_bias is not None:
                for_bias[part] = y.sum(0)
            y = y.to(x.dtype)
            for_x += y @ weight[part]
            for_weight[part] = y.T @ x
        return for_x.to(x.dtype), for_weight, None, for_bias, None
