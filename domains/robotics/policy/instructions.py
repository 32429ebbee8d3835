"""Instructions to vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InstructionAdapter(nn.Module):
    """Embeds the words of an instruction as one vector: their mean, mixed. Word order is not seen.

    Args:
        n_words: Rows of the table of words, 0 being no word.
        d_model: Width of the vector.
    """

    def __init__(self, n_words: int, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.words = nn.Embedding(n_words, d_model, padding_idx=0)
        self.none = nn.Parameter(torch.zeros(d_model))
        self.said = nn.Sequential(nn.Linear(d_model, d_model), nn.SiLU(), nn.Linear(d_model, d_model))

    def forward(self, words: Tensor) -> Tensor:
        """Word numbers ``(..., n)`` int64 to ``(..., d_model)``; a learned vector where there is none."""
        there = (words > 0).unsqueeze(-1)
        mean = (self.words(words) * there).sum(-2) / there.sum(-2).clamp(min=1)
        return torch.where(there.any(-2), self.said(mean), self.none)
