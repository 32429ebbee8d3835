"""Rotary positions (Su et al. 2021, arXiv:2104.09864, section 3.4.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, theta: float, n_rotated: int | None = None) -> Tensor:
    """Rotate channel pairs ``(i, i + n/2)`` of the first ``n`` channels by ``positions * theta**(-2i/n)``.

    The angles are in float64 where the device has it: a stream's positions grow without bound, and a
    float32 angle is off by a tenth of a turn after ten million tokens.

    Args:
        x: ``(batch, length, n_heads, head_dim)``.
        positions: ``(batch or 1, length)``.
        theta: Base of the wavelengths.
        n_rotated: ``n``, even; all channels if None. The others stay as they are.
    """
    if n_rotated is not None and n_rotated < x.shape[-1]:
        turned, rest = x.split([n_rotated, x.shape[-1] - n_rotated], dim=-1)
        return torch.cat([rotate(turned, positions, theta), rest], dim=-1)
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=exact) / half)
    angles = (positions.to(exact)[..., None] * frequencies).unsqueeze(-2)  # [b, l, 1, p/2]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
