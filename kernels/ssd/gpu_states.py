"""Triton kernels of ``ssd`` that take the state from chunk to chunk, in either direction.

A walk leaves the state at each chunk's start in memory for kernels that take the chunks side by side, or
finds what a segment of the sequence adds to it, where there are too few rows and heads to fill the GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakit.kernels.ssd.gpu_common import (
    SIZES,
    STRIDES,
    address,
    decays,
    load_state,
    sequences,
    silu,
    store_state,
    tile,
)
from mambakit.kernels.ssd.gpu_projections import turned


@triton.jit
def initial_state(  # type: ignore[no-untyped-def]
    initial, at_state, ns, ps, HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    if initial is None:
        S = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    else:
        base = initial + at_state * (HEAD_DIM * D_STATE)
        S = load_state(base, ns, ps, True, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N).to(tl.float32)
    return S


@triton.jit(do_not_specialize=STRIDES + SIZES)
def walk_states(  # type: ignore[no-untyped-def]
    x, cum, steps, B, z, B_bias, angles, seq, initial, states, ends, throughs,
    x_b, x_l, x_h, B_b, B_l, B_g, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, segment_chunks, n_segments,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, N_ANGLES: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The states of one head over one segment, without its outputs.

    Forward: ``S' = through S + sum_j out_j scale_j B_j x_j^T``. With ``REVERSE`` it is the gradient that
    walks, from the end: ``x`` is dy (``z`` its gate), ``B`` is C, and
    ``dS' = through dS + sum_i into_i C_i dy_i^T``.
    Each may be None: ``states`` ``(batch, n_chunks, n_heads, d_state, head_dim)``, the state each chunk
    is met with; ``ends`` ``(batch, n_segments, n_heads, head_dim, d_state)``, as ``initial`` is; and
    ``throughs`` ``(batch, n_segments, n_heads)``, the decay over the segment.
    """
    P_BLOCKS: tl.constexpr = (HEAD_DIM + BLOCK_P - 1) // BLOCK_P
    pid = tl.program_id(0)
    p_block = pid % P_BLOCKS
    pid = pid // P_BLOCKS
    h = pid % n_heads
    pid = pid // n_heads
    segment = pid % n_segments
    b = pid // n_segments
    g = h // group_heads
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    ps = p_block * BLOCK_P + tl.arange(0, BLOCK_P)
    at_state = (tl.cast(b, tl.int64) * n_segments + segment) * n_heads + h
    S = initial_state(initial, at_state, ns, ps, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N)
    total = tl.full((), 1.0, tl.float32)
    first = segment * segment_chunks
    stop = tl.minimum(first + segment_chunks, n_chunks)
    for i in tl.range(first, stop, num_stages=STAGES):
        c = i
        if REVERSE:
            c = first + stop - 1 - i
        t0 = c * CHUNK
        mask = t0 + rows < length
        Bt = tile(address(B, b, B_b, t0, B_l, g, B_g, UNIT), B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
        if B_bias is not None or angles is not None:
            token = tl.cast(b, tl.int64) * length + t0
            Bt = turned(
                Bt, B_bias, angles, token, n_heads, h, rows, ns, mask, D_STATE, BLOCK_N, CHUNK, N_ANGLES
            )
        xt = tile(address(x, b, x_b, t0, x_l, h, x_h, UNIT), x_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
        xt = xt.to(tl.float32)
        if z is not None:
            zt = tile(
                address(z, b, z_b, t0, z_l, h, z_h, UNIT), z_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
            )
            xt *= silu(zt.to(tl.float32))
        s, cums, last = decays(cum, steps, b * n_heads + h, n_chunks, c, rows, CHUNK)
        through = tl.exp2(last).to(tl.float32)
        if states is not None:
            at_chunk = (tl.cast(b, tl.int64) * n_chunks + c) * n_heads + h
            store_state(
                states + at_chunk * (HEAD_DIM * D_STATE),
                S,
                ns,
                ps,
                False,
                HEAD_DIM,
                D_STATE,
                BLOCK_P,
                BLOCK_N,
            )
        if REVERSE:
            weighted = tl.exp2(cums).to(tl.float32)[:, None] * xt
        else:
            weighted = (s * tl.exp2(last - cums).to(tl.float32))[:, None] * xt
        kept = S * through
        if seq is not None:
            ids, before, last_id = sequences(seq, b, t0, length, rows, CHUNK)
            if REVERSE:
                weighted = tl.where((ids == before)[:, None], weighted, 0.0)
            else:
                weighted = tl.where((ids == last_id)[:, None], weighted, 0.0)
            kept = tl.where(before == last_id, kept, 0.0)
            through = tl.where(before == last_id, through, 0.0)
        total *= through
        S = tl.dot(tl.trans(Bt.to(DOT)), weighted.to(DOT), kept, input_precision=PRECISION)
    if ends is not None:
        store_state(
            ends + at_state * (HEAD_DIM * D_STATE), S, ns, ps, True, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N
        )
    if throughs is not None:
        tl.store(throughs + at_state, total, mask=p_block == 0)


@triton.jit(do_not_specialize=["n_segments", "row_size"])
def join_segments(  # type: ignore[no-untyped-def]
    ends, throughs, initial, final, n_segments, row_size,
    STATE_SIZE: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds to the state, ``ends``, by the state it starts from.

    ``row_size`` is ``n_heads * STATE_SIZE``; ``initial`` and ``final``, ``(batch, row_size)``, may be None.
    """
    n_blocks = (row_size + BLOCK - 1) // BLOCK
    b = tl.cast(tl.program_id(0) // n_blocks, tl.int64)
    at = (tl.program_id(0) % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < row_size
    head = at // STATE_SIZE
    S = tl.zeros((BLOCK,), tl.float32)
    if initial is not None:
        S = tl.load(initial + b * row_size + at, mask=inside, other=0.0).to(tl.float32)
    for i in range(n_segments):
        segment = i
        if REVERSE:
            segment = n_segments - 1 - i
        row = b * n_segments + segment
        through = tl.load(throughs + row * (row_size // STATE_SIZE) + head, mask=inside, other=0.0)
        added = tl.load(ends + row * row_size + at, mask=inside, other=0.0)
        tl.store(ends + row * row_size + at, S, mask=inside)
        # a decay of zero forgets even what is infinite
        S = tl.where(through == 0.0, 0.0, S * through) + added
    if final is not None:
        tl.store(final + b * row_size + at, S, mask=inside)
