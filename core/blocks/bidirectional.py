"""Both directions: a block forward in time beside one backward in time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.directions import Merge, build_directions
from mambakit.core.blocks.gaps import gaps_as_read
from mambakit.core.blocks.ragged import reversal_index, take
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State


@register_block("bidirectional")
class Bidirectional(Block):
    """Reads the sequence with one block, its reversal with another or the same one, and merges the two.

    Every packed sequence is reversed inside itself and every padded row inside its real tokens, so
    padding never leads. It needs the whole sequence: it takes no state and has no ``step``. Where time gaps
    are given, the reversal sees those between a token and the one read before it, which is the next in
    time (``gaps.gaps_as_read``).

    Args:
        d_model: Width of input and output.
        inner: Kind of the block in either direction.
        inner_options: Its keyword arguments.
        merge: ``"sum"``, ``"mean"``, ``"concat"`` followed by a projection back to ``d_model``, or
            ``"gated"`` by the input, for each token and channel (see ``directions.Merge``).
        share: ``"none"``: weights of their own; ``"projections"``: one in_proj and out_proj for both
            (Caduceus); ``"all"``: one block, called once on both (see ``directions.build_directions``).

    Raises:
        ValueError: On an unknown kind, option, merge or share, or an inner block that is bidirectional
            already.
    """

    causal = False
    projections = ("merge.out_proj",)

    def __init__(
        self,
        *,
        d_model: int,
        inner: str = "mamba2",
        inner_options: Mapping[str, object] | None = None,
        merge: str = "sum",
        share: str = "none",
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.merge = Merge(merge, d_model, 2)
        blocks = build_directions(inner, d_model, inner_options, 2, share)
        self.ahead = blocks[0]
        self.back = blocks[1] if len(blocks) == 2 else None
        if not self.ahead.causal:
            raise ValueError(f"inner: {inner!r} looks in both directions already; wrap a causal block")
        self.uses_context = self.ahead.uses_context
        self.uses_elapsed = self.ahead.uses_elapsed

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        index = reversal_index(x, seq_idx, lengths)

        def both_ways(v: Tensor) -> Tensor:
            return torch.cat([v, take(v, index)])

        def gaps(elapsed: Tensor) -> Tensor:
            return gaps_as_read(elapsed, index, seq_idx)

        if self.back is None:
            told = context and context.reordered(both_ways, lambda v: torch.cat([v, gaps(v)]))
            both, _ = self.ahead(both_ways(x), None, _twice(seq_idx), _twice(lengths), told)
            ahead, back = both.chunk(2)
        else:
            told = context and context.reordered(lambda v: take(v, index), gaps)
            ahead, _ = self.ahead(x, None, seq_idx, lengths, context)
            back, _ = self.back(take(x, index), None, seq_idx, lengths, told)
        return self.merge(x, [ahead, take(back, index)]), State.of()  # a reversal undoes itself


def _twice(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else torch.cat([rows, rows])
