"""The few rules every op shares: the dtype of a state, the step size, where a packed sequence starts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype states are kept in: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def effective_dt(
    dt: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    dtype: torch.dtype,
) -> Tensor:
    """The step size an op works with: ``clamp(softplus(dt + dt_bias))``, in the state's dtype."""
    dt = dt.to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias.to(dtype)
    if dt_softplus:
        # threshold: softplus(x) = x to the last bit of float64 beyond it
        dt = F.softplus(dt, threshold=40.0)
    low, high = dt_limit
    if (low, high) != (0.0, float("inf")):
        dt = dt.clamp(low, high)
    return dt


def new_sequence(seq_idx: Tensor | None, t: int) -> Tensor | None:
    """Rows in which token ``t`` opens another sequence, ``(batch,)`` bool; None where none can."""
    if seq_idx is None or t == 0:
        return None
    return seq_idx[:, t] != seq_idx[:, t - 1]
