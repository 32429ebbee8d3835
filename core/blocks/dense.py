"""Dense hidden connections: a layer also reads the hidden states of the layers below it.

DenseSSM (He et al. 2024, arXiv:2403.00818, section 3): a selective transition module brings the hidden states
h of the m layers below into a layer's own space and chooses what is wanted of them, and they are added to the
layer's own before it reads them out:

    y_t = C_t . (h^l_t + sum_i g_i(x_t) * (h^{l-i}_t P_i)) + D u_t,   i = 1 ... m

The projection P_i is a matrix over the state's channels, the identity at first; the gate g_i is an MLP of
the layer's input with a number for each of the d_inner channels, zero at first, so that a model begins as the
same one without connections. As reading is linear, C_t . (h P_i) is h read by C_t P_i^T: over a sequence the
scan of the layer below runs once more with other C, no hidden state is ever kept in memory, and the sequence
is as parallel as before. In a stream it is one product with a state that is there anyway. Each connection
costs a scan. ``project`` holds the P_i^T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from mambakit.core.blocks.base import Block


class Hidden(NamedTuple):
    """What a layer shows of its hidden states to those above."""

    key: tuple[object, ...]
    """Of layers whose states are alike: kind and sizes."""
    read: Callable[[Tensor], Tensor]
    """From C, ``(batch, length, n_groups, d_state)``, to ``(batch, length, d_inner)``; of one token without
    the length."""


class DenseReads(nn.Module):
    """Selective transition of the states of ``n_earlier`` layers, and their sum as it is read.

    Args:
        d_model: Width of the layer's input.
        d_inner: Channels that are read.
        d_state: Channels of the state.
        n_earlier: Layers below that it reads.
    """

    def __init__(self, d_model: int, d_inner: int, d_state: int, n_earlier: int) -> None:
        super().__init__()
        rank = max(d_model // 8, 1)
        self.n_earlier = n_earlier
        self.project = nn.Parameter(torch.eye(d_state).repeat(n_earlier, 1, 1))
        self.gate_in = nn.Linear(d_model, rank, bias=False)
        self.gate_out = nn.Linear(rank, n_earlier * d_inner)
        nn.init.zeros_(self.gate_out.weight)
        nn.init.zeros_(self.gate_out.bias)

    def forward(self, x: Tensor, C: Tensor, earlier: list[Hidden]) -> Tensor:
        """What is added to the layer's own reading, ``(batch, length, d_inner)``.

        Args:
            x: The layer's input, ``(batch, length, d_model)``.
            C: The layer's own, ``(batch, length, n_groups, d_state)``.
            earlier: The layers below, the nearest last.
        """
        gates = self.gate_out(F.silu(self.gate_in(x))).unflatten(-1, (self.n_earlier, -1)).unbind(-2)
        reads = [
            gate * one.read(C @ project.to(C.dtype)).to(gate.dtype)
            for gate, one, project in zip(gates, earlier, self.project, strict=True)
        ]
        return torch.stack(reads).sum(0)


def with_earlier(
    reads: DenseReads | None, hidden: list[Hidden], mine: Hidden, x: Tensor, C: Tensor, y: Tensor
) -> Tensor:
    """``y`` ``(batch, length, d_inner)`` and what the layer reads of those below; then it is one of them.

    Args:
        reads: The layer's connections; None of a first layer.
        hidden: What the layers below have shown; ``mine`` is added.
        mine: Of this layer.
        x, C: As ``DenseReads`` takes them.
        y: The layer's own reading.
    """
    if reads is not None:
        earlier = [one for one in hidden if one.key == mine.key][-reads.n_earlier :]
        y = y + reads(x, C, earlier).to(y.dtype)
    hidden.append(mine)
    return y


def connect(blocks: Sequence[Block], most: int) -> None:
    """Let layers read the hidden states of up to ``most`` layers below them whose states are alike.

    Raises:
        ValueError: If no two have states alike.
    """
    seen: dict[tuple[object, ...], int] = {}
    for block in blocks:
        key = block.hidden_key()
        if key is None:
            continue
        d_inner, d_state = block.d_inner, block.d_state
        assert isinstance(d_inner, int)
        assert isinstance(d_state, int)
        n_earlier = min(seen.get(key, 0), most)
        if n_earlier:
            block.dense = DenseReads(block.d_model, d_inner, d_state, n_earlier)
        block.uses_context = True
        seen[key] = seen.get(key, 0) + 1
    if max(seen.values(), default=0) < 2:
        raise ValueError(
            "dense: no two layers have hidden states alike; it joins mamba1 layers, or mamba2 layers, of "
            "the same sizes"
        )
