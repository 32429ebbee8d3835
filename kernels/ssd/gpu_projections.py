"""Triton: a head's own B and C (see ``projections``), made at load, and their gradients.

With ``e, o`` a pair of channels after the bias and ``t`` its angle, ``e' = e cos t - o sin t`` and
``o' = e sin t + o cos t``. The gradients are

    dt = do' e' - de' o'        de = de' cos t + do' sin t        do = do' cos t - de' sin t
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakit.kernels.ssd.gpu_common import address, store_tile, tile

_STRIDES = ["B_b", "B_l", "B_g", "C_b", "C_l", "C_g"]
_SIZES = ["length", "n_heads", "group_heads", "n_chunks"]


@triton.jit
def _sin_cos(angle):  # type: ignore[no-untyped-def]
    """Sine and cosine of any angle, to a few units of float32's last place.

    The series of half the angle, in [-pi/2, pi/2], and then its double: no call, no table, any backend.
    """
    turns = angle * 0.15915494309189535
    t = (turns - tl.floor(turns + 0.5)) * 3.141592653589793
    q = t * t
    s = 1.6059043836821613e-10
    s = s * q - 2.505210838544172e-08
    s = s * q + 2.7557319223985893e-06
    s = s * q - 0.0001984126984126984
    s = s * q + 0.008333333333333333
    s = s * q - 0.16666666666666666
    s = s * q * t + t
    c = 2.08767569878681e-09
    c = c * q - 2.755731922398589e-07
    c = c * q + 2.48015873015873e-05
    c = c * q - 0.001388888888888889
    c = c * q + 0.041666666666666664
    c = c * q - 0.5
    c = c * q + 1.0
    return 2.0 * s * c, 1.0 - 2.0 * s * s


@triton.jit
def _angles_of(angles, at_token, n_heads, h, rows, mask, N_ANGLES: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sine and cosine for a tile of tokens of one head, ``[rows, HALF]``; no turn beyond ``N_ANGLES``."""
    ks = tl.arange(0, HALF)
    where = angles + (at_token * n_heads + h) * N_ANGLES
    where = where + rows[:, None] * (n_heads * N_ANGLES) + ks[None, :]
    given = mask[:, None] & (ks < N_ANGLES)[None, :]
    return _sin_cos(tl.load(where, mask=given, other=0.0).to(tl.float32))


@triton.jit
def turned(  # type: ignore[no-untyped-def]
    value, bias, angles, at_token, n_heads, h, rows, ns, mask,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, N_ANGLES: tl.constexpr,
):  # fmt: skip
    """A group's tile of B or C as head ``h`` sees it, float32; ``at_token`` is the row's and tile's first."""
    value = value.to(tl.float32)
    if bias is not None:
        value += tl.load(bias + h * D_STATE + ns, mask=ns < D_STATE, other=0.0).to(tl.float32)[None, :]
    if angles is not None:
        HALF: tl.constexpr = BLOCK_N // 2
        sin, cos = _angles_of(angles, at_token, n_heads, h, rows, mask, N_ANGLES, HALF)
        even, odd = tl.split(tl.reshape(value, (CHUNK, HALF, 2)))
        value = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (CHUNK, BLOCK_N))
    return value


@triton.jit(do_not_specialize=_STRIDES + _SIZES)
def head_projections(  # type: ignore[no-untyped-def]
    B, C, B_bias, C_bias, angles, head_B, head_C,
    B_b, B_l, B_g, C_b, C_l, C_g, length, n_heads, group_heads, n_chunks,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, N_ANGLES: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Every head's B and C in memory, ``(batch, length, n_heads, d_state)``, for the backward pass."""
    pid = tl.program_id(0)
    h = pid % n_heads
    pid = pid // n_heads
    c = pid % n_chunks
    b = pid // n_chunks
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    t0 = c * CHUNK
    mask = t0 + rows < length
    token = tl.cast(b, tl.int64) * length + t0
    g = h // group_heads
    out = (token * n_heads + h) * D_STATE
    Bt = tile(address(B, b, B_b, t0, B_l, g, B_g, UNIT), B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
    Bt = turned(Bt, B_bias, angles, token, n_heads, h, rows, ns, mask, D_STATE, BLOCK_N, CHUNK, N_ANGLES)
    store_tile(head_B + out, Bt, n_heads * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
    Ct = tile(address(C, b, C_b, t0, C_l, g, C_g, UNIT), C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
    Ct = turned(Ct, C_bias, angles, token, n_heads, h, rows, ns, mask, D_STATE, BLOCK_N, CHUNK, N_ANGLES)
    store_tile(head_C + out, Ct, n_heads * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)


@triton.jit
def angle_gradient(gradient, value, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a tile's angles, from a tile after its turn and its gradient; a turn back of both would not show."""
    HALF: tl.constexpr = BLOCK_N // 2
    even, odd = tl.split(tl.reshape(value.to(tl.float32), (CHUNK, HALF, 2)))
    d_even, d_odd = tl.split(tl.reshape(gradient, (CHUNK, HALF, 2)))
    return d_odd * even - d_even * odd


@triton.jit
def _turned_back(gradient, sin, cos, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of a tile before its turn."""
    HALF: tl.constexpr = BLOCK_N // 2
    d_even, d_odd = tl.split(tl.reshape(gradient, (CHUNK, HALF, 2)))
    return tl.reshape(tl.join(d_even * cos + d_odd * sin, d_odd * cos - d_even * sin), (CHUNK, BLOCK_N))


@triton.jit(do_not_specialize=["length", "n_heads", "group_heads", "n_chunks"])
def projection_gradients(  # type: ignore[no-untyped-def]
    angles, d_head_B, d_head_C, dB, dC, dbias, length, n_heads, group_heads, n_chunks,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, N_ANGLES: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of one group's B and C in a chunk, and of its heads' biases.

    ``d_head_B`` and ``d_head_C`` are ``(batch, length, n_heads, d_state)``, ``dB`` and ``dC`` ``(batch,
    length, n_groups, d_state)``; ``dbias`` is ``(batch, n_chunks, 2, n_heads, d_state)``, what the chunk's
    tokens give to the bias of B, then of C; None if there is neither.
    """
    n_groups = n_heads // group_heads
    pid = tl.program_id(0)
    g = pid % n_groups
    pid = pid // n_groups
    c = pid % n_chunks
    b = pid // n_chunks
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    t0 = c * CHUNK
    mask = t0 + rows < length
    HALF: tl.constexpr = BLOCK_N // 2
    token = tl.cast(b, tl.int64) * length + t0
    sum_B = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    sum_C = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    for h in tl.range(g * group_heads, (g + 1) * group_heads, num_stages=STAGES):
        at = (token * n_heads + h) * D_STATE
        gB = tile(d_head_B + at, n_heads * D_STATE, rows, ns, mask, D_STATE, BLOCK_N).to(tl.float32)
        gC = tile(d_head_C + at, n_heads * D_STATE, rows, ns, mask, D_STATE, BLOCK_N).to(tl.float32)
        if angles is not None:
            sin, cos = _angles_of(angles, token, n_heads, h, rows, mask, N_ANGLES, HALF)
            gB = _turned_back(gB, sin, cos, CHUNK, BLOCK_N)
            gC = _turned_back(gC, sin, cos, CHUNK, BLOCK_N)
        sum_B += gB
        sum_C += gC
        if dbias is not None:
            at_chunk = (tl.cast(b, tl.int64) * n_chunks + c) * 2 * n_heads + h
            tl.store(dbias + at_chunk * D_STATE + ns, tl.sum(gB, 0), mask=ns < D_STATE)
            tl.store(dbias + (at_chunk + n_heads) * D_STATE + ns, tl.sum(gC, 0), mask=ns < D_STATE)
    out = (token * n_groups + g) * D_STATE
    store_tile(dB + out, sum_B, n_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
    store_tile(dC + out, sum_C, n_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
