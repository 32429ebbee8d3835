"""Triton kernels of ``ssd``, forward.

With ``cum`` the running sum of the log-decay inside a chunk that starts from the state ``S`` (Dao & Gu 2024,
arXiv:2405.21060, section 6),

    y_i  = sum_{j<=i} (C_i . B_j) exp(cum_i - cum_j) scale_j x_j + exp(cum_i) C_i S + D x_i,  times silu(z_i)
    S'   = exp(cum_last) S + sum_j exp(cum_last - cum_j) scale_j B_j x_j^T

There are two schedules, of the same parts. ``walk_outputs``: a program walks the chunks of one head with its
state in registers, so that only inputs are read and only y is written. ``walk_states``, then
``chunk_outputs``: the walk leaves the state at each chunk's start in memory, and the outputs of all chunks
are taken side by side, C B^T once for many heads. A sequence of one chunk needs ``chunk_outputs`` alone.
``cum`` and ``scale`` come from ``gpu_decays``. Where there are too few rows and heads to fill the GPU, walks
are cut into segments: ``walk_states`` first finds what every segment adds to the state, ``join_segments`` the
state each one starts from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakit.kernels.ssd.gpu_common import (
    SIZES,
    STRIDES,
    address,
    decays,
    differences,
    load_state,
    numbers_of,
    opaque,
    own_or,
    sequences,
    silu,
    skip_of,
    skip_weight,
    store_state,
    store_tile,
    tile,
)
from mambakit.kernels.ssd.gpu_projections import turned
from mambakit.kernels.ssd.gpu_states import initial_state


@triton.jit
def _head_outputs(  # type: ignore[no-untyped-def]
    S, CB, keep, Bt, Ct, s, own, cum, last, x, x_l, D, z, z_l, y, y_l,
    rows, mask, continues, in_last, goes_through, ps,
    HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr, CHUNK: tl.constexpr, D_COLUMNS: tl.constexpr,
    HAS_STATE: tl.constexpr, UPDATE: tl.constexpr, WIDE: tl.constexpr, GUARD: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The state after a chunk, if ``UPDATE`` (else ``S``), and the outputs, which are stored.

    Pointers, ``own`` too, are at the chunk's first token. ``continues`` (tokens of the sequence before the
    chunk), ``in_last`` (of the chunk's last sequence) and ``goes_through`` are None if nothing is packed.

    In a product a broken token reaches all tokens of the chunk, earlier ones too, as zero times infinity:
    with ``GUARD`` it does not.
    """
    xt = tile(x, x_l, rows, ps, mask, HEAD_DIM, BLOCK_P)
    # what lies above the diagonal may be infinite: it is dropped, not multiplied by zero
    weight = own_or(own, s, rows, False)
    M = tl.where(keep, CB * tl.exp2(differences(cum, cum, WIDE)) * weight, 0.0).to(DOT)
    if GUARD:
        sound = tl.abs(xt.to(tl.float32)) < float("inf")
        out = tl.dot(M, tl.where(sound, xt, 0.0).to(DOT), input_precision=PRECISION)
        reached = tl.dot(keep.to(DOT), tl.where(sound, 0.0, 1.0).to(DOT), input_precision=PRECISION)
        out = tl.where(reached > 0.0, float("nan"), out)
    else:
        out = tl.dot(M, xt.to(DOT), input_precision=PRECISION)
    if HAS_STATE:
        into = tl.exp2(cum).to(tl.float32)
        carried = tl.dot(Ct, S.to(DOT), input_precision=PRECISION) * into[:, None]
        if continues is not None:
            carried = tl.where(continues[:, None], carried, 0.0)
        out += carried
    xf = xt.to(tl.float32)
    if D is not None:
        out += skip_weight(D, rows, ps, D_COLUMNS, HEAD_DIM, CHUNK, BLOCK_P) * xf
    if z is not None:
        out *= silu(tile(z, z_l, rows, ps, mask, HEAD_DIM, BLOCK_P).to(tl.float32))
    store_tile(y, out, y_l, rows, ps, mask, HEAD_DIM, BLOCK_P)
    if UPDATE:
        weighted = (s * tl.exp2(last - cum).to(tl.float32))[:, None] * xf
        through = tl.exp2(last).to(tl.float32)
        if in_last is not None:
            weighted = tl.where(in_last[:, None], weighted, 0.0)
        if HAS_STATE:
            kept = S * through
            if goes_through is not None:
                kept = tl.where(goes_through, kept, 0.0)
            S = tl.dot(tl.trans(Bt), weighted.to(DOT), kept, input_precision=PRECISION)
        else:
            S = tl.dot(tl.trans(Bt), weighted.to(DOT), input_precision=PRECISION)
    return S, out


@triton.jit(do_not_specialize=STRIDES + SIZES)
def walk_outputs(  # type: ignore[no-untyped-def]
    x, cum, steps, own, B, C, D, z, seq, initial, y, final, broken,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, segment_chunks, n_segments,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, D_COLUMNS: tl.constexpr, WIDE: tl.constexpr,
    GUARD: tl.constexpr, UNIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Outputs of one head over one segment.

    ``initial`` is ``(batch, n_segments, n_heads, head_dim, d_state)``, and so is ``final``,
    which is written only if there is one segment. ``broken``, an int32 a program, says whose walk has to be
    taken again with ``GUARD``: a guard in the first one's loop would take its registers.
    """
    P_BLOCKS: tl.constexpr = (HEAD_DIM + BLOCK_P - 1) // BLOCK_P
    pid = tl.program_id(0)
    if GUARD:  # noqa: SIM102  a constant of the compiler's, and a branch of the program's
        if tl.load(broken + pid) == 0:
            return
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
    checks = tl.zeros((CHUNK,), tl.float32)
    first = segment * segment_chunks
    for i in tl.range(first, tl.minimum(first + segment_chunks, n_chunks), num_stages=STAGES):
        c = opaque(i, n_chunks)
        t0 = c * CHUNK
        mask = t0 + rows < length
        Bt = tile(address(B, b, B_b, t0, B_l, g, B_g, UNIT), B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
        Ct = tile(address(C, b, C_b, t0, C_l, g, C_g, UNIT), C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
        token = tl.cast(b, tl.int64) * length + t0
        Bt = Bt.to(DOT)
        Ct = Ct.to(DOT)
        CB = tl.dot(Ct, tl.trans(Bt), input_precision=PRECISION)
        keep = rows[:, None] >= rows[None, :]
        continues = None
        in_last = None
        goes_through = None
        if seq is not None:
            ids, before, last_id = sequences(seq, b, t0, length, rows, CHUNK)
            keep = keep & (ids[:, None] == ids[None, :])
            continues = ids == before
            in_last = ids == last_id
            goes_through = before == last_id
        s, cums, last = decays(cum, steps, b * n_heads + h, n_chunks, c, rows, CHUNK)
        S, out = _head_outputs(
            S, CB, keep, Bt, Ct, s, numbers_of(own, b * n_heads + h, n_chunks, c, CHUNK), cums, last,
            address(x, b, x_b, t0, x_l, h, x_h, UNIT), x_l * UNIT,
            skip_of(D, b * n_heads + h, h, n_chunks, c, D_COLUMNS, CHUNK),
            None if z is None else address(z, b, z_b, t0, z_l, h, z_h, UNIT), z_l * UNIT,
            y + (token * n_heads + h) * HEAD_DIM, n_heads * HEAD_DIM,
            rows, mask, continues, in_last, goes_through, ps,
            HEAD_DIM, BLOCK_P, CHUNK, D_COLUMNS, True, True, WIDE, GUARD, DOT, PRECISION,
        )  # fmt: skip
        if seq is not None and not GUARD:
            checks += tl.sum(out, 1)
    if not GUARD:
        # what is broken stays in the state, unless another sequence comes
        total = tl.sum(checks, 0) + 0.0 * tl.sum(S)
        tl.store(broken + tl.program_id(0), (total != total).to(tl.int32))
    if final is not None:
        base = final + at_state * (HEAD_DIM * D_STATE)
        store_state(base, S, ns, ps, True, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N)


@triton.jit(do_not_specialize=STRIDES + SIZES)
def chunk_outputs(  # type: ignore[no-untyped-def]
    x, cum, steps, own, B, C, D, z, B_bias, C_bias, angles, seq, states, y, final,
    x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, block_heads,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, D_COLUMNS: tl.constexpr, N_ANGLES: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Outputs of one chunk for ``block_heads`` heads of one group.

    ``states`` ``(batch, n_chunks, n_heads, d_state, head_dim)``, or None for zeros; with ``TRANSPOSED`` its
    last axes are ``head_dim, d_state``. ``final``, only for a sequence of one chunk, is that way always.
    """
    P_BLOCKS: tl.constexpr = (HEAD_DIM + BLOCK_P - 1) // BLOCK_P
    pid = tl.program_id(0)
    p_block = pid % P_BLOCKS
    pid = pid // P_BLOCKS
    group_blocks = (group_heads + block_heads - 1) // block_heads
    n_blocks = (n_heads // group_heads) * group_blocks
    g = (pid % n_blocks) // group_blocks
    block = (pid % n_blocks) % group_blocks
    pid = pid // n_blocks
    c = pid % n_chunks
    b = pid // n_chunks
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    ps = p_block * BLOCK_P + tl.arange(0, BLOCK_P)
    t0 = c * CHUNK
    mask = t0 + rows < length
    group_B = tile(address(B, b, B_b, t0, B_l, g, B_g, UNIT), B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
    group_C = tile(address(C, b, C_b, t0, C_l, g, C_g, UNIT), C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
    Bt = group_B.to(DOT)
    Ct = group_C.to(DOT)
    CB = tl.dot(Ct, tl.trans(Bt), input_precision=PRECISION)
    token = tl.cast(b, tl.int64) * length + t0
    keep = rows[:, None] >= rows[None, :]
    continues = None
    in_last = None
    goes_through = None
    if seq is not None:
        ids, before, last_id = sequences(seq, b, t0, length, rows, CHUNK)
        keep = keep & (ids[:, None] == ids[None, :])
        continues = ids == before
        in_last = ids == last_id
        goes_through = before == last_id
    first = g * group_heads + block * block_heads
    for h in tl.range(first, tl.minimum(first + block_heads, (g + 1) * group_heads), num_stages=STAGES):
        at_chunk = (tl.cast(b, tl.int64) * n_chunks + c) * n_heads + h
        S = CB  # stands in where there is no state: a function cannot return None
        if states is not None:
            S = load_state(
                states + at_chunk * (HEAD_DIM * D_STATE),
                ns,
                ps,
                TRANSPOSED,
                HEAD_DIM,
                D_STATE,
                BLOCK_P,
                BLOCK_N,
            )
            if final is not None:
                S = S.to(tl.float32)
        if B_bias is not None or C_bias is not None or angles is not None:
            Bt = turned(
                group_B, B_bias, angles, token, n_heads, h, rows, ns, mask, D_STATE, BLOCK_N, CHUNK, N_ANGLES
            ).to(DOT)
            Ct = turned(
                group_C, C_bias, angles, token, n_heads, h, rows, ns, mask, D_STATE, BLOCK_N, CHUNK, N_ANGLES
            ).to(DOT)
            CB = tl.dot(Ct, tl.trans(Bt), input_precision=PRECISION)
        s, cums, last = decays(cum, steps, b * n_heads + h, n_chunks, c, rows, CHUNK)
        x_ptr = address(x, b, x_b, t0, x_l, h, x_h, UNIT)
        D_ptr = skip_of(D, b * n_heads + h, h, n_chunks, c, D_COLUMNS, CHUNK)
        own_ptr = numbers_of(own, b * n_heads + h, n_chunks, c, CHUNK)
        z_ptr = None if z is None else address(z, b, z_b, t0, z_l, h, z_h, UNIT)
        y_ptr = y + (token * n_heads + h) * HEAD_DIM
        after, out = _head_outputs(
            S, CB, keep, Bt, Ct, s, own_ptr, cums, last, x_ptr, x_l * UNIT, D_ptr, z_ptr, z_l * UNIT,
            y_ptr, n_heads * HEAD_DIM, rows, mask, continues, in_last, goes_through, ps,
            HEAD_DIM, BLOCK_P, CHUNK, D_COLUMNS, states is not None, final is not None, WIDE, False,
            DOT, PRECISION,
        )  # fmt: skip
        total = tl.sum(out)
        if total != total:
            after, out = _head_outputs(
                S, CB, keep, Bt, Ct, s, own_ptr, cums, last, x_ptr, x_l * UNIT, D_ptr, z_ptr, z_l * UNIT,
                y_ptr, n_heads * HEAD_DIM, rows, mask, continues, in_last, goes_through, ps,
                HEAD_DIM, BLOCK_P, CHUNK, D_COLUMNS, states is not None, final is not None, WIDE, True,
                DOT, PRECISION,
            )  # fmt: skip
        if final is not None:
            base = final + (tl.cast(b, tl.int64) * n_heads + h) * (HEAD_DIM * D_STATE)
            store_state(base, after, ns, ps, True, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N)
