"""The Triton kernel of ``ssd``'s backward pass where every head has its own B and C.

The formulas are in ``gpu_backward``. With no sums over heads, a program takes a head's chunk whole, terms
with a state and terms of pairs, and writes the gradients of its B and C in their own dtype.
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
    own_or,
    sequences,
    store_tile,
    tile,
)
from mambakit.kernels.ssd.gpu_projections import angle_gradient


@triton.jit(do_not_specialize=STRIDES + SIZES + ["dy_b", "dy_l", "dy_h"])
def head_gradients(  # type: ignore[no-untyped-def]
    dy, x, cum, steps, own, B, C, skip, z, seq, states, dstates,
    dx, dcum, through_sums, dsteps, down, dskip, dB, dC, dz, dangles,
    dy_b, dy_l, dy_h, x_b, x_l, x_h, B_b, B_l, B_g, C_b, C_l, C_g, z_b, z_l, z_h,
    length, n_heads, n_chunks,
    HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr, N_ANGLES: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of one head's chunk.

    ``B``, ``C`` and their gradients are ``(batch, length, n_heads, d_state)``, ``dx`` and ``dz`` ``(batch,
    length, n_heads, head_dim)``. ``states`` and ``dstates``, of which either may be None for zeros, are as in
    ``state_gradients``; ``skip``, the weight of each token in its own output, ``dskip``, ``own`` and ``down``
    lie as ``steps``, and so do ``dcum`` and ``dsteps``; ``through_sums`` is ``(batch, n_heads, n_chunks)``:
    all for ``step_gradients``.

    ``dangles``, ``(batch, length, n_heads, N_ANGLES)``, is that of what has turned B and C. It is of the sums
    as they are, before they are rounded, and of the operands of the products: what a pair of tokens gives to
    the angles of both then cancels in later sums over the sequence, where roundings would add up.
    """
    pid = tl.program_id(0)
    h = pid % n_heads
    pid = pid // n_heads
    c = pid % n_chunks
    b = pid // n_chunks
    row = b * n_heads + h
    rows = tl.arange(0, CHUNK)
    ns = tl.arange(0, BLOCK_N)
    ps = tl.arange(0, BLOCK_P)
    t0 = c * CHUNK
    mask = t0 + rows < length
    token = tl.cast(b, tl.int64) * length + t0
    at_step = (tl.cast(row, tl.int64) * n_chunks + c) * CHUNK + rows
    at_chunk = ((tl.cast(b, tl.int64) * n_chunks + c) * n_heads + h) * (HEAD_DIM * D_STATE)
    B_ptr = address(B, b, B_b, t0, B_l, h, B_g, UNIT)
    C_ptr = address(C, b, C_b, t0, C_l, h, C_g, UNIT)
    Bt = tile(B_ptr, B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
    Ct = tile(C_ptr, C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N)
    xt = tile(address(x, b, x_b, t0, x_l, h, x_h, UNIT), x_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
    dyt = tile(address(dy, b, dy_b, t0, dy_l, h, dy_h, UNIT), dy_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
    Bt = Bt.to(DOT)
    Ct = Ct.to(DOT)
    if z is not None:
        zt = tile(address(z, b, z_b, t0, z_l, h, z_h, UNIT), z_l * UNIT, rows, ps, mask, HEAD_DIM, BLOCK_P)
        zt = zt.to(tl.float32)
        gate = 1.0 / (1.0 + tl.exp(-zt))
        # the gate's own gradient, all but the factor y, which comes below
        dgate = dyt.to(tl.float32) * gate * (1.0 + zt * (1.0 - gate))
        dyt = (dyt.to(tl.float32) * (zt * gate)).to(DOT)
    xd = xt.to(DOT)
    dyd = dyt.to(DOT)
    xf = xt.to(tl.float32)
    dyf = dyt.to(tl.float32)
    s, cums, last = decays(cum, steps, row, n_chunks, c, rows, CHUNK)
    keep = rows[None, :] >= rows[:, None]  # [j, i]
    if seq is not None:
        ids, before, last_id = sequences(seq, b, t0, length, rows, CHUNK)
        keep = keep & (ids[:, None] == ids[None, :])

    # pairs, as [j, i]
    M = tl.dot(Bt, tl.trans(Ct), input_precision=PRECISION)
    pairs = tl.dot(xd, tl.trans(dyd), input_precision=PRECISION)
    decay = tl.where(keep, tl.exp2(-differences(cums, cums, WIDE)), 0.0)
    weight = own_or(numbers_of(own, row, n_chunks, c, CHUNK), s, rows, True)
    M *= decay
    dBC = (pairs * decay * weight).to(DOT)
    pairs *= M
    M = (M * weight).to(DOT)
    if own is not None:
        diagonal = rows[:, None] == rows[None, :]
        tl.store(down + at_step, tl.sum(tl.where(diagonal, pairs, 0.0), 1))
        pairs = tl.where(diagonal, 0.0, pairs)
    ds = tl.sum(pairs, 1)
    pairs *= s[:, None]
    passing = tl.full((), 0.0, tl.float32)
    if WIDE:
        # sum_{j < t <= i} for every t, without the pairs that the difference of two sums would cancel
        earlier = (rows[None, :] < rows[:, None]).to(tl.float32)  # [t, j]
        pairs = tl.dot(earlier, pairs, input_precision=PRECISION)  # [t, i]
        dlog_decay = tl.sum(tl.where(rows[None, :] >= rows[:, None], pairs, 0.0), 1)
    else:
        dlog_decay = tl.sum(pairs, 0) - s * ds
    if z is not None:
        y = tl.trans(tl.dot(tl.trans(xd), M, input_precision=PRECISION))
    out_base = (token * n_heads + h) * HEAD_DIM
    bc_base = (token * n_heads + h) * D_STATE

    # C first, then x, then B: each is written before the next takes its registers.
    # dC as [n, i], so that no product's result is transposed to enter another one
    dCt = tl.dot(tl.trans(Bt), dBC, input_precision=PRECISION)
    if states is not None:
        S = load_state(states + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N).to(DOT)
        into = tl.exp2(cums).to(tl.float32)
        if seq is not None:
            into = tl.where(ids == before, into, 0.0)
        entering = dyf * into[:, None]
        carried = tl.dot(Ct, S, input_precision=PRECISION)
        enters = tl.sum(entering * carried, 1)
        dlog_decay += tl.cumsum(enters, 0, reverse=True) if WIDE else enters
        if DOT == tl.float32:  # noqa: SIM300  a constant of the compiler's on the left
            # so that a large state lies in shared memory once, for both of its products
            dCt = tl.dot(entering, tl.trans(S), tl.trans(dCt), input_precision=PRECISION)
        else:
            dCt = tl.trans(tl.dot(S, tl.trans(entering.to(DOT)), dCt, input_precision=PRECISION))
        if z is not None:
            y += carried * into[:, None]
    else:
        dCt = tl.trans(dCt)
    store_tile(dC + bc_base, dCt, n_heads * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
    if dangles is not None:
        # read again: it lies in the cache, and would hold registers all the while
        value = tile(C_ptr, C_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
        dangle = angle_gradient(dCt, value, CHUNK, BLOCK_N)

    dxt = tl.dot(M, dyd, input_precision=PRECISION)
    if dstates is not None:
        dS = load_state(dstates + at_chunk, ns, ps, TRANSPOSED, HEAD_DIM, D_STATE, BLOCK_P, BLOCK_N).to(DOT)
        out = tl.exp2(last - cums).to(tl.float32)
        if seq is not None:
            out = tl.where(ids == last_id, out, 0.0)
        u = tl.dot(Bt, dS, input_precision=PRECISION) * out[:, None]
        of_state = tl.sum(xf * u, 1)
        ds += of_state
        dxt += s[:, None] * u
        leaves = s * of_state
        if WIDE:
            dlog_decay += tl.cumsum(leaves, 0) - leaves
        else:
            dlog_decay -= leaves
            passing += tl.sum(leaves, 0)
        if states is not None:
            through = tl.exp2(last).to(tl.float32)
            if seq is not None:
                through = tl.where(before == last_id, through, 0.0)
            product = tl.sum(S.to(tl.float32) * dS.to(tl.float32))
            passing += tl.where(through == 0.0, 0.0, through * product)
    if WIDE:
        dlog_decay += passing
    elif through_sums is not None:
        tl.store(through_sums + tl.cast(row, tl.int64) * n_chunks + c, passing)
    tl.store(dcum + at_step, dlog_decay)
    tl.store(dsteps + at_step, ds)
    if skip is not None:
        tl.store(dskip + at_step, tl.sum(dyf * xf, 1))
        weight_of_x = tl.load(skip + at_step)[:, None]
        dxt += weight_of_x * dyf
        if z is not None:
            y += weight_of_x * xf
    store_tile(dx + out_base, dxt, n_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P)
    if z is not None:
        store_tile(dz + out_base, dgate * y, n_heads * HEAD_DIM, rows, ps, mask, HEAD_DIM, BLOCK_P)

    dBt = tl.dot(dBC, Ct, input_precision=PRECISION)
    if dstates is not None:
        leaving = (xf * (s * out)[:, None]).to(DOT)
        dBt = tl.dot(leaving, tl.trans(dS), dBt, input_precision=PRECISION)
    store_tile(dB + bc_base, dBt, n_heads * D_STATE, rows, ns, mask, D_STATE, BLOCK_N)
    if dangles is not None:
        value = tile(B_ptr, B_l * UNIT, rows, ns, mask, D_STATE, BLOCK_N).to(DOT)
        dangle += angle_gradient(dBt, value, CHUNK, BLOCK_N)
        ks = tl.arange(0, BLOCK_N // 2)
        where = dangles + (token * n_heads + h) * N_ANGLES
        where = where + rows[:, None] * (n_heads * N_ANGLES) + ks[None, :]
        given = mask[:, None] & (ks < N_ANGLES)[None, :]
        tl.store(where, dangle.to(dangles.dtype.element_ty), mask=given)
