"""RMSNorm as a module (Zhang & Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambakit.kernels import gated_rms_norm


class RMSNorm(nn.Module):
    """Scale every token to unit mean square, times a learned weight; computed in float32 at least.

    Args:
        d_model: Channels, the last dimension.
        eps: Added to the mean square.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d_model)`` to the same shape."""
        return gated_rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
