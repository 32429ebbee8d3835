"""The feed-forward layer of hybrids: SwiGLU and its kin (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import Block
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021, arXiv:2109.08668
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The function called ``name``.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


@register_block("mlp")
class MLP(Block):
    """``out_proj(silu(gate) * up)``, each token on its own; its state is empty.

    Args:
        d_model: Width of input and output.
        d_hidden: Inner width; by default ``8/3 d_model`` rounded up to a multiple of 8, which costs as
            many parameters as the usual ungated layer of ``4 d_model``, and that width if not ``gated``.
        gated: Multiply by a second projection; otherwise ``out_proj(activation(up))``.
        activation: ``"silu"``, ``"gelu"``, ``"relu"`` or ``"relu2"``, its square.
        bias: Biases of both projections.

    Raises:
        ValueError: On a size below 1, or another activation.
    """

    mixes_time = False
    projections = ("in_proj", "out_proj")

    def __init__(
        self,
        *,
        d_model: int,
        d_hidden: int | None = None,
        gated: bool = True,
        activation: str = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if d_hidden is None:
            d_hidden = 8 * -(-d_model // 3) if gated else 4 * d_model
        if d_model < 1 or d_hidden < 1:
            raise ValueError(f"d_model, d_hidden: expected at least 1, got {d_model} and {d_hidden}")
        self.d_model = d_model
        self.d_hidden = d_hidden
        self.gated = gated
        self.activation = activation_of(activation)
        self.in_proj = nn.Linear(d_model, (2 if gated else 1) * d_hidden, bias=bias)
        self.out_proj = nn.Linear(d_hidden, d_model, bias=bias)

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        hidden = self.in_proj(x)
        if not self.gated:
            return self.out_proj(self.activation(hidden)), State.of()
        gate, up = hidden.chunk(2, dim=-1)
        return self.out_proj(self.activation(gate) * up), State.of()

    def mix_step(self, x: Tensor, state: State, inplace: bool = False) -> tuple[Tensor, State]:
        return self.mix(x, None, None, None)
