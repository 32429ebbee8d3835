"""Pre-norm layers with residuals inside a block: what a backbone is, without what a backbone adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.registry import block_class, block_options, build_block
from mambakit.core.state import State


def build_layer(
    kind: str, d_model: int, options: Mapping[str, object] | None = None, *, both_ways: bool = False
) -> Block:
    """A block, made to look both ways if that is asked and the kind can.

    Raises:
        ValueError: As ``build_block``.
    """
    cls = block_class(kind)
    options = dict(options or {})
    if not both_ways or not cls.mixes_time or not cls.causal:
        return build_block(kind, d_model, options)
    if "causal" in block_options(kind):
        return build_block(kind, d_model, {**options, "causal": False})
    return build_block("bidirectional", d_model, {"inner": kind, "inner_options": options})


class Layers(nn.Module):
    """``x + dropout(block(norm(x)))`` for every layer; no norm at the end.

    Args:
        kinds: Kinds of block from first to last; none is the identity.
        d_model: Width.
        options: Keyword arguments of the blocks, by kind.
        both_ways: As ``build_layer`` has it.
        dropout: Share of each block's output that is dropped while training.
        norm_eps: Added to the norms' mean squares.

    Raises:
        ValueError: As ``build_block``.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        d_model: int,
        options: Mapping[str, Mapping[str, object]],
        *,
        both_ways: bool,
        dropout: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            build_layer(kind, d_model, options.get(kind), both_ways=both_ways) for kind in kinds
        )
        self.norms = nn.ModuleList(
            RMSNorm(d_model, norm_eps) if block.prenorm else nn.Identity() for block in self.members()
        )
        self.dropout = nn.Dropout(dropout)

    def members(self) -> list[Block]:
        """The blocks in order."""
        return list(self.blocks)  # type: ignore[arg-type]

    def init_state(self, batch: int, device: torch.device | str | None, dtype: torch.dtype | None) -> State:
        """One nested state a layer, ``"0"``, ``"1"``, ..."""
        states = (block.init_state(batch, device, dtype) for block in self.members())
        return State.of(**{str(i): state for i, state in enumerate(states)})

    def forward(
        self, x: Tensor, state: State | None, lengths: Tensor | None, context: Context | None
    ) -> tuple[Tensor, State]:
        """``(batch, length, d_model)`` to the same, and the next state; as ``Block.forward``."""
        states = {}
        for i, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            past = None if state is None else state[str(i)]
            y, states[str(i)] = block(norm(x), past, None, lengths, context)
            x = x + self.dropout(y)
        return x, State.of(**states)

    def step(self, x: Tensor, state: State, inplace: bool, context: Context | None) -> tuple[Tensor, State]:
        """``(batch, d_model)`` to the same, and the next state; as ``Block.step``."""
        states = {}
        for i, (norm, block) in enumerate(zip(self.norms, self.members(), strict=True)):
            y, states[str(i)] = block.step(norm(x), state[str(i)], inplace=inplace, context=context)
            x = x + y
        return x, State.of(**states)
