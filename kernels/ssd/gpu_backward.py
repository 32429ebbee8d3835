"""Triton kernels of ``ssd``, backward.

Nothing is stored by the forward pass. ``walk_states`` (``gpu_forward``) runs twice: forward for the state
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

``chunk_gradients`` computes all of it but the terms of dB and dC with a state, ``group_gradients`` those:
sums over heads and channels whose results alone would fill the registers of the first. All matrices of
pairs are held as ``[j, i]``, so that no product's result is transposed to enter another one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakit.kernels.ssd.gpu_common import (
    address,
    decays,
    differences,
    load_state,
    sequences,
    silu,
    store_tile,
    tile,
)
from mambakit.kernels.ssd.gpu_forward import _SIZES, _STRIDES

_ROWS = ["dy_b", "dy_l", "dy_h", "row_heads", "row_groups", "row_batch", "n_parts"]


@triton.jit(do_not_specialize=_STRIDES + _SIZES + _ROWS)
def chunk_gradients(  # type: ignore[no-untyped-def]
    dy, x, cum, steps, B, C, D, z, seq, states, dstates,
    dx, dcum, through_sums, dsteps, dskip, dB, dC, dz, dD,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, block_heads, row_heads, row_groups, row_batch,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, D_COLUMNS: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk from ``block_heads`` heads of one group.

    Of the ``row_heads`` heads that results have, ``n_heads`` are given.

    ``states`` and ``dstates`` (None for zeros): ``(batch, n_chunks, n_heads, d_state, head_dim)``, with
    ``TRANSPOSED`` ``head_dim, d_state``. ``dx``, ``dz`` ``(batch, length, row_heads, head_dim)``; ``dB``,
    ``dC`` ``(blocks, row_batch, length, row_groups, d_state)``. ``dcum``, ``dsteps`` and, for a D per head,
    ``dskip`` lie as ``steps``, ``through_sums`` is ``(batch, n_heads, n_chunks)``: for ``step_gradients``
    (``dcum`` is summed up already if ``WIDE``). For a D per channel,
    ``dD`` is ``(batch, n_chunks, row_heads, head_dim)``.
    """
    group_blocks = (group_heads + block_heads - 1) // block_heads
    n_blocks = (n_heads // group_heads) * group_blocks
    pid = tl.program_id(0)
    g = (pid % n_blocks) // group_blocks
    block = (pid % n_blocks) % group_blocks
    pid = pid // n_blocks
    c = pid % n_chunks
    b = pid // n_chunks
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    ps = tl.arange(0, BLOCK_P)
    t0 = c * CHUNK
    mask = t0 + rows < length
    Bt = tile(address(B, b, B_b, t0, B_l, g, B_g, UNIT), B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
    Ct = tile(address(C, b, C_b, t0, C_l, g, C_g, UNIT), C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
    # kept in the operands' type, which is what its products with the decay are rounded to anyway
    BC = tl.dot(Bt, tl.trans(Ct), input_precision=PRECISION).to(DOT)  # [j, i]
    keep = rows[None, :] >= rows[:, None]
    if seq is not None:
        ids, before, last_id = sequences(seq, b, t0, length, rows, CHUNK)
        keep = keep & (ids[:, None] == ids[None, :])
    dBC = tl.zeros((CHUNK, CHUNK), tl.float32)  # [j, i]
    token = tl.cast(b, tl.int64) * length + t0
    at_row = tl.cast(b, tl.int64) * n_chunks + c
    first = g * group_heads + block * block_heads
    for h in tl.range(first, tl.minimum(first + block_heads, (g + 1) * group_heads), num_stages=STAGES):
        row = b * n_heads + h
        s, cums, last = decays(cum, steps, row, n_chunks, c, rows, CHUNK)
        # what needs the states comes first, and they leave the registers
        at_chunk = (at_row * n_heads + h) * (HEAD_DIM * D_STATE)
        passing = tl.full((), 0.0, tl.float32)
        if states is not None:
            S = load_state(states + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N)
        if dstates is not None:
            dS = load_state(dstates + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N)
            if states is not None:
                through = tl.exp2(last).to(tl.float32)
                if seq is not None:
                    through = tl.where(before == last_id, through, 0.0)
                product = tl.sum(S.to(tl.float32) * dS.to(tl.float32))
                passing = tl.where(through == 0.0, 0.0, through * product)
        xt = tile(address(x, b, x_b, t0, x_l, h, x_h, UNIT), x_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
        dyt = tile(
            address(dy, b, dy_b, t0, dy_l, h, dy_h, UNIT), dy_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
        )
        out_base = (token * row_heads + h) * HEAD_DIM
        at_step = (tl.cast(row, tl.int64) * n_chunks + c) * CHUNK + rows
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
        scaled = tl.dot(xd, tl.trans(dyd), input_precision=PRECISION) * s[:, None] * decay
        dBC += scaled
        pairs = scaled * BC.to(tl.float32)
        if WIDE:
            # sum_{j < t <= i} for every t, without the pairs that the difference of two sums would cancel
            earlier = (rows[None, :] < rows[:, None]).to(tl.float32)  # [t, j]
            pairs = tl.dot(earlier, pairs, input_precision=PRECISION)  # [t, i]
            spans = tl.sum(tl.where(rows[None, :] >= rows[:, None], pairs, 0.0), 1)
        else:
            pairs = tl.where(rows[None, :] > rows[:, None], pairs, 0.0)
            spans = tl.sum(pairs, 0) - tl.sum(pairs, 1)
        M = (decay * BC.to(tl.float32)).to(DOT)
        dyf = dyt.to(tl.float32)
        if states is not None:
            into = tl.exp2(cums).to(tl.float32)
            if seq is not None:
                into = tl.where(ids == before, into, 0.0)
            carried = tl.dot(Ct, S.to(DOT), input_precision=PRECISION) * into[:, None]
            enters = tl.sum(dyf * carried, 1)
            spans += tl.cumsum(enters, 0, reverse=True) if WIDE else enters
        xf = xt.to(tl.float32)
        if z is not None:
            y = tl.trans(tl.dot(tl.trans((xf * s[:, None]).to(DOT)), M, input_precision=PRECISION))
            if states is not None:
                y += carried
        if dstates is not None:
            out = tl.exp2(last - cums).to(tl.float32)
            if seq is not None:
                out = tl.where(ids == last_id, out, 0.0)
            u = tl.dot(Bt, dS.to(DOT), input_precision=PRECISION) * out[:, None]
            leaves = s * tl.sum(xf * u, 1)
            if WIDE:
                spans += tl.cumsum(leaves, 0) - leaves
            else:
                spans -= leaves
                passing += tl.sum(leaves, 0)
            u = tl.dot(M, dyd, u, input_precision=PRECISION)
        else:
            u = tl.dot(M, dyd, input_precision=PRECISION)
        ds = tl.sum(xf * u, 1)
        dxt = s[:, None] * u
        if D is not None:
            skipped = dyf * xf
            if D_COLUMNS == 1:
                weight = tl.load(D + h).to(tl.float32)
                tl.store(dskip + at_step, tl.sum(skipped, 1))
            else:
                weight = tl.load(D + h * HEAD_DIM + ps, mask=ps < HEAD_DIM, other=0.0).to(tl.float32)[None, :]
                tl.store(
                    dD + (at_row * row_heads + h) * HEAD_DIM + ps, tl.sum(skipped, 0), mask=ps < HEAD_DIM
                )
            dxt += weight * dyf
            if z is not None:
                y += weight * xf
        store_tile(dx + out_base, dxt, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P)
        if z is not None:
            store_tile(dz + out_base, dgate * y, row_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P)
        if WIDE:
            spans += passing
        else:
            tl.store(through_sums + tl.cast(row, tl.int64) * n_chunks + c, passing)
        tl.store(dcum + at_step, spans)
        tl.store(dsteps + at_step, ds)
    columns = row_groups * D_STATE
    start = ((tl.cast(block, tl.int64) * row_batch + b) * length + t0) * columns + g * D_STATE
    dBC = dBC.to(DOT)
    dBt = tl.dot(dBC, Ct, input_precision=PRECISION)
    store_tile(dB + start, dBt, columns, rows, ns, mask, D_STATE, BLOCK_N)
    # [n, i]: transposed at the store only
    dCt = tl.dot(tl.trans(Bt), dBC, input_precision=PRECISION)
    where = dC + start + rows[None, :] * columns + ns[:, None]
    tl.store(where, dCt.to(dC.dtype.element_ty), mask=mask[None, :] & (ns < D_STATE)[:, None])


@triton.jit
def _over_heads(  # type: ignore[no-untyped-def]
    total, left, left_b, left_l, left_h, z, z_b, z_l, z_h, right, cum, steps,
    chosen, b, c, n_chunks, n_heads, first, stop, rows, ns, mask,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, INTO: tl.constexpr, UNIT: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``total + sum over heads and p of weight_t left[t, p] right[n, p]``, weighted by into or scale out."""
    t0 = c * CHUNK
    ps = tl.arange(0, BLOCK_P)
    for h in tl.range(first, stop, num_stages=STAGES):
        s, cums, last = decays(cum, steps, b * n_heads + h, n_chunks, c, rows, CHUNK)
        if INTO:
            weight = tl.exp2(cums).to(tl.float32)
        else:
            weight = s * tl.exp2(last - cums).to(tl.float32)
        if chosen is not None:
            weight = tl.where(chosen, weight, 0.0)
        lt = tile(
            address(left, b, left_b, t0, left_l, h, left_h, UNIT),
            left_l * UNIT,
            rows,
            ps,
            mask,
            HEAD_DIM,
            BLOCK_P,
        ).to(tl.float32)
        if z is not None:
            zt = tile(
                address(z, b, z_b, t0, z_l, h, z_h, UNIT), z_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
            )
            lt *= silu(zt.to(tl.float32))
        at_chunk = ((tl.cast(b, tl.int64) * n_chunks + c) * n_heads + h) * (HEAD_DIM * D_STATE)
        rt = load_state(right + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N).to(DOT)
        total = tl.dot((lt * weight[:, None]).to(DOT), tl.trans(rt), total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=_STRIDES + _SIZES + _ROWS)
def group_gradients(  # type: ignore[no-untyped-def]
    dy, x, cum, steps, z, seq, states, dstates, parts_B, parts_C, dB, dC,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, n_parts, row_groups,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, ADD: tl.constexpr, UNIT: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dB or dC of one chunk and group: what ``chunk_gradients`` left, and the terms with a state.

    ``parts_B``, ``parts_C`` ``(n_parts, batch, length, n_groups, d_state)``; ``dB``, ``dC`` ``(batch, length,
    row_groups, d_state)``, added to if ``ADD``.
    """
    N_BLOCKS: tl.constexpr = (D_STATE + BLOCK_N - 1) // BLOCK_N
    n_groups = n_heads // group_heads
    pid = tl.program_id(0)
    of_C = pid % 2 == 0
    pid = pid // 2
    ns = (pid % N_BLOCKS) * BLOCK_N + tl.arange(0, BLOCK_N)
    pid = pid // N_BLOCKS
    g = pid % n_groups
    pid = pid // n_groups
    c = pid % n_chunks
    b = pid // n_chunks
    rows = tl.arange(0, CHUNK)
    t0 = c * CHUNK
    mask = t0 + rows < length
    continues = None
    in_last = None
    if seq is not None:
        ids, before, last_id = sequences(seq, b, t0, length, rows, CHUNK)
        continues = ids == before
        in_last = ids == last_id
    token = tl.cast(b, tl.int64) * length + t0
    first = g * group_heads
    stop = first + group_heads
    part_size = (
        tl.cast(tl.num_programs(0) // (2 * N_BLOCKS * n_groups * n_chunks), tl.int64)
        * length
        * n_groups
        * D_STATE
    )
    at = (token * n_groups + g) * D_STATE
    if of_C:
        total = tl.zeros((CHUNK, BLOCK_N), tl.float32)
        if states is not None:
            total = _over_heads(
                total, dy, dy_b, dy_l, dy_h, z, z_b, z_l, z_h, states, cum, steps,
                continues, b, c, n_chunks, n_heads, first, stop, rows, ns, mask,
                HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N, CHUNK, TRANSPOSED, True, UNIT, DOT, PRECISION, STAGES,
            )  # fmt: skip
        for i in range(n_parts):
            total += tile(parts_C + i * part_size + at, n_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
        base = dC + (token * row_groups + g) * D_STATE
        if ADD:
            total += tile(base, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
        store_tile(base, total, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
    else:
        total = tl.zeros((CHUNK, BLOCK_N), tl.float32)
        if dstates is not None:
            total = _over_heads(
                total, x, x_b, x_l, x_h, None, 0, 0, 0, dstates, cum, steps,
                in_last, b, c, n_chunks, n_heads, first, stop, rows, ns, mask,
                HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N, CHUNK, TRANSPOSED, False, UNIT, DOT, PRECISION, STAGES,
            )  # fmt: skip
        for i in range(n_parts):
            total += tile(parts_B + i * part_size + at, n_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
        base = dB + (token * row_groups + g) * D_STATE
        if ADD:
            total += tile(base, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
        store_tile(base, total, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
