"""A head's own B and C, made of its group's: a bias, then a rotation of channel pairs.

Mamba-3 (state-spaces/mamba, ``modules/mamba3.py``) gives every head a learned bias on B and C and turns
neighbouring channels by an angle that adds up over time. ``ssd_core`` takes both, so that the heads' copies
need not lie in memory: Triton's forward kernels make them as they load a tile. Elsewhere they are made here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def head_projections(B: Tensor, bias: Tensor | None, angles: Tensor | None, n_heads: int) -> Tensor:
    """``rotate(B + bias)`` for every head, ``(batch, length, n_heads, d_state)``, in ``B``'s dtype.

    Args:
        B: ``(batch, length, n_groups, d_state)``.
        bias: ``(n_heads, d_state)``.
        angles: ``(batch, length, n_heads, n_angles)`` in radians: channels ``2i`` and ``2i + 1`` are turned
            by angle ``i``; further channels stay.
        n_heads: Heads; neighbouring ones share a group.
    """
    B = B.repeat_interleave(n_heads // B.shape[2], dim=2)
    if bias is not None:
        B = B + bias.to(B.dtype)
    if angles is None or angles.shape[-1] == 0:
        return B
    turned = 2 * angles.shape[-1]
    even, odd = B[..., :turned].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().to(B.dtype), angles.sin().to(B.dtype)
    pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return torch.cat([pairs.flatten(-2), B[..., turned:]], dim=-1)
