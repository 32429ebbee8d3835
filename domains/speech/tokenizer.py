"""Samples as a sequence of pieces: what models that read the waveform itself see."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from mambakit.core.adapters.tokenizer import SampleError, Tokenizer
from mambakit.core.adapters.tokens import Tokens


class WaveTokenizer(Tokenizer[Tensor]):
    """Samples ``(n,)`` to pieces ``(ceil(n / piece), piece)`` float32 and back; zeros fill the last.

    Args:
        piece: Samples of a piece.

    Raises:
        ValueError: If that is less than 1.
    """

    kind = "wave"

    def __init__(self, piece: int = 80) -> None:
        if piece < 1:
            raise ValueError(f"piece: expected at least 1, got {piece}")
        self.piece = piece

    @property
    def lossy(self) -> str:
        """The end: decoding gives whole pieces."""
        return "zeros are added up to a whole piece"

    def encode(self, sample: Tensor) -> Tokens:
        """The pieces in order.

        Raises:
            SampleError: If it is no ``(n,)`` tensor of finite floats.
        """
        if not isinstance(sample, Tensor) or sample.dim() != 1 or not sample.is_floating_point():
            raise SampleError("expected samples (n,) in floats")
        if not bool(torch.isfinite(sample).all()):
            raise SampleError("samples are NaN or infinite")
        whole = torch.nn.functional.pad(sample.float(), (0, -len(sample) % self.piece))
        return Tokens(whole.reshape(-1, self.piece))

    def decode(self, tokens: Tokens) -> Tensor:
        """The samples, and the zeros that were added."""
        return tokens.values.reshape(-1)

    def same(self, sample: Tensor, other: Tensor) -> bool:
        """Equal but for zeros at the end."""
        a, b = sorted((sample, other), key=len)
        return bool(torch.equal(a.float(), b[: len(a)].float()) and not b[len(a) :].any())

    def state(self) -> dict[str, Any]:
        """The size of a piece."""
        return {"piece": self.piece}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The tokenizer of ``state()``."""
        return cls(state["piece"])
