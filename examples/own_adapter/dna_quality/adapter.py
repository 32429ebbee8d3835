"""The model side: letters embedded as far as their quality lets one believe them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dna_quality.tokenizer import LETTERS
from mambakit.core.adapters import Adapter, TokenBatch


class DnaAdapter(Adapter):
    """Expected embedding of the true letter, given the letter read and its chance of being wrong.

    A Phred score Q means an error with probability ``p = 10 ** (-Q / 10)`` (Ewing & Green 1998): the
    letter's own vector counts ``1 - p``, the mean of all letters' vectors ``p``. The score itself is
    added through a linear map.

    Args:
        d_model: Width of the embedding.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.letters = nn.Embedding(len(LETTERS), d_model)
        self.score = nn.Linear(1, d_model)

    def embed_tokens(self, batch: TokenBatch) -> Tensor:
        """``(batch, length, d_model)`` of ids ``(batch, length, 2)``."""
        letter, score = batch.values.unbind(dim=-1)
        quality = score[..., None].to(self.score.weight.dtype)
        wrong = 10.0 ** (-quality / 10.0)
        read = self.letters(letter)
        believed = read + wrong * (self.letters.weight.mean(dim=0) - read)
        return believed + self.score(quality / 40.0)

    def config(self) -> dict[str, Any]:
        """The constructor's argument."""
        return {"d_model": self.d_model}
