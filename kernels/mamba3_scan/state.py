"""What Mamba-3's recurrence carries from one token to the next."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TURN = 2 * math.pi


class Mamba3State(NamedTuple):
    """After a token; float32, or float64 for float64 inputs.

    Attributes:
        ssm: ``(batch, n_heads, head_dim, d_state)``; its channels are the turned ones.
        angles: How far channels have turned, ``(batch, n_heads, n_angles)`` radians in ``[0, 2 pi)``.
        key: The token's B as it entered (with its bias, turned), ``(batch, rank, n_heads, d_state)``. With
            ``value`` it is the earlier end of the next interval that the trapezoidal rule integrates.
        value: The token's x, ``(batch, n_heads, head_dim)``.
    """

    ssm: Tensor
    angles: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def zeros(cls, x: Tensor, rank: int, d_state: int, n_angles: int, dtype: torch.dtype) -> Mamba3State:
        """The state before the first token of ``x`` ``(batch, ..., n_heads, head_dim)``."""
        batch, n_heads, head_dim = x.shape[0], *x.shape[-2:]
        return cls(
            x.new_zeros(batch, n_heads, head_dim, d_state, dtype=dtype),
            x.new_zeros(batch, n_heads, n_angles, dtype=dtype),
            x.new_zeros(batch, rank, n_heads, d_state, dtype=dtype),
            x.new_zeros(batch, n_heads, head_dim, dtype=dtype),
        )

    def to(self, dtype: torch.dtype) -> Mamba3State:
        return Mamba3State(*(tensor.to(dtype) for tensor in self))

    def where(self, rows: Tensor, other: Mamba3State) -> Mamba3State:
        """This state in ``rows`` ``(batch,)`` bool, ``other`` in the rest."""
        pairs = zip(self, other, strict=True)
        return Mamba3State(*(torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs))
