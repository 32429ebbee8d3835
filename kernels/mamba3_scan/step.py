"""``mamba3_step``: one token of Mamba-3's recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.mamba3_scan.checks import check_scan
from mambakit.kernels.mamba3_scan.state import TURN, Mamba3State
from mambakit.kernels.ssd.projections import head_projections


def mamba3_step(
    state: Mamba3State,
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    trap: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    turn: Tensor | None = None,
    B_bias: Tensor | None = None,
    C_bias: Tensor | None = None,
    up: Tensor | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Mamba3State]:
    """One token of ``mamba3_scan``, in time and memory that do not depend on how many came before.

    Args:
        state: What came before; computed in its dtype.
        x, dt, log_decay, trap, B, C, turn, z: As in ``mamba3_scan`` without the length.
        B_bias, C_bias, up, D: As in ``mamba3_scan``.
        inplace: Overwrite the state's tensors and return them; not for a state that needs gradients.

    Returns:
        ``y`` ``(batch, rank, n_heads, head_dim)`` of ``x``'s dtype, and the next state.

    Raises:
        TypeError, ValueError: As ``mamba3_scan``.
    """
    check_scan(x, dt, log_decay, trap, B, C, turn, B_bias, C_bias, up, D, z, state, length=None)
    with torch.autocast(x.device.type, enabled=False):
        dtype = state.ssm.dtype
        n_heads = x.shape[1]
        xs, dt, trap = x.to(dtype), dt.to(dtype), trap.to(dtype)
        theta = state.angles
        if turn is not None:
            theta = torch.remainder(theta + dt[..., None] * turn[:, None].to(dtype), TURN)
        biases = (None if v is None else v.to(dtype).transpose(0, 1) for v in (B_bias, C_bias))
        k, q = (
            head_projections(v.to(dtype), bias, theta[:, None], n_heads)
            for v, bias in zip((B, C), biases, strict=True)
        )  # [b, r, h, n]
        ups = None if up is None else up.to(dtype)
        now, before = (v[:, :, None] if ups is None else v[:, :, None] * ups for v in (xs, state.value))

        # both ends of the interval as one product: [b*h, p, 2r] by [b*h, 2r, n]
        alpha = log_decay.to(dtype).exp()
        near, far = (1 - trap) * dt * alpha, trap * dt
        values = torch.cat([near[..., None, None] * before, far[..., None, None] * now], dim=2)
        keys = torch.cat([state.key, k], dim=1).transpose(1, 2)  # [b, h, 2r, n]
        decay = alpha[..., None, None]
        ssm = state.ssm.mul_(decay) if inplace else state.ssm * decay
        update = values.flatten(0, 1).transpose(1, 2) @ keys.flatten(0, 1)
        ssm = ssm.add_(update.view_as(ssm))
        y = (q.transpose(1, 2) @ ssm.transpose(2, 3)).transpose(1, 2)  # [b, r, h, p]
        if D is not None:
            y = y + D.to(dtype)[:, None] * now.transpose(1, 2)
        if z is not None:
            y = y * F.silu(z.to(dtype))
        if inplace:
            kept = zip(state[1:], (theta, k, xs), strict=True)
            return y.to(x.dtype), Mamba3State(ssm, *(old.copy_(new) for old, new in kept))
        # a copy: x is often a slice of something larger
        return y.to(x.dtype), Mamba3State(ssm, theta, k, xs.clone())
