"""Neighbourhood mixing: each token takes from the tokens that edges lead from.

What Graph-Mamba puts beside its scan (Wang et al. 2024, arXiv:2402.00789, section 4): the scan reads the
nodes in one order, and an order does not say who is whose neighbour.

    gated   W_0 x_i + sum_j s_ij * (W_1 x_j) / (sum_j s_ij + eps)
            s_ij = sigmoid(W_2 x_i + W_3 x_j + W_4 e_ij)
            GatedGCN (Bresson & Laurent 2017, arXiv:1711.07553; normalised as in Dwivedi et al. 2020,
            arXiv:2003.00982, equation 19)
    mean    W_0 x_i + mean_j (W_1 x_j + W_4 e_ij)
            GraphSAGE (Hamilton et al. 2017, arXiv:1706.02216, algorithm 1)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import Block, Context
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State

_EPSILON = 1e-6


@register_block("graph")
class GraphMix(Block):
    """``out_proj(silu(own + from neighbours))``; the edges come by ``Backbone.forward(edges=)``.

    An edge may lead anywhere in its sequence, so the block needs the whole of it: no state and no ``step``.
    A graph without direction has every edge in both directions. A token without neighbours keeps its own
    part alone.

    Args:
        d_model: Width of input and output.
        d_edge: Features of an edge; 0 for none.
        gated: Weigh neighbours by a gate for every channel; otherwise their mean.

    Raises:
        ValueError: On a size out of range.
    """

    causal = False
    mixes_time = False  # in the sense of a direction: the edges have it
    uses_context = True
    projections = ("in_proj", "edge_proj", "out_proj")

    def __init__(self, *, d_model: int, d_edge: int = 0, gated: bool = True) -> None:
        super().__init__()
        if d_model < 1 or d_edge < 0:
            raise ValueError(f"d_model, d_edge: expected at least 1 and 0, got {d_model} and {d_edge}")
        self.d_model = d_model
        self.d_edge = d_edge
        self.gated = gated
        self.in_proj = nn.Linear(d_model, (4 if gated else 2) * d_model)
        self.edge_proj = nn.Linear(d_edge, d_model, bias=False) if d_edge else None
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

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
        if context is None or context.edges is None:
            raise ValueError("edges: a graph layer needs them, (n_edges, 3) int64 of (row, source, target)")
        edges = check_edges(context.edges, x.shape[0], x.shape[1], seq_idx, lengths)
        features = self._features(context.edge_features, edges.shape[0])
        source, target = (edges[:, 0] * x.shape[1] + edges[:, end] for end in (1, 2))
        own, passed, *gates = self.in_proj(x).flatten(0, 1).split(self.d_model, dim=-1)  # [b * l, d]
        messages = passed[source]
        if self.gated:
            opening = gates[0][target] + gates[1][source]
            gate = torch.sigmoid(opening if features is None else opening + features)
            total = _sum_at(gate * messages, target, own)
            mixed = total / (_sum_at(gate, target, own) + _EPSILON)
        else:
            messages = messages if features is None else messages + features
            degree = _sum_at(torch.ones_like(messages[:, :1]), target, own)
            mixed = _sum_at(messages, target, own) / degree.clamp(min=1)
        return self.out_proj(F.silu(own + mixed)).view_as(x), State.of()

    def _features(self, features: Tensor | None, n_edges: int) -> Tensor | None:
        if self.edge_proj is None:
            if features is not None:
                raise ValueError("edge_features: the graph layer was built without them (d_edge=0)")
            return None
        got = None if features is None else tuple(features.shape)
        if features is None or got != (n_edges, self.d_edge):
            raise ValueError(
                f"edge_features: expected shape (n_edges={n_edges}, d_edge={self.d_edge}), got {got}"
            )
        return self.edge_proj(features)


def _sum_at(messages: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """Sums of the messages to each token, ``(batch * length, channels)``."""
    total = messages.new_zeros(like.shape[0], messages.shape[1])
    return total.index_add(0, target, messages)


def check_edges(
    edges: Tensor,
    batch: int,
    length: int,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    synchronize: bool = False,
) -> Tensor:
    """Return ``edges`` if each joins two tokens of one sequence.

    Args:
        edges: ``(n_edges, 3)`` int64: row, source and target.
        batch, length: Of x.
        seq_idx, lengths: As in ``Block.forward``.
        synchronize: Read the values on a GPU too, which waits for it; on a CPU they always are.

    Raises:
        TypeError: If it is not an int64 tensor.
        ValueError: On a wrong shape, a token that is not there or is padding, or an edge from one packed
            sequence to another.
    """
    if not isinstance(edges, Tensor) or edges.dtype != torch.int64:
        got = edges.dtype if isinstance(edges, Tensor) else type(edges).__name__
        raise TypeError(f"edges: expected an int64 tensor, got {got}")
    if edges.dim() != 2 or edges.shape[1] != 3:
        raise ValueError(
            f"edges: expected shape (n_edges, 3) of (row, source, target), got {tuple(edges.shape)}"
        )
    if torch.compiler.is_compiling() or not (synchronize or edges.device.type == "cpu"):
        return edges
    row, ends = edges[:, 0], edges[:, 1:]
    outside = (row < 0) | (row >= batch)
    if bool(outside.any()):
        raise ValueError(f"edges: rows must be in 0..{batch - 1}, got {int(row[outside][0])}")
    limit = torch.full_like(row, length) if lengths is None else lengths.to(edges.device)[row]
    outside = ((ends < 0) | (ends >= limit[:, None])).any(1)
    if bool(outside.any()):
        edge, n = edges[outside][0].tolist(), int(limit[outside][0])
        raise ValueError(f"edges: {edge} leaves its row's {n} tokens (row, source, target)")
    if seq_idx is not None:
        of_ends = seq_idx[row[:, None], ends]
        crossing = of_ends[:, 0] != of_ends[:, 1]
        if bool(crossing.any()):
            raise ValueError(
                f"edges: {edges[crossing][0].tolist()} joins two packed sequences (row, source, target)"
            )
    return edges
