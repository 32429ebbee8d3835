"""``ssd_step`` on Triton: one launch, a program for some channels of a head."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mambakit.kernels.gpu_math import effective_dt, silu
from mambakit.kernels.launch import contiguous, dense_rows
from mambakit.kernels.recording import Options, Recordings
from mambakit.kernels.tape import Tape, Tensors


@triton.jit
def ssd_step_kernel(
    y_ptr, new_state_ptr, state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr,
    x_stride, dt_stride, B_stride, C_stride, z_stride, low, high,
    N_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D_STATE: tl.constexpr, HEADS_PER_GROUP: tl.constexpr,
    SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr, A_IS_LOG: tl.constexpr, D_PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Strides are those of the batch; the rest is contiguous. ROWS channels of a head a program."""
    n_parts: tl.constexpr = (HEAD_DIM + ROWS - 1) // ROWS
    program = tl.program_id(0)
    head = program // n_parts % N_HEADS
    b = (program // n_parts // N_HEADS).to(tl.int64)
    rows = program % n_parts * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    row_in, column_in = rows < HEAD_DIM, columns < D_STATE
    inside = row_in[:, None] & column_in[None, :]
    offsets = (b * N_HEADS + head) * HEAD_DIM * D_STATE + rows[:, None] * D_STATE + columns[None, :]
    state = tl.load(state_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    group = head // HEADS_PER_GROUP * D_STATE
    B = tl.load(B_ptr + b * B_stride + group + columns, mask=column_in, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + b * C_stride + group + columns, mask=column_in, other=0.0).to(tl.float32)
    channels = head * HEAD_DIM + rows
    x = tl.load(x_ptr + b * x_stride + channels, mask=row_in, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + b * dt_stride + head).to(tl.float32)
    bias = 0.0
    if dt_bias_ptr is not None:
        bias = tl.load(dt_bias_ptr + head).to(tl.float32)
    dt = effective_dt(dt, bias, low, high, SOFTPLUS, CLAMP)
    A = tl.load(A_ptr + head).to(tl.float32)
    if A_IS_LOG:
        A = -tl.exp(A)
    decay = tl.exp(dt * A)
    state = state * decay + (dt * x)[:, None] * B[None, :]
    tl.store(new_state_ptr + offsets, state.to(new_state_ptr.dtype.element_ty), mask=inside)
    y = tl.sum(state * C[None, :], axis=1)
    if D_ptr is not None:
        if D_PER_CHANNEL:
            y += tl.load(D_ptr + channels, mask=row_in, other=0.0).to(tl.float32) * x
        else:
            y += tl.load(D_ptr + head).to(tl.float32) * x
    if z_ptr is not None:
        y *= silu(tl.load(z_ptr + b * z_stride + channels, mask=row_in, other=0.0).to(tl.float32))
    tl.store(y_ptr + b * N_HEADS * HEAD_DIM + channels, y.to(y_ptr.dtype.element_ty), mask=row_in)


def tiles(head_dim: int, d_state: int) -> tuple[int, int, int]:
    """Rows and columns of a program's part of the state, and its warps.

    Some 2,048 numbers, 16 a thread in four accesses of 16 bytes: small enough that a single token of 80 heads
    of 64 x 128 keeps every multiprocessor busy.
    """
    columns = triton.next_power_of_2(d_state)
    rows = max(1, min(triton.next_power_of_2(head_dim), 2048 // columns))
    return rows, columns, max(1, min(4, rows * columns // 128))


def _launch(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    state, x, dt, A, B, C, D, z, dt_bias = tensors
    softplus, low, high, A_is_log, inplace = options
    batch, n_heads, head_dim, d_state = state.shape
    rows, columns, num_warps = tiles(head_dim, d_state)
    y = tape.empty(x.shape, x.dtype, x.device)
    new_state = state if inplace else tape.empty(state.shape, state.dtype, x.device)
    tape.launch(
        ssd_step_kernel, (batch * n_heads * triton.cdiv(head_dim, rows),),
        y, new_state, state, x, dt, A, B, C, D, z, dt_bias,
        x.stride(0), dt.stride(0), B.stride(0), C.stride(0), 0 if z is None else z.stride(0),
        float(low), float(high),
        n_heads, head_dim, d_state, n_heads // B.shape[1],
        softplus, (low, high) != (0.0, float("inf")), A_is_log, D is not None and D.dim() == 2, rows, columns,
        num_warps=num_warps,
    )  # fmt: skip
    return y, new_state


_recordings = Recordings(_launch)


def ssd_step_triton(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    A_is_log: bool,
    inplace: bool,
    checked: bool,
) -> tuple[Tensor, Tensor] | None:
    """As ``ssd_step``; None as ``Recordings.run_without_grad``."""
    options = (bool(dt_softplus), *dt_limit, bool(A_is_log), inplace)
    if not checked:
        return _recordings.run_without_grad((state, x, dt, A, B, C, D, z, dt_bias), options, checked=False)
    given = state.contiguous()
    tensors = (
        given, dense_rows(x), dense_rows(dt), A.contiguous(), dense_rows(B), dense_rows(C),
        contiguous(D), dense_rows(z), contiguous(dt_bias),
    )  # fmt: skip
    done = _recordings.run_without_grad(tensors, options, checked=True)
    if done is None:
        return None
    y, new_state = done
    return y, state.copy_(new_state) if inplace and given is not state else new_state
