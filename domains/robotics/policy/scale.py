"""States, goals, actions and returns to go in deviations of the training data's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

FURTHEST = 8.0
_LEAST_DEVIATION = 1e-6


class Scale(nn.Module):
    """Mean 0 and deviation 1 over the training data, for each number.

    Args:
        width: Numbers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit(self, values: Sequence[np.ndarray]) -> None:
        """Take mean and deviation of arrays ``(n, width)``; a number that never changes is only centred."""
        together = np.concatenate([np.asarray(one, dtype=np.float64) for one in values])
        deviation = together.std(0)
        still = deviation <= _LEAST_DEVIATION * (1 + np.abs(together.mean(0)))
        self.mean.copy_(torch.from_numpy(together.mean(0)))
        self.deviation.copy_(torch.from_numpy(np.where(still, 1.0, deviation)))

    def forward(self, values: Tensor) -> Tensor:
        """Scaled, and no further than 8 deviations off: nothing learned says what to do out there."""
        return ((values - self.mean) / self.deviation).clamp(-FURTHEST, FURTHEST)

    def undone(self, values: Tensor) -> Tensor:
        """Back to the data's own units."""
        return values * self.deviation + self.mean
