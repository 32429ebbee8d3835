"""Triton: the trapezoidal rule's weights of every token, forward and backward.

    own_t = trap_t dt_t,   near_t = (1 - trap_t) dt_t,   scale_t = own_t + near_{t+1}

``near_{t+1}`` is zero behind a sequence's last token.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SIZES = ["length", "n_heads", "size"]


@triton.jit
def _place(length, n_heads, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Places in ``(batch, length, n_heads)``, which there are, and their tokens, of all and in the row."""
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = at // n_heads
    return at, at < size, token, token % length


@triton.jit(do_not_specialize=_SIZES)
def trapezoid_weights(  # type: ignore[no-untyped-def]
    dt, trap, seq, scale, own, length, n_heads, size, BLOCK: tl.constexpr
):  # fmt: skip
    """``scale`` and ``own``, as ``dt`` and ``trap`` ``(batch, length, n_heads)``; ``size`` numbers."""
    at, inside, token, t = _place(length, n_heads, size, BLOCK)
    now = tl.load(trap + at, mask=inside, other=0.0) * tl.load(dt + at, mask=inside, other=0.0)
    follows = inside & (t + 1 < length)
    if seq is not None:
        id_now = tl.load(seq + token, mask=inside, other=0)
        follows = follows & (tl.load(seq + token + 1, mask=follows, other=0) == id_now)
    near = (1.0 - tl.load(trap + at + n_heads, mask=follows, other=0.0)) * tl.load(
        dt + at + n_heads, mask=follows, other=0.0
    )
    tl.store(own + at, now, mask=inside)
    tl.store(scale + at, now + near, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def weight_gradients(  # type: ignore[no-untyped-def]
    dscale, down, dt, trap, seq, ddt, dtrap, length, n_heads, size, BLOCK: tl.constexpr
):  # fmt: skip
    at, inside, token, t = _place(length, n_heads, size, BLOCK)
    dnow = tl.load(dscale + at, mask=inside, other=0.0) + tl.load(down + at, mask=inside, other=0.0)
    follows = inside & (t > 0)
    if seq is not None:
        id_now = tl.load(seq + token, mask=inside, other=0)
        follows = follows & (tl.load(seq + token - 1, mask=follows, other=0) == id_now)
    dnear = tl.load(dscale + at - n_heads, mask=follows, other=0.0)
    weight = tl.load(trap + at, mask=inside, other=0.0)
    step = tl.load(dt + at, mask=inside, other=0.0)
    tl.store(ddt + at, weight * dnow + (1.0 - weight) * dnear, mask=inside)
    tl.store(dtrap + at, step * (dnow - dnear), mask=inside)
