"""Temperature scaling: one number that makes a classifier's probabilities honest (Guo et al. 2017).

arXiv:1706.04599, section 4.2: ``softmax(logits / T)`` with the T of least cross-entropy on held-out
samples. The likeliest class stays the likeliest.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

# beyond these the held-out samples say nothing: all of them are right, or the logits say nothing of the class
_BOUNDS = (0.01, 100.0)


class TemperatureScaling:
    """Divides logits by a temperature fitted on held-out samples; above 1 for a model that is too sure.

    Args:
        temperature: Where nothing is fitted.

    Raises:
        ValueError: Unless it is positive.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.temperature = float(temperature)

    def fit(self, logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Self:
        """Find the temperature by L-BFGS in its logarithm; one that has no least stays within 0.01 and 100.

        Args:
            logits: ``(..., n_classes)``. One logit z a sample is two classes, ``stack([0 * z, z], -1)``.
            target: ``(...)`` int64.
            ignore_index: Targets that do not count.

        Raises:
            ValueError: On shapes that do not fit, no targets, one that is no class, or logits that are not
                finite.
        """
        if target.shape != logits.shape[:-1]:
            raise ValueError(f"target: expected shape {tuple(logits.shape[:-1])}, got {tuple(target.shape)}")
        counts = target != ignore_index
        z, y = logits[counts].detach().double(), target[counts]
        if not len(y):
            raise ValueError("target: there is not one that counts")
        n_classes = logits.shape[-1]
        outside = (y < 0) | (y >= n_classes)
        if bool(outside.any()):
            raise ValueError(f"target: {int(y[outside][0])} is no class of 0..{n_classes - 1}")
        if not bool(z.isfinite().all()):
            raise ValueError("logits: expected finite numbers")
        low, high = (math.log(bound) for bound in _BOUNDS)
        log_t = torch.zeros((), dtype=torch.float64, device=z.device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [log_t], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(z / log_t.clamp(low, high).exp(), y)
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        self.temperature = min(max(math.exp(float(log_t.detach())), _BOUNDS[0]), _BOUNDS[1])
        return self

    def __call__(self, logits: Tensor) -> Tensor:
        """``logits / T``, for a softmax; gradients flow."""
        return logits / self.temperature

    def options(self) -> dict[str, Any]:
        """What ``from_saved`` builds it from."""
        return {"temperature": self.temperature}

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The inverse of ``options``."""
        return cls(**options)
