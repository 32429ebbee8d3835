"""Pieces shared by the Triton kernels of the selective scan.

Layout is the whole trick. A ``[d_state, channels]`` tensor of one warp and 32 channels lies with a channel
to a thread and that channel's states in the thread's registers, and a ``[tokens, channels]`` tile with all
its tokens: sums over states and picking one token of a tile cost no exchange between threads. Triton gives
this layout to tensors whose loads it does not vectorise, so the kernels do not specialise the alignment of
the pointers to such tiles (``UNALIGNED``).
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def pick_row(tile, rows, t: tl.constexpr):
    """Row ``t`` of ``[rows, channels]``. Adding -0.0 changes nothing, so this folds to naming registers."""
    return tl.sum(tl.where(rows[:, None] == t, tile, -0.0), axis=0)


@triton.jit
def put_row(tile, rows, t: tl.constexpr, value):
    """``tile`` with row ``t`` replaced by ``value``."""
    return tl.where(rows[:, None] == t, value[None, :], tile)


@triton.jit
def load_tile(ptr, start, rows, channel, valid, STRIDE: tl.constexpr):
    """``[rows, channels]`` from token ``start`` on, zero where not ``valid``.

    The distance between tokens is a constant, so that a row's address is a constant from the first one's.
    """
    first = ptr + tl.cast(start, tl.int64) * STRIDE + channel
    return tl.load(first[None, :] + (rows * STRIDE)[:, None], mask=valid, other=0.0)


@triton.jit
def store_tile(ptr, start, rows, channel, valid, tile, STRIDE: tl.constexpr):
    first = ptr + tl.cast(start, tl.int64) * STRIDE + channel
    tl.store(first[None, :] + (rows * STRIDE)[:, None], tile.to(ptr.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["B_b", "C_b", "length", "padded_length", "n_tiles"])
def projections_kernel(
    B_ptr, C_ptr, out_ptr, B_b, B_l, B_g, C_b, C_l, C_g, n_groups, length, padded_length, n_tiles,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """B and C side by side in float32, ``[b, padded length, g, 2, BLOCK_N]``, zero in the padding.

    Every warp reads every token's B and C: here they are converted once, and lie so that a thread reads
    16 bytes at once without a mask, whatever views the inputs are.
    """
    pid = tl.program_id(0)
    tile = pid % n_tiles
    group = ((pid // n_tiles) % n_groups).to(tl.int64)
    b = (pid // n_tiles // n_groups).to(tl.int64)
    token = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    given = (token < length) & (n < D_STATE)
    B = tl.load(B_ptr + b * B_b + token * B_l + group * B_g + n, mask=given, other=0.0)
    C = tl.load(C_ptr + b * C_b + token * C_l + group * C_g + n, mask=given, other=0.0)
    out = out_ptr + ((b * padded_length + token) * n_groups + group) * (2 * BLOCK_N) + n
    tl.store(out, B.to(tl.float32), mask=token < padded_length)
    tl.store(out + BLOCK_N, C.to(tl.float32), mask=token < padded_length)


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(v * -LOG2E))


@triton.jit
def softplus(v):
    """``log(1 + e^v)``, accurate to the last few bits for any sign of ``v``.

    ``log1p(u) = 2 atanh(u / (2 + u))`` with u = e^-|v| in [0, 1], so the series' argument is at most 1/3.
    """
    u = tl.exp2(tl.abs(v) * -LOG2E)
    s = u / (2.0 + u)
    q = s * s
    series = 0.15384615 + q * 0.13333333
    series = 0.18181818 + q * series
    series = 0.22222222 + q * series
    series = 0.28571429 + q * series
    series = 0.4 + q * series
    series = 0.66666667 + q * series
    series = 2.0 + q * series
    return tl.where(v < 0.0, 0.0, v) + s * series


@triton.jit
def step_size(dt, bias, valid, low, high, SOFTPLUS: tl.constexpr, LIMITED: tl.constexpr):
    """``clamp(softplus(dt + bias))``, zero where not ``valid``: such a token leaves the state alone."""
    value = dt.to(tl.float32) + bias[None, :]
    if SOFTPLUS:
        value = softplus(value)
    if LIMITED:
        value = tl.where(value < low, low, tl.where(value > high, high, value))
    return tl.where(valid, value, 0.0)


@triton.jit
def step_slope(dt, bias, valid, low, high, SOFTPLUS: tl.constexpr, LIMITED: tl.constexpr):
    """Derivative of ``step_size`` by ``dt``."""
    value = dt.to(tl.float32) + bias[None, :]
    slope = tl.where(valid, 1.0, 0.0)
    if SOFTPLUS:
        slope = tl.where(valid, sigmoid(value), 0.0)
        value = softplus(value)
    if LIMITED:
        slope = tl.where((value < low) | (value > high), 0.0, slope)
    return slope


@triton.jit
def _xor(a, b):
    return a ^ b


@triton.jit
def _swap(v, SHAPE0: tl.constexpr, CHANNELS: tl.constexpr, DISTANCE: tl.constexpr):
    """``v[:, c]`` becomes ``v[:, c ^ DISTANCE]``: one exchange between threads."""
    bits = v.to(tl.int32, bitcast=True)
    pairs = tl.reshape(bits, [SHAPE0, CHANNELS // (2 * DISTANCE), 2, DISTANCE])
    both = tl.reduce(pairs, 2, _xor, keep_dims=True)
    return tl.reshape(pairs ^ both, [SHAPE0, CHANNELS]).to(tl.float32, bitcast=True)


@triton.jit
def _halve(v, channel, STATES: tl.constexpr, CHANNELS: tl.constexpr, DISTANCE: tl.constexpr):
    """Sum pairs of channels ``DISTANCE`` apart; one of the pair keeps the first half of the states."""
    HALF: tl.constexpr = STATES // 2
    parts = tl.reshape(v, [2, HALF, CHANNELS])
    which = tl.arange(0, 2)[:, None, None]
    first = tl.sum(tl.where(which == 0, parts, -0.0), axis=0)
    second = tl.sum(tl.where(which == 1, parts, -0.0), axis=0)
    upper = ((channel & DISTANCE) != 0)[None, :]
    kept = tl.where(upper, second, first)
    sent = tl.where(upper, first, second)
    return kept + _swap(sent, HALF, CHANNELS, DISTANCE)


@triton.jit
def store_channel_sums(ptr, dB, dC, n, channel, wanted, add, STATES: tl.constexpr, CHANNELS: tl.constexpr):
    """Store ``[STATES, CHANNELS]`` summed over channels: dB at ``ptr``, then dC; or ``add`` it.

    With 16 states on a warp's 32 channels each exchange between threads halves what is left to sum, so
    that 31 exchanges do what plain sums need 160 for.
    """
    if STATES == 16 and CHANNELS == 32:
        dB = _halve(dB, channel, 16, 32, 16)
        dC = _halve(dC, channel, 16, 32, 16)
        dB = _halve(dB, channel, 8, 32, 8)
        dC = _halve(dC, channel, 8, 32, 8)
        dB = _halve(dB, channel, 4, 32, 4)
        dC = _halve(dC, channel, 4, 32, 4)
        dB = _halve(dB, channel, 2, 32, 2)
        dC = _halve(dC, channel, 2, 32, 2)
        odd = ((channel & 1) != 0)[None, :]
        kept = tl.where(odd, dC, dB)
        total = tl.reshape(kept + _swap(tl.where(odd, dB, dC), 1, 32, 1), [32])
        # four bits of the channel say which state is left, the fifth which of the two sums
        here = ptr + (channel & 1) * 16 + (channel >> 1)
        mask = (channel >= 0) & wanted
        old = tl.load(here, mask=mask & add, other=0.0)
        tl.store(here, old + total, mask=mask)
    else:
        mask = (n >= 0) & wanted
        old = tl.load(ptr + n, mask=mask & add, other=0.0)
        tl.store(ptr + n, old + tl.sum(dB, axis=1), mask=mask)
        old = tl.load(ptr + STATES + n, mask=mask & add, other=0.0)
        tl.store(ptr + STATES + n, old + tl.sum(dC, axis=1), mask=mask)
