"""The selective scan on CPU: prepares arrays for the compiled loops and spreads them over threads."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mambakit.kernels.arrays import as_array
from mambakit.kernels.parallel import parallel_for
from mambakit.kernels.selective_scan.cpu_kernels import LANES, backward_kernel, forward_kernel
from mambakit.kernels.semantics import state_dtype

_LOG2E = math.log2(math.e)


def scan_forward_cpu(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    needs_grad: bool,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``portable.scan_forward``."""
    batch, length, d_inner = x.shape
    n_groups, d_state = B.shape[2:]
    dtype = state_dtype(x)
    n_saved = -(-length // chunk_size) if needs_grad else 0
    y = torch.empty((batch, length, d_inner), dtype=dtype)
    final = torch.empty((batch, d_state, d_inner), dtype=dtype)
    saved = torch.empty((batch, n_saved, d_state, d_inner), dtype=dtype)
    if initial_state is None:
        h0 = torch.zeros((batch, d_state, d_inner), dtype=dtype)
    else:
        h0 = initial_state.transpose(1, 2)
    inputs = _inputs(x, dt, A, B, C, D, z, dt_bias, dtype)
    arrays = (*inputs, as_array(h0, dtype), _sequences(seq_idx), y.numpy(), final.numpy(), saved.numpy())
    options = _options(z, seq_idx, dt_softplus, dt_limit, dtype, chunk_size)
    kernel = forward_kernel(dtype == torch.float64)
    tasks = _tasks(d_inner, n_groups)

    def run(task: int) -> None:
        b, which = divmod(task, len(tasks))
        group, _, first, last = tasks[which]
        kernel(*arrays, *options, b, group, first, last)

    parallel_for(batch * len(tasks), run, small=_is_small(x, d_state))
    return y.to(x.dtype), final.transpose(1, 2).contiguous(), saved


def scan_backward_cpu(
    dy: Tensor,
    dfinal: Tensor,
    chunk_states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    chunk_size: int,
) -> tuple[Tensor, ...]:
    """As ``portable.scan_backward``."""
    batch, length, d_inner = x.shape
    n_groups, d_state = B.shape[2:]
    dtype = state_dtype(x)
    tasks = _tasks(d_inner, n_groups)
    n_parts = max((part for _, part, _, _ in tasks), default=-1) + 1
    dx, ddt = (torch.empty((batch, length, d_inner), dtype=dtype) for _ in range(2))
    dz = torch.empty((batch, length if z is not None else 0, d_inner), dtype=dtype)
    # summed over batch rows and parts only when all are done: the same result with any number of threads
    dA2, dh0 = (torch.empty((batch, d_state, d_inner), dtype=dtype) for _ in range(2))
    dB, dC = (torch.empty((n_parts, batch, length, n_groups, d_state), dtype=dtype) for _ in range(2))
    dD, dbias = (torch.empty((batch, d_inner), dtype=dtype) for _ in range(2))
    grads = (dx, ddt, dA2, dB, dC, dD, dz, dbias, dh0)
    arrays = (
        as_array(dy, dtype),
        as_array(dfinal.transpose(1, 2), dtype),
        as_array(chunk_states, dtype),
        *_inputs(x, dt, A, B, C, D, z, dt_bias, dtype),
        _sequences(seq_idx),
        *(grad.numpy() for grad in grads),
    )
    options = _options(z, seq_idx, dt_softplus, dt_limit, dtype, chunk_size)
    kernel = backward_kernel(dtype == torch.float64)

    def run(task: int) -> None:
        b, which = divmod(task, len(tasks))
        kernel(*arrays, *options, b, *tasks[which])

    parallel_for(batch * len(tasks), run, small=_is_small(x, d_state))
    dA = dA2.sum(0).t().contiguous()
    dinitial = dh0.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return dx, ddt, dA, dB.sum(0), dC.sum(0), dD.sum(0), dz, dbias.sum(0), dinitial


def _tasks(d_inner: int, n_groups: int) -> list[tuple[int, int, int, int]]:
    """``(group, part, first channel, last channel)``; depends on the shape only, so that sums do."""
    per_group = d_inner // n_groups
    n_blocks = -(-per_group // LANES)
    width = LANES * max(1, min(8, -(-n_blocks // 4)))
    return [
        (group, part, group * per_group + start, group * per_group + min(start + width, per_group))
        for group in range(n_groups)
        for part, start in enumerate(range(0, per_group, width))
    ]


def _inputs(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[np.ndarray, ...]:
    """The kernels' common arguments: base-2 rates with the channels last, zeros where nothing was given."""
    d_inner = x.shape[2]
    A2 = (A.detach().double() * _LOG2E).to(dtype).t().contiguous()
    zeros = torch.zeros(d_inner, dtype=dtype)
    return (
        as_array(x, dtype),
        as_array(dt, dtype),
        A2.numpy(),
        as_array(B, dtype),
        as_array(C, dtype),
        as_array(zeros if D is None else D, dtype),
        as_array(x[:0] if z is None else z, dtype),
        as_array(zeros if dt_bias is None else dt_bias, dtype),
    )


def _sequences(seq_idx: Tensor | None) -> np.ndarray:
    return np.empty((0, 0), np.int32) if seq_idx is None else seq_idx.numpy()


def _options(
    z: Tensor | None,
    seq_idx: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    dtype: torch.dtype,
    chunk_size: int,
) -> tuple[bool, bool, bool, float, float, int]:
    low, high = dt_limit
    if (low, high) == (0.0, float("inf")):
        low = -high  # the default clamps nothing, a negative step size neither
    return z is not None, seq_idx is not None, dt_softplus, low, high, chunk_size


def _is_small(x: Tensor, d_state: int) -> bool:
    return x.numel() * d_state < 100_000
