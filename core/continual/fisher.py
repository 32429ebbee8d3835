"""How much each weight matters for what was learned, and a penalty that holds it there.

Elastic weight consolidation (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural
networks", arXiv:1612.00796, equation 3):

    L = L_new + strength / 2 * sum_i F_i (theta_i - theta*_i)^2

with F the diagonal of the Fisher information at the earlier optimum theta*. Over several runs one penalty is
kept, around the newest optimum, with F <- decay * F + F_new: online EWC (Schwarz et al. 2018, "Progress &
Compress", arXiv:1805.06370, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambakit.core.errors import DataError
from mambakit.core.folders import some

Tensors = dict[str, Tensor]


def fisher_information(model: nn.Module, losses: Iterable[tuple[Callable[[], Tensor], int]]) -> Tensors:
    """The diagonal of the empirical Fisher information, by the names of the parameters.

    F = mean over batches of n * g^2, with g the gradient of a batch's mean loss of n samples. At an optimum,
    where the gradients' mean is zero, its expectation is the mean squared gradient of single samples, at the
    cost of one backward pass a batch; elsewhere it is larger, by n - 1 times the squared mean gradient.
    Labels are the data's. Of a loss that is no negative log-likelihood it is as much a measure of
    importance, but in the loss's own scale.

    Args:
        model: Whose parameters, as they are; they keep no gradient.
        losses: Calls that give a batch's mean loss, and its number of samples.

    Raises:
        ValueError: If there is no batch.
    """
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    total = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    count = 0
    for loss, n in losses:
        gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        for sums, gradient in zip(total.values(), gradients, strict=True):
            if gradient is not None:
                sums += n * gradient.detach().float().square()
        count += 1
    if not count:
        raise ValueError("losses: expected at least one batch, got none")
    return {name: sums / count for name, sums in total.items()}


def elastic_penalty(model: nn.Module, fisher: Tensors, anchor: Tensors, strength: float) -> Tensor:
    """``strength / 2 * sum F (theta - theta*)^2``, a scalar.

    Args:
        model: With the parameters theta.
        fisher: F, by name; parameters without are free.
        anchor: theta*, by name.
        strength: The lambda of the penalty.
    """
    parts = [
        (fisher[name] * (one - anchor[name]).square()).sum()
        for name, one in model.named_parameters()
        if name in fisher
    ]
    return 0.5 * strength * torch.stack(parts).sum()


@torch.no_grad()
def add_elastic_gradient(model: nn.Module, fisher: Tensors, anchor: Tensors, strength: float) -> None:
    """Add the gradient of ``elastic_penalty``, ``strength * F (theta - theta*)``, to those of the model."""
    for name, one in model.named_parameters():
        if name in fisher and one.requires_grad:
            pull = (strength * fisher[name] * (one - anchor[name])).to(one.dtype)
            one.grad = pull if one.grad is None else one.grad.add_(pull)


def summed(earlier: Tensors | None, new: Tensors, decay: float) -> Tensors:
    """``decay * earlier + new``; earlier importance of what the model no longer has is dropped."""
    if earlier is None:
        return new
    return {name: one + decay * earlier[name] if name in earlier else one for name, one in new.items()}


def save_fisher(fisher: Tensors, path: Path) -> None:
    """Write it as safetensors."""
    save_file({name: one.detach().cpu().contiguous() for name, one in fisher.items()}, str(path))


def load_fisher(path: Path, model: nn.Module) -> Tensors:
    """Read what ``save_fisher`` wrote of this model.

    Raises:
        DataError: If it is missing, damaged, or another model's.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: the run did not keep how much its weights matter")
    try:
        fisher: dict[str, Any] = load_file(str(path))
    except SafetensorError as error:
        raise DataError(f"{path} is damaged or no safetensors file ({error})") from error
    known = dict(model.named_parameters())
    wrong = [name for name, one in fisher.items() if name not in known or one.shape != known[name].shape]
    if wrong:
        raise DataError(f"{path} is another model's: {some(wrong)}")
    return fisher
