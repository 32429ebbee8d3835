"""Both directions: a block forward in time beside one backward in time, with weights of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mambakit.core.blocks.base import Block
from mambakit.core.blocks.ragged import reversal_index, take
from mambakit.core.blocks.registry import build_block, register_block
from mambakit.core.state import State

MERGES = ("sum", "mean", "concat")


@register_block("bidirectional")
class Bidirectional(Block):
    """Reads the sequence with one block, its reversal with another, and merges the two.

    Every packed sequence is reversed inside itself and every padded row inside its real tokens, so
    padding never leads. It needs the whole sequence: it takes no state and has no ``step``.

    Args:
        d_model: Width of input and output.
        inner: Kind of the block in either direction.
        inner_options: Its keyword arguments.
        merge: ``"sum"``, ``"mean"``, or ``"concat"`` followed by a projection back to ``d_model``.

    Raises:
        ValueError: On an unknown kind, option or merge, or an inner block that is bidirectional already.
    """

    causal = False

    def __init__(
        self,
        *,
        d_model: int,
        inner: str = "mamba2",
        inner_options: Mapping[str, object] | None = None,
        merge: str = "sum",
    ) -> None:
        super().__init__()
        if merge not in MERGES:
            raise ValueError(f"merge: expected one of {', '.join(MERGES)}, got {merge!r}")
        self.d_model = d_model
        self.merge = merge
        self.ahead = build_block(inner, d_model, inner_options)
        self.back = build_block(inner, d_model, inner_options)
        if not self.ahead.causal:
            raise ValueError(f"inner: {inner!r} looks in both directions already; wrap a causal block")
        self.out_proj = nn.Linear(2 * d_model, d_model, bias=False) if merge == "concat" else None

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        index = reversal_index(x, seq_idx, lengths)
        ahead, _ = self.ahead(x, None, seq_idx, lengths)
        back, _ = self.back(take(x, index), None, seq_idx, lengths)
        back = take(back, index)  # a reversal undoes itself
        if self.out_proj is not None:
            return self.out_proj(torch.cat([ahead, back], dim=-1)), State.of()
        both = ahead + back
        return (both / 2 if self.merge == "mean" else both), State.of()
