"""The selective scan in plain torch, a chunk of time at a time: any device that torch has.

Inside a chunk the recurrence is an associative scan by doubling; only the states at the starts of
the chunks are kept for the backward pass, which recomputes the rest. So memory is linear in length
and no ``(batch, length, d_inner, d_state)`` tensor exists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.arrays import HAS_NUMBA
from mambakit.kernels.semantics import effective_dt, state_dtype

# Tokens between two saved states. Part of the custom op's fake: one value for every device.
CHUNK_SIZE = 32
# The same for the Triton kernels, whose module only some machines can import.
GPU_SAVE_EVERY = 64


def scan_forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, final_state, chunk_states)``; shapes as in ``selective_scan``.

    ``chunk_states`` are the states at the starts of the chunks, ``(batch, n_chunks, d_state, d_inner)``,
    or none of them without ``needs_grad``.
    """
    if x.device.type == "cpu" and HAS_NUMBA:
        from mambakit.kernels.selective_scan.cpu import scan_forward_cpu

        return scan_forward_cpu(
            x,
            dt,
            A,
            B,
            C,
            D,
            z,
            dt_bias,
            initial_state,
            seq_idx,
            dt_softplus,
            dt_limit,
            needs_grad,
            CHUNK_SIZE,
        )
    batch, length, d_inner = x.shape
    d_state = A.shape[1]
    dtype = state_dtype(x)
    xs = x.to(dtype)
    dts = effective_dt(dt, dt_bias, dt_softplus, dt_limit, dtype)
    As, Bs, Cs = A.to(dtype), B.to(dtype), C.to(dtype)
    if initial_state is None:
        h = xs.new_zeros(batch, d_inner, d_state)
    else:
        h = initial_state.to(dtype, copy=True)
    n_saved = -(-length // CHUNK_SIZE) if needs_grad else 0
    chunk_states = xs.new_empty(batch, n_saved, d_state, d_inner)
    y = xs.new_empty(batch, length, d_inner)
    for i, start in enumerate(range(0, length, CHUNK_SIZE)):
        here = slice(start, start + CHUNK_SIZE)
        if needs_grad:
            chunk_states[:, i] = h.transpose(1, 2)
        _, states = _chunk_states(xs, dts, As, Bs, h, seq_idx, here)
        y[:, here] = _project(states, Cs[:, here])
        h = states[:, -1]
    if D is not None:
        y = y + D.to(dtype) * xs
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h.contiguous(), chunk_states


def scan_backward(
    dy: Tensor,
    dfinal: Tensor,
    chunk_states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> tuple[Tensor, ...]:
    """Gradients of ``x, dt, A, B, C, D, z, dt_bias, initial_state`` in the state's dtype.

    Where an optional argument is None, its gradient may be anything.
    """
    if x.device.type == "cpu" and HAS_NUMBA:
        from mambakit.kernels.selective_scan.cpu import scan_backward_cpu

        return scan_backward_cpu(
            dy,
            dfinal,
            chunk_states,
            x,
            dt,
            A,
            B,
            C,
            D,
            z,
            dt_bias,
            seq_idx,
            dt_softplus,
            dt_limit,
            CHUNK_SIZE,
        )
    length, d_inner = x.shape[1:]
    n_groups = B.shape[2]
    dtype = state_dtype(x)
    xs = x.to(dtype)
    dts = effective_dt(dt, dt_bias, dt_softplus, dt_limit, dtype)
    As, Bs, Cs = A.to(dtype), B.to(dtype), C.to(dtype)
    skip = As.new_zeros(d_inner) if D is None else D.to(dtype)
    dout = dy.to(dtype)
    dz = torch.empty_like(dout)
    dx, ddts = torch.empty_like(xs), torch.empty_like(dts)
    dA, dB, dC = torch.zeros_like(As), torch.empty_like(Bs), torch.empty_like(Cs)
    dD = torch.zeros_like(skip)
    dh = dfinal.to(dtype, copy=True)  # an op must not return its input, as length 0 would
    per_group = d_inner // n_groups
    for start in reversed(range(0, length, CHUNK_SIZE)):
        here = slice(start, start + CHUNK_SIZE)
        h0 = chunk_states[:, start // CHUNK_SIZE].transpose(1, 2)
        decay, states = _chunk_states(xs, dts, As, Bs, h0, seq_idx, here)
        before = torch.cat([h0[:, None], states[:, :-1]], dim=1)
        g = dout[:, here]
        if z is not None:
            zs = z[:, here].to(dtype)
            gate = torch.sigmoid(zs)
            y = _project(states, Cs[:, here]) + skip * xs[:, here]
            dz[:, here] = g * y * gate * (1 + zs * (1 - gate))
            g = g * zs * gate
        C_each = Cs[:, here].repeat_interleave(per_group, dim=2)
        B_each = Bs[:, here].repeat_interleave(per_group, dim=2)
        dstates = g[..., None] * C_each
        dstates[:, -1] += dh
        # dh_t = decay_{t+1} dh_{t+1} + dy_t C_t, the same scan run backwards
        later = torch.cat([decay[:, 1:], decay[:, :1]], dim=1).flip(1)
        here_idx = None if seq_idx is None else seq_idx[:, here]
        flipped = None if here_idx is None else here_idx.flip(1)
        dstates = _associative_scan(later, dstates.flip(1), flipped).flip(1)
        opens = _opens(seq_idx, here)
        through = decay * dstates
        if opens is not None:
            through = through.masked_fill(opens[..., None, None], 0.0)
            before = before.masked_fill(opens[..., None, None], 0.0)
        dh = through[:, 0]
        q = through * before
        s = (dstates * B_each).sum(-1)
        dx[:, here] = g * skip + dts[:, here] * s
        ddts[:, here] = (q * As).sum(-1) + xs[:, here] * s
        dA += (q * dts[:, here, :, None]).sum((0, 1))
        dB[:, here] = (dstates * (dts * xs)[:, here, :, None]).unflatten(2, (n_groups, per_group)).sum(3)
        dC[:, here] = (states * g[..., None]).unflatten(2, (n_groups, per_group)).sum(3)
        dD += (g * xs[:, here]).sum((0, 1))
    ddt = ddts * _dt_slope(dt, dt_bias, dt_softplus, dt_limit, dtype)
    return dx, ddt, dA, dB, dC, dD, dz, ddt.sum((0, 1)), dh.contiguous()


def _dt_slope(
    dt: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    dtype: torch.dtype,
) -> Tensor:
    """Derivative of ``effective_dt`` by ``dt``."""
    unclamped = effective_dt(dt, dt_bias, dt_softplus, (0.0, float("inf")), dtype)
    inside = torch.ones_like(unclamped)
    low, high = dt_limit
    if (low, high) != (0.0, float("inf")):
        inside = ((unclamped >= low) & (unclamped <= high)).to(dtype)
    if not dt_softplus:
        return inside
    shifted = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
    return inside * torch.sigmoid(shifted)


def _project(states: Tensor, C: Tensor) -> Tensor:
    """``y_t = C_t h_t`` for a chunk: states ``(b, q, d, n)``, C ``(b, q, g, n)`` to ``(b, q, d)``."""
    grouped = states.unflatten(2, (C.shape[2], -1))  # [b, q, g, k, n]
    return (grouped @ C[..., None]).squeeze(-1).flatten(2)


def _chunk_states(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, h: Tensor, seq_idx: Tensor | None, here: slice
) -> tuple[Tensor, Tensor]:
    """Decays and states ``(b, q, d, n)`` of the chunk ``here`` that starts from ``h``."""
    per_group = x.shape[2] // B.shape[2]
    decay = torch.exp(dt[:, here, :, None] * A)
    update = (dt[:, here] * x[:, here])[..., None] * B[:, here].repeat_interleave(per_group, dim=2)
    first = decay[:, 0] * h
    opens = _opens(seq_idx, here)
    if opens is not None:
        first = first.masked_fill(opens[:, 0, None, None], 0.0)
    update[:, 0] += first
    return decay, _associative_scan(decay, update, None if seq_idx is None else seq_idx[:, here])


def _associative_scan(decay: Tensor, update: Tensor, seq_idx: Tensor | None) -> Tensor:
    """``h_t = decay_t h_{t-1} + update_t`` along dim 1 by doubling; nothing crosses a segment's start."""
    stride, length = 1, update.shape[1]
    while stride < length:
        carried = decay[:, stride:] * update[:, :-stride]
        if seq_idx is not None:
            other = seq_idx[:, stride:] != seq_idx[:, :-stride]
            carried = carried.masked_fill(other[..., None, None], 0.0)
        update = torch.cat([update[:, :stride], update[:, stride:] + carried], dim=1)
        decay = torch.cat([decay[:, :stride], decay[:, stride:] * decay[:, :-stride]], dim=1)
        stride *= 2
    return update


def _opens(seq_idx: Tensor | None, here: slice) -> Tensor | None:
    """Which tokens of the chunk open another sequence, ``(b, q)``."""
    if seq_idx is None:
        return None
    chunk = seq_idx[:, here]
    if here.start == 0:
        previous = torch.cat([chunk[:, :1], chunk[:, :-1]], dim=1)
    else:
        previous = seq_idx[:, here.start - 1 : here.start - 1 + chunk.shape[1]]
    return chunk != previous
