"""What every task draws: rows of ids, and what is to be said after which of them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NOTHING = -100
"""The target where nothing is asked; ``cross_entropy`` leaves it out."""


class Drawn(NamedTuple):
    """Some rows of a task, on the device of the generator that drew them.

    Attributes:
        ids: ``(n, length)`` int64.
        targets: ``(n, length)`` int64: the id to be said once the token there is read, or ``NOTHING``.
    """

    ids: Tensor
    targets: Tensor


class KnownTask(Protocol):
    """A task whose answers follow from its tokens by a rule."""

    @property
    def n_ids(self) -> int:
        """Size of the vocabulary, of tokens and answers together."""

    @property
    def chance(self) -> float:
        """How often a guess that knows the possible answers is right."""

    def draw(self, n: int, length: int, generator: torch.Generator) -> Drawn:
        """``n`` rows of ``length`` tokens.

        Raises:
            ValueError: If the length is too short for the task.
        """


def nothing_asked(ids: Tensor) -> Tensor:
    """Targets for ``ids`` that ask nothing yet."""
    return torch.full_like(ids, NOTHING)


def places(n: int, length: int, count: int, width: int, generator: torch.Generator) -> Tensor:
    """Where ``count`` things of ``width`` tokens begin, none over another: ``(n, count)``, rising.

    Any free place is possible; the gaps between them are those of independent draws.
    """
    free = length - count * width + 1
    drawn = torch.randint(free, (n, count), generator=generator, device=generator.device)
    return drawn.sort(1).values + width * torch.arange(count, device=generator.device)


def distinct(n: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different numbers below ``size`` in random order, ``(n, count)``."""
    return torch.rand(n, size, generator=generator, device=generator.device).argsort(1)[:, :count]


def random_ids(n: int, length: int, size: int, generator: torch.Generator) -> Tensor:
    """Independent ids below ``size``, ``(n, length)``."""
    return torch.randint(size, (n, length), generator=generator, device=generator.device)


def check_length(length: int, least: int, why: str) -> None:
    """Raise a ValueError unless ``length`` is enough."""
    if length < least:
        raise ValueError(f"length: expected at least {least} ({why}), got {length}")
