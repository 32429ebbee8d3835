"""What a block mixes, taken apart: a matrix over tokens, the values it mixes, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mambakit.core.attribution.matrices import tokens_at
from mambakit.core.state import State


@dataclass(frozen=True)
class Request:
    """What of a block's mixing is asked for, with inputs that ``Block.forward`` would accept."""

    x: Tensor
    state: State | None
    seq_idx: Tensor | None
    lengths: Tensor | None
    queries: Tensor
    """Tokens whose rows are wanted, ``(batch, n_queries)``."""
    heads: list[int]
    fold_convolution: bool
    fold_gate: bool
    elapsed: Tensor | None = None

    @property
    def per_channel(self) -> bool:
        """Whether what is folded in differs among the channels of a head."""
        return self.fold_convolution or self.fold_gate


@dataclass(frozen=True)
class Terms:
    """``finish(matrix @ values + state_matrix @ state_values + beside)`` is the block's output.

    Units are heads, or channels where each has a matrix of its own; ``p`` is the width of a unit's values.
    """

    matrix: Tensor  # [b, units, q, l]
    values: Tensor  # [b, units, l, p]
    state_matrix: Tensor | None  # [b, units, q, columns]
    state_values: Tensor | None  # [b, units, columns, p]
    beside: Tensor | None  # [b, units, q, p]: what no matrix of one number a pair holds
    finish: Callable[[Tensor], Tensor]  # [b, q, units, p] to [b, q, d_model]
    out_weight: Tensor | None  # [d_model, units * p] where finish is linear
    names: list[str]


def rows_at(values: Tensor, queries: Tensor) -> Tensor:
    """``values`` ``(batch, units, length, p)`` at the queries."""
    return tokens_at(values.transpose(1, 2), queries).transpose(1, 2)
