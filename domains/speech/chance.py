"""Random numbers for whole batches on their device, and decisions that steer the program."""

from __future__ import annotations

import torch
from torch import Tensor


class Chance:
    """Draws from one generator, or from torch's own, which a run seeds.

    What is decided (which rows, how many) is drawn on the host, so that nothing waits for the GPU.

    Args:
        device: Where tensors are made.
        generator: A CPU's; only with a CPU as device.
    """

    def __init__(self, device: torch.device | str = "cpu", generator: torch.Generator | None = None) -> None:
        self.device, self.generator = torch.device(device), generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """From ``low`` to ``high``."""
        return low + (high - low) * torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        """Of mean 0 and deviation 1."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def below(self, most: Tensor | int, *shape: int) -> Tensor:
        """Whole numbers from 0 to below ``most``, which broadcasts with the shape; int64."""
        drawn = torch.rand(shape, generator=self.generator, device=self.device, dtype=torch.float64)
        return (drawn * most).long()

    def decide(self, low: float, high: float, *shape: int) -> Tensor:
        """As ``uniform``, on the host."""
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def rows(self, share: float, n: int) -> Tensor:
        """Which of ``n`` rows are chosen, each with this probability: their numbers, on the device."""
        return moved((self.decide(0.0, 1.0, n) < share).nonzero()[:, 0], self.device)


def moved(decided: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device, without waiting for what the device still has to do."""
    return decided.to(device, non_blocking=True)
