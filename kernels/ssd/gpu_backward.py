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
    differences,
    load_state,
    sequences,
    silu,
    softplus,
    step_size,
    store_tile,
    tile,
)
from mambakit.kernels.ssd.gpu_forward import _SIZES, _STRIDES

_ROWS = ["dy_b", "dy_l", "dy_h", "row_heads", "row_groups", "row_batch", "n_parts"]


@triton.jit
def _spans(W, rows, EXACT: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """``sum_{j < t <= i} W[j, i]`` for every t."""
    if EXACT:
        before = (rows[None, :] < rows[:, None]).to(tl.float32)  # [t, j]
        passing = tl.dot(before, W, input_precision=PRECISION)  # [t, i]
        result = tl.sum(tl.where(rows[None, :] >= rows[:, None], passing, 0.0), 1)
    else:
        # pairs inside cancel: good enough for inputs in half precision
        W = tl.where(rows[None, :] > rows[:, None], W, 0.0)
        result = tl.cumsum(tl.sum(W, 0) - tl.sum(W, 1), 0, reverse=True)
    return result


@triton.jit(do_not_specialize=_STRIDES + _SIZES + _ROWS)
def chunk_gradients(  # type: ignore[no-untyped-def]
    dy, x, dt, scale, A, bias, B, C, D, z, seq, states, dstates,
    dx, ddt, dscale, dB, dC, dz, sums, dD,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, dt_b, dt_l, dt_h, scale_b, scale_l, scale_h,
    B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, block_heads, row_heads, row_groups, row_batch, low, high,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, D_COLUMNS: tl.constexpr, SOFTPLUS: tl.constexpr,
    LIMIT: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk from ``block_heads`` heads of one group.

    Of the ``row_heads`` heads that results have, ``n_heads`` are given.

    ``states`` and ``dstates`` (None for zeros): ``(batch, n_chunks, n_heads, d_state, head_dim)``, with
    ``TRANSPOSED`` ``head_dim, d_state``. ``dx``, ``dz`` ``(batch, length, row_heads, head_dim)``; ``ddt``,
    ``dscale`` ``(batch, length, row_heads)``; ``dB``, ``dC``
    ``(blocks, row_batch, length, row_groups, d_state)``. What becomes the gradients of A, dt_bias and a D per
    head by summing over chunks: ``sums`` ``(batch, n_chunks, 3, row_heads)``; of a D per channel: ``dD``
    ``(batch, n_chunks, row_heads, head_dim)``.
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
        scale_ptr = None
        A_ptr = None
        if A is None:
            scale_ptr = address(scale, b, scale_b, t0, scale_l, h, scale_h, 1)
        else:
            A_ptr = A + h
        raw, s, cum, last = step_size(
            address(dt, b, dt_b, t0, dt_l, h, dt_h, 1), dt_l, scale_ptr, scale_l, A_ptr,
            None if bias is None else bias + h, rows, mask, low, high, SOFTPLUS, LIMIT, WIDE,
        )  # fmt: skip
        # what needs the states comes first, and they leave the registers
        at_chunk = (at_row * n_heads + h) * (HEAD_DIM * D_STATE)
        dlog_decay = tl.zeros((CHUNK,), tl.float32)
        if states is not None:
            S = load_state(states + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N)
        if dstates is not None:
            dS = load_state(dstates + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N)
            if states is not None:
                through = tl.exp2(last).to(tl.float32)
                if seq is not None:
                    through = tl.where(before == last_id, through, 0.0)
                product = tl.sum(S.to(tl.float32) * dS.to(tl.float32))
                dlog_decay += tl.where(through == 0.0, 0.0, through * product)
        xt = tile(address(x, b, x_b, t0, x_l, h, x_h, UNIT), x_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
        dyt = tile(
            address(dy, b, dy_b, t0, dy_l, h, dy_h, UNIT), dy_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P
        )
        out_base = (token * row_heads + h) * HEAD_DIM
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
        decay = tl.where(keep, tl.exp2(-differences(cum, cum, WIDE)), 0.0)  # [j, i]
        scaled = tl.dot(xd, tl.trans(dyd), input_precision=PRECISION) * s[:, None] * decay
        dBC += scaled
        dlog_decay += _spans(scaled * BC.to(tl.float32), rows, WIDE, PRECISION)
        M = (decay * BC.to(tl.float32)).to(DOT)
        dyf = dyt.to(tl.float32)
        if states is not None:
            into = tl.exp2(cum).to(tl.float32)
            if seq is not None:
                into = tl.where(ids == before, into, 0.0)
            carried = tl.dot(Ct, S.to(DOT), input_precision=PRECISION) * into[:, None]
            dlog_decay += tl.cumsum(tl.sum(dyf * carried, 1), 0, reverse=True)
        xf = xt.to(tl.float32)
        if z is not None:
            y = tl.trans(tl.dot(tl.trans((xf * s[:, None]).to(DOT)), M, input_precision=PRECISION))
            if states is not None:
                y += carried
        if dstates is not None:
            out = tl.exp2(last - cum).to(tl.float32)
            if seq is not None:
                out = tl.where(ids == last_id, out, 0.0)
            u = tl.dot(Bt, dS.to(DOT), input_precision=PRECISION) * out[:, None]
            leaves = s * tl.sum(xf * u, 1)
            dlog_decay += tl.cumsum(leaves, 0) - leaves
            u = tl.dot(M, dyd, u, input_precision=PRECISION)
        else:
            u = tl.dot(M, dyd, input_precision=PRECISION)
        ds = tl.sum(xf * u, 1)
        dxt = s[:, None] * u
        if D is not None:
            skipped = dyf * xf
            if D_COLUMNS == 1:
                weight = tl.load(D + h).to(tl.float32)
                tl.store(sums + (at_row * 3 + 2) * row_heads + h, tl.sum(tl.sum(skipped, 1), 0))
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
        at_token = (token + rows) * row_heads + h
        if A is None:
            tl.store(ddt + at_token, dlog_decay.to(ddt.dtype.element_ty), mask=mask)
            tl.store(dscale + at_token, ds.to(dscale.dtype.element_ty), mask=mask)
        else:
            dstep = ds + dlog_decay * tl.load(A_ptr).to(tl.float32)
            tl.store(sums + at_row * 3 * row_heads + h, tl.sum(dlog_decay * s, 0))
            if LIMIT:
                step = raw
                if SOFTPLUS:
                    step = softplus(raw)
                dstep = tl.where((step >= low) & (step <= high), dstep, 0.0)
            if SOFTPLUS:
                dstep = dstep / (1.0 + tl.exp(-raw))
            dstep = tl.where(mask, dstep, 0.0)
            tl.store(ddt + at_token, dstep.to(ddt.dtype.element_ty), mask=mask)
            if bias is not None:
                tl.store(sums + (at_row * 3 + 1) * row_heads + h, tl.sum(dstep, 0))
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
    total, left, left_b, left_l, left_h, z, z_b, z_l, z_h, right, dt, dt_b, dt_l, dt_h,
    scale, scale_b, scale_l, scale_h, A, bias, chosen, b, c, n_chunks, n_heads, first, stop,
    rows, ns, mask, low, high,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, INTO: tl.constexpr, SOFTPLUS: tl.constexpr,
    LIMIT: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """``total + sum over heads and p of weight_t left[t, p] right[n, p]``, weighted by into or scale out."""
    t0 = c * CHUNK
    ps = tl.arange(0, BLOCK_P)
    for h in tl.range(first, stop, num_stages=STAGES):
        scale_ptr = None
        A_ptr = None
        if A is None:
            scale_ptr = address(scale, b, scale_b, t0, scale_l, h, scale_h, 1)
        else:
            A_ptr = A + h
        _raw, s, cum, last = step_size(
            address(dt, b, dt_b, t0, dt_l, h, dt_h, 1), dt_l, scale_ptr, scale_l, A_ptr,
            None if bias is None else bias + h, rows, mask, low, high, SOFTPLUS, LIMIT, WIDE,
        )  # fmt: skip
        if INTO:
            weight = tl.exp2(cum).to(tl.float32)
        else:
            weight = s * tl.exp2(last - cum).to(tl.float32)
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
    dy, x, dt, scale, A, bias, z, seq, states, dstates, parts_B, parts_C, dB, dC,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, dt_b, dt_l, dt_h, scale_b, scale_l, scale_h, z_b, z_l, z_h,
    length, n_heads, group_heads, n_chunks, n_parts, row_groups, low, high,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, SOFTPLUS: tl.constexpr, LIMIT: tl.constexpr,
    WIDE: tl.constexpr, ADD: tl.constexpr, UNIT: tl.constexpr,
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
                total, dy, dy_b, dy_l, dy_h, z, z_b, z_l, z_h, states, dt, dt_b, dt_l, dt_h,
                scale, scale_b, scale_l, scale_h, A, bias, continues, b, c, n_chunks, n_heads, first, stop,
                rows, ns, mask, low, high, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N, CHUNK, TRANSPOSED, True,
                SOFTPLUS, LIMIT, WIDE, UNIT, DOT, PRECISION, STAGES,
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
                total, x, x_b, x_l, x_h, None, 0, 0, 0, dstates, dt, dt_b, dt_l, dt_h,
                scale, scale_b, scale_l, scale_h, A, bias, in_last, b, c, n_chunks, n_heads, first, stop,
                rows, ns, mask, low, high, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N, CHUNK, TRANSPOSED, False,
                SOFTPLUS, LIMIT, WIDE, UNIT, DOT, PRECISION, STAGES,
            )  # fmt: skip
        for i in range(n_parts):
            total += tile(parts_B + i * part_size + at, n_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
        base = dB + (token * row_groups + g) * D_STATE
        if ADD:
            total += tile(base, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
        store_tile(base, total, row_groups * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
