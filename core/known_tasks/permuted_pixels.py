"""Permuted pixels: images of seven-segment digits, read one pixel at a time in a fixed random order.

After the permuted MNIST of Le et al. 2015, arXiv:1504.00941, on images that are made here: what belongs
together lies far apart, and a pixel's place is known from its time alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mambakit.core.known_tasks.drawn import Drawn, nothing_asked, random_ids

# top, upper left, upper right, middle, lower left, lower right, bottom
SEGMENTS = ("1110111", "0010010", "1011101", "1011011", "0111010", "1101011", "1101111", "1010010",
            "1111111", "1111011")  # fmt: skip
_WIDTH, _HEIGHT = 6, 11  # of a digit, in pixels
# row, column, height and width of each segment inside it
_BARS = ((0, 1, 1, 4), (1, 0, 4, 1), (1, 5, 4, 1), (5, 1, 1, 4), (6, 0, 4, 1), (6, 5, 4, 1), (10, 1, 1, 4))


@dataclass(frozen=True)
class PermutedPixels:
    """Dark and light pixels are the ids 0 and 1, digits the next ten, of which a row has none."""

    side: int = 16
    """Rows and columns of an image; a sequence has ``side ** 2`` tokens."""
    jitter: int = 3
    """A digit is moved by so many pixels at most, in each direction from the middle."""
    noise: float = 0.05
    """Share of pixels that are flipped."""
    seed: int = 0
    """Of the order, the same in every row."""

    def __post_init__(self) -> None:
        if self.side < _HEIGHT:
            raise ValueError(f"side: a digit is {_HEIGHT} pixels high, got {self.side}")

    @property
    def n_ids(self) -> int:
        return 12

    @property
    def chance(self) -> float:
        return 0.1

    @property
    def order(self) -> Tensor:
        """``(side ** 2,)``: which pixel is read when."""
        return torch.randperm(self.side**2, generator=torch.Generator().manual_seed(self.seed))

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """Rows that ask for the digit after the last pixel.

        Raises:
            ValueError: If the length is not ``side ** 2``.
        """
        if length != self.side**2:
            raise ValueError(f"length: an image has {self.side**2} pixels, got {length}")
        device = generator.device
        digits = random_ids(n, 1, 10, generator)
        images = self._digits().to(device)[digits[:, 0]]  # [n, side, side], in the upper left corner
        for axis, size in ((1, _HEIGHT), (2, _WIDTH)):
            most = self.side - size
            middle, reach = most // 2, min(self.jitter, most // 2)
            moved = middle - reach + random_ids(n, 1, 2 * reach + 1, generator)
            index = (torch.arange(self.side, device=device) - moved) % self.side
            images = images.gather(axis, index.unsqueeze(3 - axis).expand_as(images))
        flipped = torch.rand(n, length, generator=generator, device=device) < self.noise
        pixels = images.flatten(1)[:, self.order.to(device)]
        ids = torch.where(flipped, 1 - pixels, pixels)
        targets = nothing_asked(ids)
        targets[:, -1:] = 2 + digits
        return Drawn(ids, targets)

    def _digits(self) -> Tensor:
        drawn = torch.zeros(10, self.side, self.side, dtype=torch.int64)
        for digit, lit in enumerate(SEGMENTS):
            for (row, column, height, width), on in zip(_BARS, lit, strict=True):
                drawn[digit, row : row + height, column : column + width] = int(on)
        return drawn
