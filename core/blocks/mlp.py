"""SwiGLU, the feed-forward layer of hybrids (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import Block
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State


@register_block("mlp")
class MLP(Block):
    """``out_proj(silu(gate) * up)``, each token on its own; its state is empty.

    Args:
        d_model: Width of input and output.
        d_hidden: Inner width; by default ``8/3 d_model`` rounded up to a multiple of 8, which costs as
            many parameters as the usual ungated layer of ``4 d_model``.
        bias: Biases of both projections.

    Raises:
        ValueError: On a size below 1.
    """

    mixes_time = False

    def __init__(self, *, d_model: int, d_hidden: int | None = None, bias: bool = False) -> None:
        super().__init__()
        if d_hidden is None:
            d_hidden = 8 * -(-d_model // 3)
        if d_model < 1 or d_hidden < 1:
            raise ValueError(f"d_model, d_hidden: expected at least 1, got {d_model} and {d_hidden}")
        self.d_model = d_model
        self.d_hidden = d_hidden
        self.in_proj = nn.Linear(d_model, 2 * d_hidden, bias=bias)
        self.out_proj = nn.Linear(d_hidden, d_model, bias=bias)

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        gate, up = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate) * up), State.of()

    def mix_step(self, x: Tensor, state: State, inplace: bool = False) -> tuple[Tensor, State]:
        return self.mix(x, None, None, None)
