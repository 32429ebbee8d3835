"""``selective_scan_step`` on Triton: one launch, a program for some channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mambakit.kernels.gpu_math import effective_dt, silu
from mambakit.kernels.launch import contiguous, dense_rows
from mambakit.kernels.recording import Options, Recordings
from mambakit.kernels.tape import Tape, Tensors


@triton.jit
def selective_scan_step_kernel(
    y_ptr, new_state_ptr, state_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, dt_bias_ptr,
    x_stride, dt_stride, B_stride, C_stride, z_stride, low, high,
    D_INNER: tl.constexpr, D_STATE: tl.constexpr, CHANNELS_PER_GROUP: tl.constexpr,
    SOFTPLUS: tl.constexpr, CLAMP: tl.constexpr, A_IS_LOG: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Strides are those of the batch; the rest is contiguous. ROWS channels a program."""
    n_parts: tl.constexpr = (D_INNER + ROWS - 1) // ROWS
    program = tl.program_id(0)
    b = (program // n_parts).to(tl.int64)
    rows = program % n_parts * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    row_in = rows < D_INNER
    inside = row_in[:, None] & (columns < D_STATE)[None, :]
    tile = rows[:, None] * D_STATE + columns[None, :]
    start = b * D_INNER * D_STATE
    state = tl.load(state_ptr + start + tile, mask=inside, other=0.0).to(tl.float32)
    A = tl.load(A_ptr + tile, mask=inside, other=0.0).to(tl.float32)
    if A_IS_LOG:
        A = -tl.exp(A)
    of_group = rows[:, None] // CHANNELS_PER_GROUP * D_STATE + columns[None, :]
    B = tl.load(B_ptr + b * B_stride + of_group, mask=inside, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + b * C_stride + of_group, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + b * x_stride + rows, mask=row_in, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + b * dt_stride + rows, mask=row_in, other=0.0).to(tl.float32)
    bias = 0.0
    if dt_bias_ptr is not None:
        bias = tl.load(dt_bias_ptr + rows, mask=row_in, other=0.0).to(tl.float32)
    dt = effective_dt(dt, bias, low, high, SOFTPLUS, CLAMP)
    state = tl.exp(dt[:, None] * A) * state + (dt * x)[:, None] * B
    tl.store(new_state_ptr + start + tile, state.to(new_state_ptr.dtype.element_ty), mask=inside)
    y = tl.sum(state * C, axis=1)
    if D_ptr is not None:
        y += tl.load(D_ptr + rows, mask=row_in, other=0.0).to(tl.float32) * x
    if z_ptr is not None:
        y *= silu(tl.load(z_ptr + b * z_stride + rows, mask=row_in, other=0.0).to(tl.float32))
    tl.store(y_ptr + b * D_INNER + rows, y.to(y_ptr.dtype.element_ty), mask=row_in)


def tiles(batch: int, d_inner: int, d_state: int) -> tuple[int, int, int]:
    """Rows and columns of a program's part of the state, and its warps: one, of some 512 numbers.

    Halved while a single token would leave multiprocessors idle.
    """
    columns = triton.next_power_of_2(d_state)
    rows = max(1, min(triton.next_power_of_2(d_inner), 512 // columns))
    while rows > 8 and batch * triton.cdiv(d_inner, rows) < 256:
        rows //= 2
    return rows, columns, 1


def _launch(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    state, x, dt, A, B, C, D, z, dt_bias = tensors
    softplus, low, high, A_is_log, inplace = options
    batch, d_inner, d_state = state.shape
    rows, columns, num_warps = tiles(batch, d_inner, d_state)
    y = tape.empty(x.shape, x.dtype, x.device)
    new_state = state if inplace else tape.empty(state.shape, state.dtype, x.device)
    tape.launch(
        selective_scan_step_kernel, (batch * triton.cdiv(d_inner, rows),),
        y, new_state, state, x, dt, A, B, C, D, z, dt_bias,
        x.stride(0), dt.stride(0), B.stride(0), C.stride(0), 0 if z is None else z.stride(0),
        float(low), float(high),
        d_inner, d_state, d_inner // B.shape[1],
        softplus, (low, high) != (0.0, float("inf")), A_is_log, rows, columns, num_warps=num_warps,
    )  # fmt: skip
    return y, new_state


_recordings = Recordings(_launch)


def selective_scan_step_triton(
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
    """As ``selective_scan_step``; None as ``Recordings.run_without_grad``."""
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
