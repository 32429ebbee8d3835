"""Chunked state-space duality, forward and backward, on any device.

Dao & Gu 2024 (arXiv:2405.21060), section 6. With ``cum`` the running sum of the log-decay inside a chunk,
a chunk that starts from state ``S`` gives

    y_i  = sum_{j<=i} (C_i . B_j) exp(cum_i - cum_j) scale_j x_j  +  exp(cum_i) C_i S
    S'   = exp(cum_last) S + sum_j exp(cum_last - cum_j) scale_j B_j x_j^T

Sums over tokens, state and channels are matrix products; C B^T is taken once for all heads of a group, and
so are the products with states, whose layout is ``(n_groups, d_state, heads of the group * head_dim)``.
What lies between the products (decays, skip, gate, the recurrence over chunks) is in ``elementwise``. Work
goes slab by slab (a few chunks of a few rows), so that temporaries stay in cache. The backward pass saves
nothing: it runs the states once more and then the slabs in reverse. ``cpu_forward`` and ``cpu_backward``
are the same algebra for float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.semantics import state_dtype
from mambakit.kernels.ssd import elementwise as ew

# exp(-1000) is zero in every dtype, and sums of bounded terms have no inf - inf
_LOWEST_LOG_DECAY = -1000.0
_SLAB_BYTES = 1 << 20
# elsewhere fewer launches matter more than a cache
_SLAB_BYTES_OFF_CPU = 1 << 28


@dataclass(frozen=True)
class Slab:
    """Rows ``r0:r1`` and chunks ``c0:c1``, which hold the tokens ``t0:t1``."""

    r0: int
    r1: int
    c0: int
    c1: int
    t0: int
    t1: int

    def tokens(self, value: Tensor) -> Tensor:
        return value[self.r0 : self.r1, self.t0 : self.t1]

    def chunks(self, value: Tensor) -> Tensor:
        return value[self.r0 : self.r1, self.c0 : self.c1]


class Plan:
    """Sizes, the decays of every chunk and the slabs of one call.

    Attributes:
        cum: Running sum of the log-decay, ``[b, c, h, q]``, float64 where the device has it.
        scale: Input scale, ``[b, c, h, q]``.
        into: Decay from the chunk's start to each token, ``[b, c, h, q]``; 0 in a later sequence.
        out: Decay from each token to the chunk's end, ``[b, c, h, q]``; 0 before the last sequence.
        through: Decay over the chunk, ``[b, c, h]``; 0 where a sequence starts in it.
        start: First in-chunk position of each token's sequence, ``[b, c, q]`` int32; None if not packed.
    """

    def __init__(
        self,
        x: Tensor,
        log_decay: Tensor,
        scale: Tensor,
        B: Tensor,
        seq_idx: Tensor | None,
        chunk_size: int | None,
    ) -> None:
        self.batch, self.length, self.n_heads, self.head_dim = x.shape
        self.n_groups, self.d_state = B.shape[2:]
        self.dtype = state_dtype(x)
        self.q = min(chunk_size or default_chunk(self.length), max(self.length, 1))
        self.n_chunks = -(-self.length // self.q)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        self.cum = self._per_chunk(log_decay).to(wide).clamp(min=_LOWEST_LOG_DECAY).cumsum(-1)
        self.scale = self._per_chunk(scale).to(self.dtype).contiguous()
        last = self.cum[..., -1:]
        self.into = self.cum.exp()
        self.out = (last - self.cum).exp()
        self.through = last.squeeze(-1).exp()
        self.start: Tensor | None = None
        if seq_idx is not None:
            opens = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0)) if self.length else seq_idx.bool()
            opens = F.pad(opens, (0, self.n_chunks * self.q - self.length)).unflatten(1, (-1, self.q))
            position = torch.arange(self.q, device=x.device, dtype=torch.int32)
            self.start = torch.where(opens, position, 0).cummax(-1).values
            continues = opens.int().cumsum(-1) == 0
            self.into = self.into * continues[:, :, None]
            self.out = self.out * (position >= self.start[..., -1:])[:, :, None]
            self.through = self.through * continues[:, :, None, -1]
        self.into, self.out, self.through = (v.to(self.dtype) for v in (self.into, self.out, self.through))

    def _per_chunk(self, value: Tensor) -> Tensor:
        """``[b, l, h]`` to ``[b, c, h, q]``, zeros after the end."""
        value = F.pad(value, (0, 0, 0, self.n_chunks * self.q - self.length))
        return value.unflatten(1, (self.n_chunks, self.q)).transpose(2, 3)

    def per_token(self, value: Tensor) -> Tensor:
        """``[b, c, h, q]`` to ``[b, l, h]``."""
        return value.transpose(2, 3).flatten(1, 2)[:, : self.length]

    def slabs(self, *, reverse: bool = False) -> Iterator[Slab]:
        """Slabs by rows, then by time (backwards with ``reverse``)."""
        widest = max(self.head_dim, self.q) * self.q + self.d_state * self.head_dim
        slab_bytes = _SLAB_BYTES if self.cum.device.type == "cpu" else _SLAB_BYTES_OFF_CPU
        budget = max(1, slab_bytes // max(4 * self.n_heads * widest, 1))
        n_rows = max(1, min(self.batch, budget))
        n_chunks = max(1, budget // n_rows)
        for r0 in range(0, self.batch, n_rows):
            starts = range(0, self.n_chunks, n_chunks)
            for c0 in reversed(starts) if reverse else starts:
                c1 = min(c0 + n_chunks, self.n_chunks)
                t1 = min(c1 * self.q, self.length)
                yield Slab(r0, min(r0 + n_rows, self.batch), c0, c1, c0 * self.q, t1)

    def grouped(self, value: Tensor, slab: Slab) -> Tensor:
        """B or C of a slab, ``[b, l, g, n]`` to ``[bcg, q, n]``, zeros after the end."""
        value = slab.tokens(value).to(self.dtype)
        missing = (slab.c1 - slab.c0) * self.q - (slab.t1 - slab.t0)
        if missing:
            value = F.pad(value, (0, 0, 0, 0, 0, missing))
        return value.unflatten(1, (-1, self.q)).transpose(2, 3).flatten(0, 2)

    def ungrouped(self, value: Tensor, slab: Slab) -> Tensor:
        """The inverse of ``grouped``."""
        value = value.view(slab.r1 - slab.r0, -1, self.n_groups, self.q, self.d_state)
        return value.transpose(2, 3).flatten(1, 2)[:, : slab.t1 - slab.t0]

    def inner_state(self, state: Tensor | None, like: Tensor) -> Tensor:
        """A fresh copy of ``[b, h, p, n]`` as ``[b, g, n, hp/g]``."""
        shape = (self.batch, self.n_groups, self.d_state, self.n_heads // self.n_groups * self.head_dim)
        if state is None:
            return like.new_zeros(shape, dtype=self.dtype)
        state = state.to(self.dtype).unflatten(1, (self.n_groups, -1)).permute(0, 1, 4, 2, 3)
        return state.reshape(shape).clone(memory_format=torch.contiguous_format)

    def outer_state(self, state: Tensor) -> Tensor:
        """The inverse of ``inner_state``."""
        state = state.unflatten(3, (-1, self.head_dim)).permute(0, 1, 3, 4, 2)
        return state.reshape(self.batch, self.n_heads, self.head_dim, self.d_state).contiguous()


def ssd_forward(
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """``(y, final_state)``. ``D`` is ``(n_heads, head_dim)``; the other shapes as in ``ssd_core``."""
    plan = Plan(x, log_decay, scale, B, seq_idx, chunk_size)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    state = plan.inner_state(initial_state, x)
    D = None if D is None else D.to(plan.dtype).contiguous()
    for slab in plan.slabs():
        Bs, Cs, xs = plan.grouped(B, slab), plan.grouped(C, slab), slab.tokens(x)
        xh, xw = ew.split(xs, slab.chunks(plan.scale * plan.out), plan.n_groups)
        starts = ew.recur(torch.bmm(Bs.mT, xw), slab.chunks(plan.through), state[slab.r0 : slab.r1])
        M = ew.decay(torch.bmm(Cs, Bs.mT), *_decays(plan, slab))
        ew.combine(
            slab.tokens(y),
            torch.bmm(M, xh),
            torch.bmm(Cs, starts),
            slab.chunks(plan.into),
            xs,
            D,
            None if z is None else slab.tokens(z),
        )
    return y, plan.outer_state(state)


def ssd_backward(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    log_decay: Tensor,
    scale: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Gradients of x, log_decay, scale, B, C, D, z (None where not given) and the initial state."""
    plan = Plan(x, log_decay, scale, B, seq_idx, chunk_size)
    D = None if D is None else D.to(plan.dtype).contiguous()
    dx, dB, dC = (torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in (x, B, C))
    dz = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
    dD = None if D is None else torch.zeros_like(D)
    sums = torch.zeros((4, *plan.scale.shape), dtype=plan.dtype, device=x.device)
    dthrough = torch.zeros_like(plan.through)
    weight = plan.scale * plan.out
    states = _all_states(plan, x, B, weight, initial_state)
    dstate = plan.inner_state(dfinal, x)
    for slab in plan.slabs(reverse=True):
        Bs, Cs, xs = plan.grouped(B, slab), plan.grouped(C, slab), slab.tokens(x)
        zs = None if z is None else slab.tokens(z)
        S = slab.chunks(states).flatten(0, 2)
        xh, xw = ew.split(xs, slab.chunks(weight), plan.n_groups)
        dyh, dyw = ew.split(slab.tokens(dy), slab.chunks(plan.into), plan.n_groups, zs)
        dends = ew.recur_back(
            torch.bmm(Cs.mT, dyw),
            slab.chunks(plan.through),
            dstate[slab.r0 : slab.r1],
            S,
            slab.chunks(dthrough),
        )
        M, dCB = ew.decay_back(
            torch.bmm(Cs, Bs.mT),
            torch.bmm(dyh, xh.mT),
            *_decays(plan, slab),
            slab.chunks(sums[0]),
            slab.chunks(sums[1]),
        )
        ew.combine_back(
            slab.tokens(dx),
            None if dz is None else slab.tokens(dz),
            dD,
            slab.chunks(sums[2]),
            slab.chunks(sums[3]),
            torch.bmm(M.mT, dyh),
            torch.bmm(Bs, dends),
            None if z is None else torch.bmm(M, xh),
            torch.bmm(Cs, S),
            slab.chunks(weight),
            slab.chunks(plan.into),
            xs,
            slab.tokens(dy),
            D,
            zs,
        )
        slab.tokens(dC).copy_(plan.ungrouped(torch.baddbmm(torch.bmm(dCB, Bs), dyw, S.mT), slab))
        slab.tokens(dB).copy_(plan.ungrouped(torch.baddbmm(torch.bmm(dCB.mT, Cs), xw, dends.mT), slab))
    dlog_decay, dscale = _decay_gradients(plan, weight, sums, dthrough)
    return (
        dx,
        plan.per_token(dlog_decay).to(log_decay.dtype),
        plan.per_token(dscale).to(scale.dtype),
        dB,
        dC,
        dD,
        dz,
        plan.outer_state(dstate),
    )


def _all_states(plan: Plan, x: Tensor, B: Tensor, weight: Tensor, initial_state: Tensor | None) -> Tensor:
    """The state at the start of every chunk, ``[b, c, g, n, hp/g]``."""
    state = plan.inner_state(initial_state, x)
    states = state.new_empty(plan.batch, plan.n_chunks, *state.shape[1:])
    for slab in plan.slabs():
        _, xw = ew.split(slab.tokens(x), slab.chunks(weight), plan.n_groups)
        local = torch.bmm(plan.grouped(B, slab).mT, xw)
        starts = ew.recur(local, slab.chunks(plan.through), state[slab.r0 : slab.r1])
        slab.chunks(states).copy_(starts.view(slab.r1 - slab.r0, -1, *state.shape[1:]))
    return states


def _decays(plan: Plan, slab: Slab) -> tuple[Tensor, Tensor, Tensor | None]:
    return (
        slab.chunks(plan.cum),
        slab.chunks(plan.scale),
        None if plan.start is None else slab.chunks(plan.start),
    )


def _decay_gradients(plan: Plan, weight: Tensor, sums: Tensor, dthrough: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the log-decay and the scale, ``[b, c, h, q]``, from the sums the slabs left.

    With W the elementwise product of the masked matrix and its gradient, ``sums`` are: W over the pairs
    (i, j) with j before a token and i not (each passes through that token's decay), W's column sums without
    the scale, and the products of x and dy with what crosses the chunk's borders. A difference of W's row
    and column sums would give the first as well, but at the cost of the digits that cancel.
    """
    spans, column, leaving, entering = sums.to(plan.cum.dtype)
    enters = plan.into * entering
    leaves = weight * leaving
    dlog_decay = spans + enters.flip(-1).cumsum(-1).flip(-1) + (leaves.cumsum(-1) - leaves)
    return dlog_decay + (plan.through * dthrough)[..., None], column + plan.out * leaving


def default_chunk(length: int) -> int:
    """The chunk size where the caller leaves it open."""
    return 64
