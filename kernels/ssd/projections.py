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


def own_products(B: Tensor, C: Tensor, B_bias: Tensor | None, C_bias: Tensor | None, n_heads: int) -> Tensor:
    """``(C + C_bias) . (B + B_bias)`` of every token and head, ``(batch, length, n_heads)``.

    Without the heads' copies of B and C; turning both leaves it alone. Arguments as in ``head_projections``.
    """
    n_groups = B.shape[2]
    dots = (B * C).sum(-1).repeat_interleave(n_heads // n_groups, dim=2)
    for projection, bias in ((C, B_bias), (B, C_bias)):
        if bias is not None:
            of_groups = bias.to(B.dtype).unflatten(0, (n_groups, -1))  # [g, h/g, n]
            dots = dots + torch.einsum("blgn,gkn->blgk", projection, of_groups).flatten(2)
    if B_bias is not None and C_bias is not None:
        dots = dots + (B_bias.to(B.dtype) * C_bias.to(B.dtype)).sum(-1)
    return dots
