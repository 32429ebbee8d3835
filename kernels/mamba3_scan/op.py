"""``mamba3_scan``: Mamba-3's recurrence as one call of ``ssd_core``, so on every backend that has it.

With ``near_t = (1 - trap_t) dt_t``, the weight of an interval's earlier end, the trapezoidal rule

    S_t = alpha_t (S_{t-1} + near_t v_{t-1} k_{t-1}^T) + trap_t dt_t v_t k_t^T

lets a token in twice: at once, and behind it with the next one's ``near``. Let it in with both weights at
once, ``scale_t = trap_t dt_t + near_{t+1}``, and what its own output then has too much is a multiple of its
own value (state-spaces/mamba, ``modules/mamba3.py``):

    y_t = C-read of SSD(decay alpha, scale, v, k, q)  -  near_{t+1} (q_t . k_t) v_t

An initial state gets ``near_0 v_{-1} k_{-1}^T`` first. ``near_{t+1}`` is zero behind a sequence's last token.

With rank R a token is R tokens in a row, of which the first alone decays. An output then lacks the inputs of
its own token's later ranks: the R x R products ``q_r . k_s`` within a token correct for both at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.backend import choose_backend
from mambakit.kernels.launch import is_eager
from mambakit.kernels.mamba3_scan.checks import check_scan
from mambakit.kernels.mamba3_scan.reference import mamba3_scan_reference
from mambakit.kernels.mamba3_scan.state import TURN, Mamba3State
from mambakit.kernels.semantics import state_dtype
from mambakit.kernels.ssd.op import ssd_core
from mambakit.kernels.ssd.projections import head_projections


def mamba3_scan(
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
    initial_state: Mamba3State | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Mamba3State]:
    """The trapezoidal rule on a rotating state; the equations are in ``reference``.

    Lahoti et al. 2026, arXiv:2603.15569. Gradients flow to every tensor argument, and from the final state
    too. Computed in float32 (float64 for float64 ``x``).

    Args:
        x: Values, ``(batch, length, n_heads, head_dim)``; any length, 0 too.
        dt: Step sizes, ``(batch, length, n_heads)``, >= 0: the time between a token and the one before.
        log_decay: ``dt`` times A, ``(batch, length, n_heads)``, <= 0.
        trap: Weight of an interval's later end, ``(batch, length, n_heads)`` in [0, 1].
        B, C: ``(batch, length, rank, n_groups, d_state)``; neighbouring heads share a group.
        turn: Angular velocity, ``(batch, length, n_angles)`` in radians per unit of ``dt``, at most
            ``d_state / 2`` of them: channels ``2i`` and ``2i + 1`` of B and C turn by angle ``i``.
        B_bias, C_bias: ``(n_heads, rank, d_state)``, added to B and C before they turn.
        up: What makes of ``x`` the values of each rank, ``(n_heads, rank, head_dim)``; ones if None.
        D: Skip coefficient, ``(n_heads,)``.
        z: Gate, shaped as ``y``: ``y`` is multiplied by ``silu(z)``.
        initial_state: State before the first token; nothing if None.
        seq_idx: As in ``ssd``: the first sequence of a row continues ``initial_state``.
        lengths: ``(batch,)`` real tokens of right-padded rows; what follows them leaves the state alone, and
            its outputs mean nothing.
        chunk_size: As in ``ssd_core``, a token of rank R counting as R.
        backend: As in ``ssd``.

    Returns:
        ``y`` ``(batch, length, rank, n_heads, head_dim)`` of ``x``'s dtype, and the state after each row's
        last token.

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype.
        ValueError: On a wrong shape, device or name of a backend, or ``lengths`` with ``seq_idx``.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    check_scan(
        x, dt, log_decay, trap, B, C, turn, B_bias, C_bias, up, D, z, initial_state,
        length=x.shape[1] if x.dim() == 4 else 0, seq_idx=seq_idx, lengths=lengths,
    )  # fmt: skip
    # the products here are as exact as the kernels'
    with torch.autocast(x.device.type, enabled=False):
        if x.shape[1] == 0 or choose_backend("ssd", backend, x.device, x.dtype) == "reference":
            return mamba3_scan_reference(
                x, dt, log_decay, trap, B, C, turn=turn, B_bias=B_bias, C_bias=C_bias, up=up, D=D, z=z,
                initial_state=initial_state, seq_idx=seq_idx, lengths=lengths,
            )  # fmt: skip
        dtype = state_dtype(x)
        dt, log_decay, trap = (v.to(dtype) for v in (dt, log_decay, trap))
        if lengths is not None:
            padding = (torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[..., None]
            dt, log_decay = dt.masked_fill(padding, 0.0), log_decay.masked_fill(padding, 0.0)
        B_bias, C_bias = (None if v is None else v.to(dtype).transpose(0, 1) for v in (B_bias, C_bias))
        past = None if initial_state is None else initial_state.to(dtype)

        begun = None if past is None else past.angles
        chosen = choose_backend("ssd", backend, x.device, x.dtype)
        if chosen == "triton" and is_eager(x, dt, trap, turn, begun) and dt.numel():
            from mambakit.kernels.mamba3_scan import gpu

            scale, own = gpu.weights(dt, trap, seq_idx)
            if turn is None or turn.shape[-1] == 0:
                angles = None if turn is None else dt.new_zeros(*dt.shape, 0)
            else:
                angles = gpu.angles(dt, turn, begun, seq_idx)
        else:
            scale, own = _weights(dt, trap, seq_idx)
            angles = None if turn is None else _angles(dt, turn, begun, seq_idx)
        ssm = None
        if past is not None:
            before = past.value[:, None] if up is None else past.value[:, None] * up.to(dtype).transpose(0, 1)
            entering = torch.einsum("brhp,brhn->bhpn", before, past.key)
            near = ((1 - trap[:, 0]) * dt[:, 0])[..., None, None]
            ssm = past.ssm + near * entering

        given = (
            x, log_decay, scale, own, B, C, angles, B_bias, C_bias, D, z, ssm, seq_idx, chunk_size,
            backend,
        )  # fmt: skip
        y, ssm = _single(*given) if B.shape[2] == 1 and up is None else _multiple(*given, up)
        return y, _final(x, ssm, angles, B, B_bias, past, lengths)


def _single(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    own: Tensor,
    B: Tensor,
    C: Tensor,
    angles: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    ssm: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """``(y, ssm)`` of rank 1; ``log_decay``, ``scale`` and ``own`` are ``(batch, length, n_heads)``."""
    y, ssm = ssd_core(
        x,
        log_decay,
        scale,
        B.squeeze(2),
        C.squeeze(2),
        skip=None if D is None else D.to(scale.dtype).expand_as(scale),
        z=None if z is None else z.squeeze(2),
        B_bias=None if B_bias is None else B_bias[0],
        C_bias=None if C_bias is None else C_bias[0],
        angles=angles,
        own_scale=own,
        initial_state=ssm,
        seq_idx=seq_idx,
        return_final_state=True,
        chunk_size=chunk_size,
        backend=backend,
    )
    return y[:, :, None], ssm


def _multiple(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    own: Tensor,
    B: Tensor,
    C: Tensor,
    angles: Tensor | None,
    B_bias: Tensor | None,
    C_bias: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    ssm: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
    backend: str | None,
    up: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``(y, ssm)`` of any rank; arguments as ``_single``'s, and what makes the values of ranks."""
    dtype = scale.dtype
    n_heads, rank = x.shape[2], B.shape[2]
    # [b, l, r, h, n], before they turn
    k, q = (
        v.to(dtype).repeat_interleave(n_heads // v.shape[3], dim=3) + (0.0 if bias is None else bias)
        for v, bias in ((B, B_bias), (C, C_bias))
    )
    values = x[:, :, None].to(dtype)
    values = values.expand(-1, -1, rank, -1, -1) if up is None else values * up.to(dtype).transpose(0, 1)

    first_only = torch.zeros(rank, 1, device=x.device, dtype=dtype)
    first_only[0] = 1.0
    y, ssm = ssd_core(
        values.flatten(1, 2).to(x.dtype),
        (log_decay[:, :, None] * first_only).flatten(1, 2),
        scale.repeat_interleave(rank, dim=1),
        k.flatten(1, 2),
        q.flatten(1, 2),
        angles=None if angles is None else angles.repeat_interleave(rank, dim=1),
        initial_state=ssm,
        seq_idx=None if seq_idx is None else seq_idx.repeat_interleave(rank, dim=1),
        return_final_state=True,
        chunk_size=chunk_size,
        backend=backend,
    )
    later = torch.ones(rank, rank, device=x.device, dtype=dtype).triu(1)
    weight = scale[..., None, None] * (later - 1) + own[..., None, None]  # [b, l, h, r, r]
    weight = torch.einsum("blrhn,blshn->blhrs", q, k) * weight
    if D is not None:
        weight = weight + D.to(dtype)[:, None, None] * torch.eye(rank, device=x.device, dtype=dtype)
    total = y.to(dtype).unflatten(1, (-1, rank)) + torch.einsum("blhrs,blshp->blrhp", weight, values)
    if z is not None:
        total = total * F.silu(z.to(dtype))
    return total.to(x.dtype), ssm


def _weights(dt: Tensor, trap: Tensor, seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(scale, own)``: what scales a token in later outputs, and in its own."""
    near = (1 - trap) * dt
    # not padded behind near[:, 1:]: a traced length would have to differ from 2
    following = F.pad(near, (0, 0, 0, 1))[:, 1:]
    if seq_idx is not None:
        closes = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (0, 1))
        following = following.masked_fill(closes[..., None], 0.0)
    own = trap * dt
    return own + following, own


def _angles(dt: Tensor, turn: Tensor, begun: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """How far channels have turned at each token, ``(batch, length, n_heads, n_angles)`` in [0, 2 pi).

    Summed in float64 where the device has it: a float32 sum is off by a tenth of a turn after a few million
    tokens.
    """
    exact = torch.float32 if dt.device.type == "mps" else torch.float64
    steps = dt.to(exact)[..., None] * turn.to(exact)[:, :, None]
    angles = steps.cumsum(1)
    if seq_idx is not None:
        t = torch.arange(seq_idx.shape[1], device=seq_idx.device)
        opens = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
        start = torch.where(opens, t, 0).cummax(dim=1).values
        index = start[..., None, None].expand(-1, -1, *angles.shape[2:])
        angles = angles - (angles - steps).gather(1, index)
    if begun is not None:
        begun = begun.to(exact)[:, None]
        angles = angles + (begun if seq_idx is None else begun * (start == 0)[..., None, None])
    return torch.remainder(angles, TURN).to(dt.dtype)


def _final(
    x: Tensor,
    ssm: Tensor,
    angles: Tensor | None,
    B: Tensor,
    B_bias: Tensor | None,
    past: Mamba3State | None,
    lengths: Tensor | None,
) -> Mamba3State:
    """The state after each row's last token, of whose recurrence ``ssm`` is the end."""
    rank, d_state = B.shape[2], B.shape[4]
    n_angles = 0 if angles is None else angles.shape[3]
    if past is None:
        past = Mamba3State.zeros(x, rank, d_state, n_angles, ssm.dtype)
    rows = torch.arange(x.shape[0], device=x.device)

    def last(v: Tensor) -> Tensor:
        return v[:, -1] if lengths is None else v[rows, (lengths - 1).clamp(min=0)]

    angle = None if angles is None else last(angles)
    key = head_projections(
        last(B).to(ssm.dtype), B_bias, None if angle is None else angle[:, None], x.shape[2]
    )
    value = last(x).to(ssm.dtype).clone()  # not a view that keeps the whole sequence
    state = Mamba3State(ssm, past.angles if angle is None else angle, key, value)
    return state if lengths is None else state.where(lengths > 0, past)
