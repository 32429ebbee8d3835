"""Triton kernels of ``ssd`` around a token's step: its decay before the others, its gradient after them.

``chunk_decays`` takes dt through bias, softplus and limit and sums up the log-decay inside each chunk. What
it leaves, ``cum`` and ``scale``, lies by heads and in float32, so that the kernels that walk the chunks load
it ahead; they would wait for a bfloat16 dt, and for its softplus and its running sum, at every chunk.
``step_gradients`` takes the gradients back the same way. Both are small beside a pass over x.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakit.kernels.ssd.gpu_common import address, softplus

LOG2E = tl.constexpr(1.4426950408889634)
# exp(-150) is zero in float32; a floor keeps sums of log-decays finite and precise
LOWEST_LOG_DECAY = tl.constexpr(-150.0)

_STRIDES = [
    "dt_b", "dt_l", "dt_h", "scale_b", "scale_l", "scale_h", "skip_b", "skip_l", "skip_h",
    "ddt_b", "ddt_l", "ddt_h", "own_b", "own_l", "own_h",
]  # fmt: skip
_SIZES = ["length", "n_heads", "n_chunks", "row_heads"]


@triton.jit
def _sum(left, right):  # type: ignore[no-untyped-def]
    return left + right


@triton.jit
def _place(n_heads, n_chunks, CHUNK: tl.constexpr, HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """``(row, chunk, heads, first token, tokens of the chunk)`` of this program."""
    blocks = (n_heads + HEADS - 1) // HEADS
    pid = tl.program_id(0)
    heads = (pid % blocks) * HEADS + tl.arange(0, HEADS)
    pid = pid // blocks
    c = pid % n_chunks
    return pid // n_chunks, c, heads, c * CHUNK, tl.arange(0, CHUNK)


@triton.jit
def _limited_step(raw, low, high, SOFTPLUS: tl.constexpr, LIMIT: tl.constexpr):  # type: ignore[no-untyped-def]
    step = raw
    if SOFTPLUS:
        step = softplus(raw)
    if LIMIT:
        step = tl.where(step < low, low, step)
        step = tl.where(step > high, high, step)
    return step


@triton.jit(do_not_specialize=_STRIDES + _SIZES)
def chunk_decays(  # type: ignore[no-untyped-def]
    dt, scale, A, bias, skip, own, cum, steps, skips, owns,
    dt_b, dt_l, dt_h, scale_b, scale_l, scale_h, skip_b, skip_l, skip_h, own_b, own_l, own_h,
    length, n_heads, n_chunks, low, high,
    CHUNK: tl.constexpr, HEADS: tl.constexpr, SOFTPLUS: tl.constexpr, LIMIT: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """``cum``, the running sum of each chunk's log-decay in units of log 2, and ``steps``, what scales x.

    Both are ``(batch, n_heads, n_chunks, CHUNK)``; a token after the end decays nothing and adds nothing.
    ``cum`` is float64 if ``WIDE``. With ``A`` None, ``dt`` is the log-decay itself and ``scale`` the scale.
    ``skip``, if given for every token and head, is laid out like ``steps`` too, in ``skips``; so is ``own``,
    a token's scale in its own output, in ``owns``.
    """
    b, c, heads, t0, rows = _place(n_heads, n_chunks, CHUNK, HEADS)
    inside = (heads < n_heads)[:, None] & (t0 + rows < length)[None, :]
    where = address(dt, b, dt_b, t0, dt_l, 0, 0, 1) + heads[:, None] * dt_h + rows[None, :] * dt_l
    raw = tl.load(where, mask=inside, other=0.0).to(tl.float32)
    if A is None:
        where = address(scale, b, scale_b, t0, scale_l, 0, 0, 1)
        where += heads[:, None] * scale_h + rows[None, :] * scale_l
        s = tl.load(where, mask=inside, other=0.0).to(tl.float32)
        log_decay = raw
        if WIDE:
            log_decay = log_decay.to(tl.float64)
    else:
        if bias is not None:
            raw += tl.load(bias + heads, mask=heads < n_heads, other=0.0).to(tl.float32)[:, None]
        s = tl.where(inside, _limited_step(raw, low, high, SOFTPLUS, LIMIT), 0.0)
        rate = tl.load(A + heads, mask=heads < n_heads, other=0.0).to(tl.float32)[:, None]
        if WIDE:
            log_decay = s.to(tl.float64) * rate.to(tl.float64)
        else:
            log_decay = s * rate
    log_decay = tl.where(log_decay < LOWEST_LOG_DECAY, LOWEST_LOG_DECAY, log_decay) * LOG2E
    at = ((tl.cast(b, tl.int64) * n_heads + heads[:, None]) * n_chunks + c) * CHUNK + rows[None, :]
    given = (heads < n_heads)[:, None] & (rows >= 0)[None, :]
    tl.store(cum + at, tl.associative_scan(log_decay, 1, _sum), mask=given)
    tl.store(steps + at, s, mask=given)
    if skips is not None:
        where = address(skip, b, skip_b, t0, skip_l, 0, 0, 1)
        where += heads[:, None] * skip_h + rows[None, :] * skip_l
        tl.store(skips + at, tl.load(where, mask=inside, other=0.0).to(tl.float32), mask=given)
    if owns is not None:
        where = address(own, b, own_b, t0, own_l, 0, 0, 1)
        where += heads[:, None] * own_h + rows[None, :] * own_l
        tl.store(owns + at, tl.load(where, mask=inside, other=0.0).to(tl.float32), mask=given)


@triton.jit(do_not_specialize=_STRIDES + _SIZES)
def step_gradients(  # type: ignore[no-untyped-def]
    dt, A, bias, steps, dcum, through, dsteps, dskip, down, ddt, dscale, dskips, downs, sums,
    dt_b, dt_l, dt_h, ddt_b, ddt_l, ddt_h, scale_b, scale_l, scale_h, skip_b, skip_l, skip_h,
    own_b, own_l, own_h, length, n_heads, n_chunks, row_heads,
    low, high,
    CHUNK: tl.constexpr, HEADS: tl.constexpr, SOFTPLUS: tl.constexpr, LIMIT: tl.constexpr,
    SUMMED: tl.constexpr,
):  # fmt: skip
    """``ddt``, ``dscale`` and the sums over a chunk that become the gradients of A, dt_bias and a D per head.

    ``dcum`` is the gradient of the log-decays themselves if ``SUMMED``, else that of their running sums,
    and ``through`` ``(batch, n_heads, n_chunks)`` what all log-decays of the chunk get besides. ``dsteps``
    is the gradient of the scale, ``dskip`` that of D token by token, ``down`` that of ``own``. All lie as
    ``steps``; ``sums`` is ``(batch, n_chunks, 3, row_heads)``. With ``A`` None, ``ddt`` is the log-decay's
    gradient, ``dskips`` that of a skip for every token and head, and ``downs`` that of ``own``.
    """
    b, c, heads, t0, rows = _place(n_heads, n_chunks, CHUNK, HEADS)
    some = heads < n_heads
    inside = some[:, None] & (t0 + rows < length)[None, :]
    at_chunk = (tl.cast(b, tl.int64) * n_heads + heads) * n_chunks + c
    at = at_chunk[:, None] * CHUNK + rows[None, :]
    dlog_decay = tl.load(dcum + at, mask=inside, other=0.0)
    if not SUMMED:
        dlog_decay = tl.associative_scan(dlog_decay, 1, _sum, reverse=True)
        if through is not None:
            dlog_decay += tl.load(through + at_chunk, mask=some, other=0.0)[:, None]
    ds = tl.load(dsteps + at, mask=inside, other=0.0)
    where = address(ddt, b, ddt_b, t0, ddt_l, 0, 0, 1) + heads[:, None] * ddt_h + rows[None, :] * ddt_l
    if A is None:
        tl.store(where, dlog_decay.to(ddt.dtype.element_ty), mask=inside)
        where = address(dscale, b, scale_b, t0, scale_l, 0, 0, 1)
        where += heads[:, None] * scale_h + rows[None, :] * scale_l
        tl.store(where, ds.to(dscale.dtype.element_ty), mask=inside)
        if dskips is not None:
            where = address(dskips, b, skip_b, t0, skip_l, 0, 0, 1)
            where += heads[:, None] * skip_h + rows[None, :] * skip_l
            skip = tl.load(dskip + at, mask=inside, other=0.0)
            tl.store(where, skip.to(dskips.dtype.element_ty), mask=inside)
        if downs is not None:
            where = address(downs, b, own_b, t0, own_l, 0, 0, 1)
            where += heads[:, None] * own_h + rows[None, :] * own_l
            own = tl.load(down + at, mask=inside, other=0.0)
            tl.store(where, own.to(downs.dtype.element_ty), mask=inside)
    else:
        s = tl.load(steps + at, mask=inside, other=0.0)
        rate = tl.load(A + heads, mask=some, other=0.0).to(tl.float32)
        at_sum = (tl.cast(b, tl.int64) * n_chunks + c) * 3 * row_heads + heads
        tl.store(sums + at_sum, tl.sum(dlog_decay * s, 1), mask=some)
        dstep = ds + dlog_decay * rate[:, None]
        if SOFTPLUS or LIMIT:
            raw_at = address(dt, b, dt_b, t0, dt_l, 0, 0, 1) + heads[:, None] * dt_h + rows[None, :] * dt_l
            raw = tl.load(raw_at, mask=inside, other=0.0).to(tl.float32)
            if bias is not None:
                raw += tl.load(bias + heads, mask=some, other=0.0).to(tl.float32)[:, None]
            if LIMIT:
                step = raw
                if SOFTPLUS:
                    step = softplus(raw)
                dstep = tl.where((step >= low) & (step <= high), dstep, 0.0)
            if SOFTPLUS:
                dstep = dstep / (1.0 + tl.exp(-raw))
        dstep = tl.where(inside, dstep, 0.0)
        tl.store(where, dstep.to(ddt.dtype.element_ty), mask=inside)
        if bias is not None:
            tl.store(sums + at_sum + row_heads, tl.sum(dstep, 1), mask=some)
        if dskip is not None:
            skip = tl.load(dskip + at, mask=inside, other=0.0)
            tl.store(sums + at_sum + 2 * row_heads, tl.sum(skip, 1), mask=some)
