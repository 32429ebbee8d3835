"""RMSNorm as a module (Zhang & Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
        if x.dim() == 2 and x.dtype == self.weight.dtype:
            # one token of a stream: entering a custom op costs several times the norm itself
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return gated_rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
