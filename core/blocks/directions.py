"""Several readings of one sequence: the blocks that do them, and how their outputs become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mambakit.core.blocks.base import Block
from mambakit.core.blocks.registry import build_block

MERGES = ("sum", "mean", "concat", "gated")
SHARES = ("none", "projections", "all")
PROJECTIONS = ("in_proj", "out_proj")


def build_directions(
    inner: str, d_model: int, options: Mapping[str, object] | None, n: int, share: str
) -> list[Block]:
    """A block for each of ``n`` readings; one for all of them if they share everything.

    Args:
        inner: Kind of the blocks.
        d_model: Width of input and output.
        options: Their keyword arguments.
        n: Number of readings.
        share: ``"none"``; ``"projections"``: one ``in_proj`` and one ``out_proj``, which hold most of the
            weights, and a convolution and scan for each (Caduceus' BiMamba, arXiv:2403.03234, section 3.1;
            VMamba's SS2D is so too); ``"all"``: one block reads every way.

    Raises:
        ValueError: On another ``share``, an unknown kind or option, or a block without such projections.
    """
    if share not in SHARES:
        raise ValueError(f"share: expected one of {', '.join(SHARES)}, got {share!r}")
    blocks = [build_block(inner, d_model, options) for _ in range(1 if share == "all" else n)]
    if share == "projections":
        for name in PROJECTIONS:
            if not isinstance(getattr(blocks[0], name, None), nn.Module):
                raise ValueError(f"share: {inner!r} has no {name} to share; use 'none' or 'all'")
            for block in blocks[1:]:
                setattr(block, name, getattr(blocks[0], name))
    return blocks


class Merge(nn.Module):
    """One output from those of several readings; with one reading, what it is.

    ``"gated"`` weighs the readings for each token and channel, by a softmax of a projection of the input;
    it starts as the mean. LocalMamba (arXiv:2403.09338) weighs its scans before their sum in this spirit,
    by attention over channels and tokens; for two readings it is the coupled gate of highway networks
    (arXiv:1505.00387).

    Args:
        merge: ``"sum"``, ``"mean"``, ``"concat"`` followed by a projection back to ``d_model``, or
            ``"gated"``.
        d_model: Width.
        n: Number of readings.

    Raises:
        ValueError: On another ``merge``.
    """

    def __init__(self, merge: str, d_model: int, n: int) -> None:
        super().__init__()
        if merge not in MERGES:
            raise ValueError(f"merge: expected one of {', '.join(MERGES)}, got {merge!r}")
        self.merge = merge
        self.n = n
        self.out_proj: nn.Linear | None = None
        self.gate_proj: nn.Linear | None = None
        if merge == "concat" and n > 1:
            self.out_proj = nn.Linear(n * d_model, d_model, bias=False)
        if merge == "gated" and n > 1:
            self.gate_proj = nn.Linear(d_model, n * d_model)
            nn.init.zeros_(self.gate_proj.weight)
            nn.init.zeros_(self.gate_proj.bias)

    def forward(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """``outputs``, each like the input ``x`` ``(batch, length, d_model)``, to one like it."""
        if self.out_proj is not None:
            return self.out_proj(torch.cat(list(outputs), dim=-1))
        if self.gate_proj is not None:
            gates = self.gate_proj(x).unflatten(-1, (self.n, -1)).softmax(dim=-2)
            gated = [gate.to(y.dtype) * y for gate, y in zip(gates.unbind(-2), outputs, strict=True)]
            return _sum(gated)
        total = _sum(outputs)
        return total / self.n if self.merge == "mean" else total


def _sum(outputs: Sequence[Tensor]) -> Tensor:
    total = outputs[0]
    for y in outputs[1:]:
        total = total + y
    return total
