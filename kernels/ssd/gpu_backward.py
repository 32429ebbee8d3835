"""Triton kernels of ``ssd``, backward.

Nothing is stored by the forward pass. ``walk_states`` (``gpu_states``) runs twice: forward for the state
``S`` at each chunk's start, in reverse for the gradient ``dS`` at each chunk's end. Between the two the
chunks are independent. In the notation of ``gpu_common``, with ``L_ij = exp(cum_i - cum_j)`` and
``M_ij = (C_i . B_j) L_ij``,

    u_j    = sum_i M_ij dy_i + out_j dS^T B_j        dx_j = scale_j u_j + D dy_j        dscale_j = x_j . u_j
    dCB_ij = L_ij scale_j (dy_i . x_j)               dC_i = sum_j dCB_ij B_j + into_i S dy_i
                                                     dB_j = sum_i dCB_ij C_i + scale_j out_j dS x_j

where dCB is summed over the heads of a program before it is multiplied by B and C. The log-decay of token t
decays every pair j < t <= i, what enters at i >= t and what leaves from j < t:

    dlog_decay_t = sum_{j<t<=i} dCB_ij (C_i . B_j) + sum_{i>=t} into_i dy_i . (S^T C_i)
                   + sum_{j<t} scale_j out_j x_j . (dS^T B_j) + through <S, dS>

``state_gradients`` computes the terms with a state, ``chunk_gradients`` those of pairs, on top of the first's
results: together they would want twice the registers there are. ``group_gradients`` adds up what blocks of
heads give to B and C. All matrices of pairs are held as ``[j, i]``,
so that no product's result is transposed to enter another one.
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
    opaque,
    sequences,
    silu,
    skip_of,
    skip_weight,
    store_tile,
    tile,
)

_ROWS = ["dy_b", "dy_l", "dy_h", "row_heads", "row_groups", "n_groups", "n_parts", "n_state_parts"]


@triton.jit
def _chunk_of_group(n_heads, group_heads, n_chunks, block_heads):  # type: ignore[no-untyped-def]
    """``(row, chunk, group, part, first head, last head + 1)`` of this program."""
    group_blocks = (group_heads + block_heads - 1) // block_heads
    n_blocks = (n_heads // group_heads) * group_blocks
    pid = tl.program_id(0)
    g = (pid % n_blocks) // group_blocks
    part = (pid % n_blocks) % group_blocks
    pid = pid // n_blocks
    first = g * group_heads + part * block_heads
    last = tl.minimum(first + block_heads, (g + 1) * group_heads)
    return pid // n_chunks, pid % n_chunks, g, part, first, last


@triton.jit
def _gated(dyt, z, z_l, rows, ps, mask, HEAD_DIM: tl.constexpr, BLOCK_P: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of what ``silu(z)`` multiplies."""
    if z is not None:
        dyt = dyt.to(tl.float32) * silu(tile(z, z_l, rows, ps, mask, HEAD_DIM, BLOCK_P).to(tl.float32))
    return dyt


@triton.jit(do_not_specialize=STRIDES + SIZES + _ROWS)
def state_gradients(  # type: ignore[no-untyped-def]
    dy, x, cum, steps, B, C, z, seq, states, dstates,
    dx, dcum, through_sums, dsteps, dB, dC, carried_out,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, block_heads, row_heads,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The terms with a state in the gradients of one chunk, from ``block_heads`` heads of one group.

    ``states`` and ``dstates``, of which one may be None for zeros: ``(batch, n_chunks, n_heads, d_state,
    head_dim)``, with ``TRANSPOSED`` ``head_dim, d_state``. The results are as in ``chunk_gradients``, which
    adds to them; ``carried_out``, where there is a gate, is what the state adds to y, and lies as ``dx``.
    """
    b, c, g, part, first, stop = _chunk_of_group(n_heads, group_heads, n_chunks, block_heads)
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    ps = tl.arange(0, BLOCK_P)
    t0 = c * CHUNK
    mask = t0 + rows < length
    Bt = tile(address(B, b, B_b, t0, B_l, g, B_g, UNIT), B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
    Ct = tile(address(C, b, C_b, t0, C_l, g, C_g, UNIT), C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
    if seq is not None:
        ids, before, last_id = sequences(seq, b, t0, length, rows, CHUNK)
    dBt = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    dCt = tl.zeros((CHUNK, BLOCK_N), tl.float32)
    token = tl.cast(b, tl.int64) * length + t0
    at_row = tl.cast(b, tl.int64) * n_chunks + c
    for i in tl.range(first, stop, num_stages=STAGES):
        h = opaque(i, n_heads)
        row = b * n_heads + h
        s, cums, last = decays(cum, steps, row, n_chunks, c, rows, CHUNK)
        at_step = (tl.cast(row, tl.int64) * n_chunks + c) * CHUNK + rows
        at_chunk = (at_row * n_heads + h) * (HEAD_DIM * D_STATE)
        out_base = (token * row_heads + h) * HEAD_DIM
        dlog_decay = tl.zeros((CHUNK,), tl.float32)
        ds = dlog_decay
        passing = tl.full((), 0.0, tl.float32)
        dxt = tl.zeros((CHUNK, BLOCK_P), tl.float32)
        if states is not None:
            S = load_state(states + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N).to(DOT)
            dyt = tile(
                address(dy, b, dy_b, t0, dy_l, h, dy_h, UNIT), dy_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
            )
            z_ptr = None if z is None else address(z, b, z_b, t0, z_l, h, z_h, UNIT)
            dyt = _gated(dyt, z_ptr, z_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
            into = tl.exp2(cums).to(tl.float32)
            if seq is not None:
                into = tl.where(ids == before, into, 0.0)
            entering = dyt.to(tl.float32) * into[:, None]
            carried = tl.dot(Ct, S, input_precision=PRECISION)
            enters = tl.sum(entering * carried, 1)
            dlog_decay += tl.cumsum(enters, 0, reverse=True) if WIDE else enters
            dCt = tl.dot(entering.to(DOT), tl.trans(S), dCt, input_precision=PRECISION)
            if z is not None:
                carried *= into[:, None]
                store_tile(
                    carried_out + out_base, carried, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P
                )
        if dstates is not None:
            dS = load_state(
                dstates + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N
            ).to(DOT)  # fmt: skip
            xt = tile(
                address(x, b, x_b, t0, x_l, h, x_h, UNIT), x_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
            ).to(tl.float32)  # fmt: skip
            out = tl.exp2(last - cums).to(tl.float32)
            if seq is not None:
                out = tl.where(ids == last_id, out, 0.0)
            u = tl.dot(Bt, dS, input_precision=PRECISION) * out[:, None]
            ds = tl.sum(xt * u, 1)
            dxt = s[:, None] * u
            leaves = s * ds
            if WIDE:
                dlog_decay += tl.cumsum(leaves, 0) - leaves
            else:
                dlog_decay -= leaves
                passing += tl.sum(leaves, 0)
            dBt = tl.dot((xt * (s * out)[:, None]).to(DOT), tl.trans(dS), dBt, input_precision=PRECISION)
            if states is not None:
                through = tl.exp2(last).to(tl.float32)
                if seq is not None:
                    through = tl.where(before == last_id, through, 0.0)
                product = tl.sum(S.to(tl.float32) * dS.to(tl.float32))
                passing += tl.where(through == 0.0, 0.0, through * product)
        store_tile(dx + out_base, dxt, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P)
        if WIDE:
            dlog_decay += passing
        else:
            tl.store(through_sums + tl.cast(row, tl.int64) * n_chunks + c, passing)
        tl.store(dcum + at_step, dlog_decay)
        tl.store(dsteps + at_step, ds)
    n_groups = n_heads // group_heads
    columns = n_groups * D_STATE
    batch = tl.num_programs(0) // (n_chunks * n_groups * ((group_heads + block_heads - 1) // block_heads))
    start = ((tl.cast(part, tl.int64) * batch + b) * length + t0) * columns + g * D_STATE
    store_tile(dB + start, dBt, columns, rows, ns, mask, D_STATE, BLOCK_N)
    store_tile(dC + start, dCt, columns, rows, ns, mask, D_STATE, BLOCK_N)


@triton.jit(do_not_specialize=STRIDES + SIZES + _ROWS)
def chunk_gradients(  # type: ignore[no-untyped-def]
    dy, x, cum, steps, B, C, D, z, seq, dx, dcum, dsteps, dskip, dBC_parts, dz, dD,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, block_heads, row_heads,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, D_COLUMNS: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk from ``block_heads`` heads of one group, but for the terms with a state.

    Those, if ``ADD``, lie in ``dx``, ``dcum``, ``dsteps`` and ``dz`` (there, what they add to y) already. Of
    the ``row_heads`` heads that results have, ``n_heads`` are given.

    ``dx``, ``dz`` ``(batch, length, row_heads, head_dim)``; ``dBC_parts`` as ``group_gradients`` has it.
    ``dcum``, ``dsteps`` and, for a D per head or token, ``dskip`` lie as ``steps``: for ``step_gradients``
    (``dcum`` is summed up already if ``WIDE``). For a D per channel, ``dD`` is ``(batch, n_chunks,
    row_heads, head_dim)``.
    """
    b, c, g, part, first, stop = _chunk_of_group(n_heads, group_heads, n_chunks, block_heads)
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    ps = tl.arange(0, BLOCK_P)
    t0 = c * CHUNK
    mask = t0 + rows < length
    Bt = tile(address(B, b, B_b, t0, B_l, g, B_g, UNIT), B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
    Ct = tile(address(C, b, C_b, t0, C_l, g, C_g, UNIT), C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
    # kept in float32: rounded, it would be most of the error of dt's gradient
    BC = tl.dot(Bt, tl.trans(Ct), input_precision=PRECISION)  # [j, i]
    keep = rows[None, :] >= rows[:, None]
    if seq is not None:
        ids, _before, _last_id = sequences(seq, b, t0, length, rows, CHUNK)
        keep = keep & (ids[:, None] == ids[None, :])
    dBC = tl.zeros((CHUNK, CHUNK), tl.float32)  # [j, i]
    token = tl.cast(b, tl.int64) * length + t0
    at_row = tl.cast(b, tl.int64) * n_chunks + c
    for i in tl.range(first, stop, num_stages=STAGES):
        h = opaque(i, n_heads)
        row = b * n_heads + h
        s, cums, _last = decays(cum, steps, row, n_chunks, c, rows, CHUNK)
        at_step = (tl.cast(row, tl.int64) * n_chunks + c) * CHUNK + rows
        out_base = (token * row_heads + h) * HEAD_DIM
        xt = tile(address(x, b, x_b, t0, x_l, h, x_h, UNIT), x_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
        dyt = tile(
            address(dy, b, dy_b, t0, dy_l, h, dy_h, UNIT), dy_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
        )
        if z is not None:
            zt = tile(
                address(z, b, z_b, t0, z_l, h, z_h, UNIT), z_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
            ).to(tl.float32)
            gate = 1.0 / (1.0 + tl.exp(-zt))
            # the gate's own gradient, all but the factor y, which comes below
            dgate = dyt.to(tl.float32) * gate * (1.0 + zt * (1.0 - gate))
            dyt = (dyt.to(tl.float32) * (zt * gate)).to(DOT)
        xd = xt.to(DOT)
        dyd = dyt.to(DOT)
        decay = tl.where(keep, tl.exp2(-differences(cums, cums, WIDE)), 0.0)  # [j, i]
        M = decay * BC
        pairs = tl.dot(xd, tl.trans(dyd), input_precision=PRECISION)
        dBC += pairs * s[:, None] * decay
        pairs *= M
        ds = tl.sum(pairs, 1)
        pairs *= s[:, None]
        if WIDE:
            # sum_{j < t <= i} for every t, without the pairs that the difference of two sums would cancel
            earlier = (rows[None, :] < rows[:, None]).to(tl.float32)  # [t, j]
            pairs = tl.dot(earlier, pairs, input_precision=PRECISION)  # [t, i]
            dlog_decay = tl.sum(tl.where(rows[None, :] >= rows[:, None], pairs, 0.0), 1)
        else:
            dlog_decay = tl.sum(pairs, 0) - s * ds
        dyf = dyt.to(tl.float32)
        xf = xt.to(tl.float32)
        M = M.to(DOT)
        dxt = s[:, None] * tl.dot(M, dyd, input_precision=PRECISION)
        if ADD:
            dlog_decay += tl.load(dcum + at_step)
            ds += tl.load(dsteps + at_step)
            dxt += tile(dx + out_base, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P).to(tl.float32)
        tl.store(dcum + at_step, dlog_decay)
        tl.store(dsteps + at_step, ds)
        if z is not None:
            y = tl.trans(tl.dot(tl.trans((xf * s[:, None]).to(DOT)), M, input_precision=PRECISION))
            if ADD:
                y += tile(dz + out_base, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P).to(
                    tl.float32
                )
        if D is not None:
            skipped = dyf * xf
            D_ptr = skip_of(D, row, h, n_chunks, c, D_COLUMNS, CHUNK)
            weight = skip_weight(D_ptr, rows, ps, D_COLUMNS, HEAD_DIM, CHUNK, BLOCK_P)
            if D_COLUMNS <= 1:
                tl.store(dskip + at_step, tl.sum(skipped, 1))
            else:
                tl.store(
                    dD + (at_row * row_heads + h) * HEAD_DIM + ps, tl.sum(skipped, 0), mask=ps < HEAD_DIM
                )
            dxt += weight * dyf
            if z is not None:
                y += weight * xf
        store_tile(dx + out_base, dxt, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P)
        if z is not None:
            store_tile(dz + out_base, dgate * y, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P)
    n_groups = n_heads // group_heads
    batch = tl.num_programs(0) // (n_chunks * n_groups * ((group_heads + block_heads - 1) // block_heads))
    at_part = ((tl.cast(part, tl.int64) * batch + b) * n_chunks + c) * n_groups + g
    where = at_part * (CHUNK * CHUNK) + rows[:, None] * CHUNK + rows[None, :]
    tl.store(dBC_parts + where, dBC)


@triton.jit(do_not_specialize=STRIDES + SIZES + _ROWS)
def group_gradients(  # type: ignore[no-untyped-def]
    B, C, dBC_parts, parts_B, parts_C, dB, dC, B_b, B_l, B_g, C_b, C_l, C_g,
    length, n_groups, n_chunks, n_parts, n_state_parts, row_groups,
    D_STATE: tl.constexpr, BLOCK_N: tl.constexpr, CHUNK: tl.constexpr, ADD: tl.constexpr,
    UNIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dB or dC of one chunk and group, from the parts that blocks of heads left.

    ``dBC_parts`` is ``(n_parts, batch, n_chunks, n_groups, CHUNK, CHUNK)``, ``parts_B`` and ``parts_C``
    ``(n_state_parts, batch, length, n_groups, d_state)``; ``dB`` and ``dC``, ``(batch, length, row_groups,
    d_state)``, are added to if ``ADD``.
    """
    N_BLOCKS: tl.constexpr = (D_STATE + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    of_C = pid % 2 == 0
    pid = pid // 2
    ns = (pid % N_BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N)
    pid = pid // N_BLOCKS
    g = pid % n_groups
    pid = pid // n_groups
    c = pid % n_chunks
    b = pid // n_chunks
    batch = tl.num_programs(0) // (2 * N_BLOCKS * n_groups * n_chunks)
    rows = tl.arange(0, CHUNK)
    t0 = c * CHUNK
    mask = t0 + rows < length
    token = tl.cast(b, tl.int64) * length + t0
    at = (token * n_groups + g) * D_STATE
    part_size = tl.cast(batch, tl.int64) * length * n_groups * D_STATE
    pairs = dBC_parts + ((tl.cast(b, tl.int64) * n_chunks + c) * n_groups + g) * (CHUNK * CHUNK)
    if of_C:
        pairs_at = rows[None, :] * CHUNK + rows[:, None]
        right = address(B, b, B_b, t0, B_l, g, B_g, UNIT)
        right_l = B_l * UNIT
        parts = parts_C
        base = dC + (token * row_groups + g) * D_STATE
    else:
        pairs_at = rows[:, None] * CHUNK + rows[None, :]
        right = address(C, b, C_b, t0, C_l, g, C_g, UNIT)
        right_l = C_l * UNIT
        parts = parts_B
        base = dB + (token * row_groups + g) * D_STATE
    weights = tl.zeros((CHUNK, CHUNK), tl.float32)
    for _ in tl.range(n_parts, loop_unroll_factor=4):
        weights += tl.load(pairs + pairs_at)
        pairs += tl.cast(batch, tl.int64) * n_chunks * n_groups * (CHUNK * CHUNK)
    rt = tile(right, right_l, rows, ns, mask, D_STATE, BLOCK_N)
    total = tl.dot(weights.to(DOT), rt.to(DOT), input_precision=PRECISION)
    for i in tl.range(n_state_parts, loop_unroll_factor=4):
        total += tile(parts + i * part_size + at, n_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
    if ADD:
        total += tile(base, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
    store_tile(base, total, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
