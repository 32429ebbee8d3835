"""What an atom is with what is bonded to it: messages along bonds, before the atoms are read as a sequence.

    h <- h + MLP((1 + e) norm(h) + sum over bonded atoms j of ReLU(norm(h_j) + bond_j))

Graph isomorphism networks with bonds (GINE: Hu et al. 2020, arXiv:1905.12265), behind a layer norm. After k
layers an atom knows of all within k bonds. A sum has no order: atoms in another order come out in that order,
and nothing else changes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambakit.domains.molecules.graph import ATOM_FEATURES, BOND_FEATURES, GraphBatch


class Neighbourhood(nn.Module):
    """Atoms with their features and their surroundings.

    Args:
        d_model: Width of the tokens.
        n_layers: How many bonds far an atom hears.
        n_walks: Steps of the random walks that say where an atom stands.
        dropout: Share of each layer's output that is dropped while training.
    """

    def __init__(self, *, d_model: int, n_layers: int, n_walks: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.ModuleList(nn.Embedding(n, d_model) for n in ATOM_FEATURES.values())
        for table in self.features:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        if n_walks:
            self.walks = nn.Linear(n_walks, d_model, bias=False)
        self.norm = nn.LayerNorm(d_model)
        self.layers = nn.ModuleList(_Layer(d_model, dropout) for _ in range(n_layers))

    def forward(self, x: Tensor, graph: GraphBatch) -> Tensor:
        """Tokens with what their atoms are and are bonded to.

        Args:
            x: Embedded elements, ``(batch, length, d_model)``.
            graph: The rest of the molecules.
        """
        for table, values in zip(self.features, graph.atoms.unbind(-1), strict=True):
            x = x + table(values)
        if hasattr(self, "walks"):
            x = x + self.walks(graph.walks)
        x = self.norm(x)  # or what the layers add drowns what the atom itself is
        for layer in self.layers:
            x = layer(x, graph)
        return x


class _Layer(nn.Module):
    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.bonds = nn.ModuleList(nn.Embedding(n, d_model) for n in BOND_FEATURES.values())
        self.own = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 2 * d_model), nn.ReLU(), nn.Linear(2 * d_model, d_model), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor, graph: GraphBatch) -> Tensor:
        """``(batch, length, d_model)`` to the same shape."""
        h = self.norm(x)
        rows = torch.arange(len(h), device=h.device)[:, None, None]
        message = h[rows, graph.neighbours]  # (batch, length, most_bonds, d_model)
        for table, values in zip(self.bonds, graph.bonds.unbind(-1), strict=True):
            message = message + table(values)
        there = (graph.neighbours > 0)[..., None]
        heard = (torch.relu(message) * there).sum(2)
        return x + self.mlp((1 + self.own) * h + heard)
