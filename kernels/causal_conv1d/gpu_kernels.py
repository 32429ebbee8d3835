"""The causal convolution's Triton kernels: a program walks a run of tokens of one block of channels.

    pre[t] = bias + sum_j weight[j] x[t - (W - 1) + j]        y[t] = silu(pre[t]) or pre[t]
    dpre[t] = dy[t] silu'(pre[t])                             dweight[j] = sum_t dpre[t] x[t - (W - 1) + j]
    dx[t] = sum_j weight[j] dpre[t + (W - 1) - j]             W: width

Every value of ``x`` (and ``dy``) is read once and stays in registers as the window moves over it; a run
reads ``W - 1`` tokens more than its own. Token ``t < 0`` lies in ``past``. A walk goes by groups of GROUP
tokens, so that many loads are in flight. Offsets are int64: ``x`` may have more than 2^31 elements.

Windows are tuples of one-dimensional tensors, oldest first, of ``W`` or ``W - 1`` tokens.
"""

# ruff: noqa: RUF005, SIM102 (Triton unpacks no tuples, and a constant decides alone what is compiled)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(n_blocks, length, run):
    """This program's block of channels, first token, end of its run, and batch row.

    Blocks of channels come first, so that programs running side by side read whole rows.
    """
    program = tl.program_id(0).to(tl.int64)
    n_runs = tl.maximum((length + run - 1) // run, 1)  # an empty row has one, for the final state
    first = (program // n_blocks) % n_runs * run
    return program % n_blocks, first, tl.minimum(first + run, length), program // n_blocks // n_runs


@triton.jit
def _token(x_row, past_row, t, length, stride, columns, inside, WIDTH: tl.constexpr):
    """Token ``t`` of the row in float32; from ``past`` if it is negative, zero beyond the end."""
    value = tl.load(x_row + t * stride + columns, mask=inside & (t >= 0) & (t < length), other=0.0)
    value = value.to(tl.float32)
    if past_row is not None:
        at = past_row + columns.to(tl.int64) * (WIDTH - 1) + t + WIDTH - 1
        value += tl.load(at, mask=inside & (t < 0), other=0.0).to(tl.float32)
    return value


@triton.jit
def _owner(seq_row, t, length):
    """Which sequence token ``t`` is of; the past is the first one's."""
    t = tl.maximum(t, 0)
    return tl.load(seq_row + t, mask=t < length, other=-1)


@triton.jit
def _filter(weight_ptr, bias_ptr, columns, inside, WIDTH: tl.constexpr):
    """Weights by tap, and the bias."""
    taps = ()
    for j in tl.static_range(WIDTH):
        tap = tl.load(weight_ptr + columns * WIDTH + j, mask=inside, other=0.0)
        taps = taps + (tap.to(tl.float32),)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        bias = tl.zeros_like(columns).to(tl.float32)
    return taps, bias


@triton.jit
def _history(x_row, past_row, seq_row, first, length, stride, columns, inside, WIDTH: tl.constexpr):
    """The ``WIDTH - 1`` tokens before ``first``, and whose they are."""
    values = ()
    owners = ()
    for j in tl.static_range(WIDTH - 1):
        t = first - (WIDTH - 1) + j
        values = values + (_token(x_row, past_row, t, length, stride, columns, inside, WIDTH),)
        if seq_row is not None:
            owners = owners + (_owner(seq_row, t, length),)
    return values, owners


@triton.jit
def _rows(row, first, stop, stride, columns, inside, GROUP: tl.constexpr, MASKED: tl.constexpr):
    """GROUP tokens from ``first``, as stored; zero from ``stop`` on where MASKED."""
    rows = ()
    for u in tl.static_range(GROUP):
        t = first + u
        valid = inside & (t < stop) if MASKED else inside
        rows = rows + (tl.load(row + t * stride + columns, mask=valid, other=0.0),)
    return rows


@triton.jit
def _owners(seq_row, first, length, GROUP: tl.constexpr):
    owners = ()
    if seq_row is not None:
        for u in tl.static_range(GROUP):
            owners = owners + (_owner(seq_row, first + u, length),)
    return owners


@triton.jit
def _own(window, owners, whose: tl.constexpr, PACKED: tl.constexpr):
    """The window with zeros for what is not of the sequence of its token ``whose``."""
    if PACKED:
        own = ()
        for j in tl.static_range(len(window)):
            own = own + (tl.where(owners[j] == owners[whose], window[j], 0.0),)
    else:
        own = window
    return own


@triton.jit
def _dot(window, taps, start):
    for j in tl.static_range(len(taps)):
        start += window[j] * taps[j]
    return start


@triton.jit
def _forward_group(
    x_row, seq_row, y_row, first, stop, length, x_stride, y_stride, columns, inside, taps, bias, past, owners,
    WIDTH: tl.constexpr, SILU: tl.constexpr, GROUP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    rows = _rows(x_row, first, stop, x_stride, columns, inside, GROUP, MASKED)
    whose = _owners(seq_row, first, length, GROUP)
    for u in tl.static_range(GROUP):
        window = past + (rows[u].to(tl.float32),)
        if seq_row is not None:
            owners = owners + (whose[u],)
        y = _dot(_own(window, owners, WIDTH - 1, seq_row is not None), taps, bias)
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        valid = inside & (first + u < stop) if MASKED else inside
        tl.store(y_row + (first + u) * y_stride + columns, y.to(y_row.dtype.element_ty), mask=valid)
        past = window[1:]
        if seq_row is not None:
            owners = owners[1:]
    return past, owners


# A new length must compile nothing, so no size is specialised; UNIT says what divides them.
@triton.jit(do_not_specialize=["x_batch_stride", "x_stride", "channels", "length", "run"])
def conv_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, past_ptr, seq_ptr, y_ptr, final_ptr,
    x_batch_stride, x_stride, channels, length, run,
    UNIT: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Strides and ``channels`` in units of UNIT; ``y``, ``past``, ``seq`` and ``final`` are contiguous."""
    channels = channels * UNIT
    x_stride = x_stride * UNIT
    n_blocks = tl.cdiv(channels, CHANNELS)
    block, first, stop, b = _place(n_blocks, length, run)
    columns = block.to(tl.int32) * CHANNELS + tl.arange(0, CHANNELS)
    inside = columns < channels
    y_stride = channels
    x_row = x_ptr + b * x_batch_stride * UNIT
    y_row = y_ptr + b * length * y_stride
    past_row = None
    if past_ptr is not None:
        past_row = past_ptr + b * y_stride * (WIDTH - 1)
    seq_row = None
    if seq_ptr is not None:
        seq_row = seq_ptr + b * length
    taps, bias = _filter(weight_ptr, bias_ptr, columns, inside, WIDTH)
    past, owners = _history(x_row, past_row, seq_row, first, length, x_stride, columns, inside, WIDTH)
    whole = (stop - first) // GROUP * GROUP
    for i in range(0, whole, GROUP):
        past, owners = _forward_group(
            x_row, seq_row, y_row, first + i, stop, length, x_stride, y_stride, columns, inside, taps, bias,
            past, owners, WIDTH, SILU, GROUP, False,
        )  # fmt: skip
    if first + whole < stop:
        _forward_group(
            x_row, seq_row, y_row, first + whole, stop, length, x_stride, y_stride, columns, inside, taps,
            bias, past, owners, WIDTH, SILU, GROUP, True,
        )  # fmt: skip
    if final_ptr is not None:
        if stop == length:
            for j in tl.static_range(WIDTH - 1):
                t = stop - (WIDTH - 1) + j
                value = _token(x_row, past_row, t, length, x_stride, columns, inside, WIDTH)
                if seq_row is not None:
                    last = _owner(seq_row, stop - 1, length)
                    value = tl.where(_owner(seq_row, t, length) == last, value, 0.0)
                at = final_ptr + (b * y_stride + columns) * (WIDTH - 1) + j
                tl.store(at, value, mask=inside)


@triton.jit
def _backward_group(
    x_row, dy_row, seq_row, dx_row, dfinal_row, dpast_row, first, begin, stop, length, x_stride, dy_stride,
    dx_stride, columns, inside, taps, bias, past, owners, dpast, dtaps, dbias,
    WIDTH: tl.constexpr, SILU: tl.constexpr, GROUP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Tokens ``first ...`` come into the window, and dx of those ``WIDTH - 1`` before them is known.

    MASKED at both ends of a run ``begin ... stop``: tokens beyond it count in dx only, and what leaves the
    window before it is the past or another run's.
    """
    xs = _rows(x_row, first, length, x_stride, columns, inside, GROUP, MASKED)
    dys = _rows(dy_row, first, length, dy_stride, columns, inside, GROUP, MASKED)
    whose = _owners(seq_row, first, length, GROUP)
    for u in tl.static_range(GROUP):
        window = past + (xs[u].to(tl.float32),)
        if seq_row is not None:
            owners = owners + (whose[u],)
        own = _own(window, owners, WIDTH - 1, seq_row is not None)
        dpre = dys[u].to(tl.float32)
        if SILU:
            pre = _dot(own, taps, bias)
            gate = 1.0 / (1.0 + tl.exp(-pre))
            dpre = dpre * (gate * (1.0 + pre * (1.0 - gate)))
        if MASKED:
            dpre = tl.where(first + u < length, dpre, 0.0)
            mine = tl.where(first + u < stop, dpre, 0.0)
        else:
            mine = dpre
        dbias += mine
        sums = ()
        for j in tl.static_range(WIDTH):
            sums = sums + (dtaps[j] + mine * own[j],)
        dtaps = sums
        dwindow = dpast + (dpre,)
        # the oldest token of the window has met all its taps
        downs = _own(dwindow, owners, 0, seq_row is not None)
        dx = tl.zeros_like(dpre)
        for j in tl.static_range(WIDTH):
            dx += downs[j] * taps[WIDTH - 1 - j]
        t = first + u - (WIDTH - 1)
        if MASKED:
            known = inside & (t < stop)
            if WIDTH > 1:
                kept = t - length + WIDTH - 1  # its place in the final state
                if dfinal_row is not None:
                    last = True
                    if seq_row is not None:
                        last = owners[0] == _owner(seq_row, length - 1, length)
                    at = dfinal_row + columns.to(tl.int64) * (WIDTH - 1) + kept
                    dx += tl.load(at, mask=known & (kept >= 0) & last, other=0.0).to(tl.float32)
                if dpast_row is not None:
                    at = dpast_row + columns.to(tl.int64) * (WIDTH - 1) + t + WIDTH - 1
                    tl.store(at, dx.to(dpast_row.dtype.element_ty), mask=known & (t < 0))
            known = known & (t >= begin)
        else:
            known = inside
        tl.store(dx_row + t * dx_stride + columns, dx.to(dx_row.dtype.element_ty), mask=known)
        past = window[1:]
        dpast = dwindow[1:]
        if seq_row is not None:
            owners = owners[1:]
    return past, owners, dpast, dtaps, dbias


@triton.jit(
    do_not_specialize=[
        "x_batch_stride",
        "x_stride",
        "dy_batch_stride",
        "dy_stride",
        "channels",
        "length",
        "run",
    ]
)
def conv_backward_kernel(
    x_ptr, dy_ptr, weight_ptr, bias_ptr, past_ptr, seq_ptr, dfinal_ptr, dx_ptr, dpast_ptr, partial_ptr,
    x_batch_stride, x_stride, dy_batch_stride, dy_stride, channels, length, run,
    UNIT: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """As the forward kernel; ``partial`` is each run's dweight and dbias, ``(.., WIDTH + 1, channels)``."""
    channels = channels * UNIT
    x_stride = x_stride * UNIT
    dy_stride = dy_stride * UNIT
    n_blocks = tl.cdiv(channels, CHANNELS)
    block, first, stop, b = _place(n_blocks, length, run)
    columns = block.to(tl.int32) * CHANNELS + tl.arange(0, CHANNELS)
    inside = columns < channels
    dx_stride = channels
    x_row = x_ptr + b * x_batch_stride * UNIT
    dy_row = dy_ptr + b * dy_batch_stride * UNIT
    dx_row = dx_ptr + b * length * dx_stride
    past_row = None
    if past_ptr is not None:
        past_row = past_ptr + b * dx_stride * (WIDTH - 1)
    seq_row = None
    if seq_ptr is not None:
        seq_row = seq_ptr + b * length
    dfinal_row = None
    if dfinal_ptr is not None:
        dfinal_row = dfinal_ptr + b * dx_stride * (WIDTH - 1)
    dpast_row = None
    if dpast_ptr is not None:
        dpast_row = dpast_ptr + b * dx_stride * (WIDTH - 1)
    taps, bias = _filter(weight_ptr, bias_ptr, columns, inside, WIDTH)
    past, owners = _history(x_row, past_row, seq_row, first, length, x_stride, columns, inside, WIDTH)
    dbias = tl.zeros((CHANNELS,), tl.float32)
    dpast = ()
    for _j in tl.static_range(WIDTH - 1):
        dpast = dpast + (tl.zeros((CHANNELS,), tl.float32),)
    dtaps = ()
    for _j in tl.static_range(WIDTH):
        dtaps = dtaps + (tl.zeros((CHANNELS,), tl.float32),)
    # the first groups, until the window has left what lies before the run
    opening: tl.constexpr = (WIDTH + GROUP - 2) // GROUP * GROUP
    n = stop - first
    for i in range(0, opening, GROUP):
        past, owners, dpast, dtaps, dbias = _backward_group(
            x_row, dy_row, seq_row, dx_row, dfinal_row, dpast_row, first + i, first, stop, length, x_stride,
            dy_stride, dx_stride, columns, inside, taps, bias, past, owners, dpast, dtaps, dbias,
            WIDTH, SILU, GROUP, True,
        )  # fmt: skip
    middle = opening + tl.maximum((n - opening) // GROUP, 0) * GROUP
    for i in range(opening, middle, GROUP):
        past, owners, dpast, dtaps, dbias = _backward_group(
            x_row, dy_row, seq_row, dx_row, None, None, first + i, first, stop, length, x_stride,
            dy_stride, dx_stride, columns, inside, taps, bias, past, owners, dpast, dtaps, dbias,
            WIDTH, SILU, GROUP, False,
        )  # fmt: skip
    for i in range(middle, n + WIDTH - 1, GROUP):
        past, owners, dpast, dtaps, dbias = _backward_group(
            x_row, dy_row, seq_row, dx_row, dfinal_row, dpast_row, first + i, first, stop, length, x_stride,
            dy_stride, dx_stride, columns, inside, taps, bias, past, owners, dpast, dtaps, dbias,
            WIDTH, SILU, GROUP, True,
        )  # fmt: skip
    # every block of channels of a run has the same row of partial sums
    partial_row = partial_ptr + tl.program_id(0).to(tl.int64) // n_blocks * (WIDTH + 1) * dx_stride + columns
    for j in tl.static_range(WIDTH):
        tl.store(partial_row + j * dx_stride, dtaps[j], mask=inside)
    tl.store(partial_row + WIDTH * dx_stride, dbias, mask=inside)
