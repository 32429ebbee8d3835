"""The selective scan on a GPU, in Triton: launchers of the kernels and the choice of their configuration.

No ``(batch, length, d_inner, d_state)`` tensor exists: the forward pass keeps the state of every
``SAVE_EVERY``-th token and the backward pass recomputes the rest. Both are deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from mambakit.kernels.launch import needs_grad
from mambakit.kernels.recording import Found, Options, Recordings
from mambakit.kernels.selective_scan.gpu_backward import (
    carry_gradients_kernel,
    scan_backward_kernel,
    segment_gradients_kernel,
)
from mambakit.kernels.selective_scan.gpu_forward import scan_forward_kernel
from mambakit.kernels.selective_scan.gpu_math import projections_kernel
from mambakit.kernels.selective_scan.portable import GPU_SAVE_EVERY
from mambakit.kernels.tape import Tape, Tensors

# Channels of a program, one to a thread of a warp.
CHANNELS = 32
# A multiple of every tile.
TOKENS_PADDED = 32


@dataclass(frozen=True)
class Config:
    """How the work is laid out.

    The kernels load ``forward_tile`` or ``backward_tile`` tokens at once and keep the state of every
    ``save_every``-th, which both tiles divide. The forward pass cuts the sequence, but into segments of
    ``shortest_segment`` tokens at least, where it has fewer than ``forward_programs`` walks for each
    multiprocessor; the backward pass aims at ``backward_programs``. There a program takes up to ``passes``
    blocks of channels one after the other: more means less memory for partial sums.
    """

    forward_tile: int = 4
    backward_tile: int = 4
    save_every: int = GPU_SAVE_EVERY
    shortest_segment: int = 64
    forward_programs: int = 48
    backward_programs: int = 16
    passes: int = 8


DEFAULT = Config()


def scan_forward_gpu(
    *tensors: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float], needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``(y, final_state, saved_states)`` of ``x`` to ``seq_idx``; unknown to autograd.

    The last is ``(batch, n_saved, d_state, d_inner)`` float32, or None unless ``needs_grad``.
    """
    y, final, states = _forward.run(tensors, (dt_softplus, dt_limit, needs_grad))
    return y, final, states


def scan_backward_gpu(
    dy: Tensor | None,
    dfinal: Tensor | None,
    states: Tensor,
    *tensors: Any,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x, dt, A, B, C, D, z, dt_bias, initial_state`` in their dtypes; None for None."""
    given = tensors[:9]
    x, initial_state = tensors[0], tensors[8]
    if x.shape[0] == 0 or x.shape[1] == 0:
        zeros = [None if v is None else torch.zeros(v.shape, dtype=v.dtype, device=v.device) for v in given]
        if initial_state is not None and dfinal is not None:
            zeros[-1] = dfinal.to(initial_state.dtype, copy=True)
        return tuple(zeros)
    if dy is None:
        dy = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    (dy,) = _unit_strides(dy)
    dx, ddt, dA, dBC, dD, dz, dbias, dinitial = _backward.run(
        (*tensors, dy, dfinal, states), (dt_softplus, dt_limit)
    )
    dBC = dBC.sum(0) if len(dBC) > 1 else dBC[0]
    dB, dC = dBC[..., : tensors[2].shape[1]].unbind(3)
    grads = (
        dx,
        ddt,
        dA.sum((0, 1)).t(),
        dB,
        dC,
        None if dD is None else dD.sum((0, 1)),
        dz,
        None if dbias is None else dbias.sum((0, 1)),
        dinitial,
    )
    return tuple(
        grad if v is None or grad is None or grad.dtype is v.dtype else grad.to(v.dtype)
        for v, grad in zip(given, grads, strict=True)
    )


def _launch_forward(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx = tensors
    dt_softplus, dt_limit, needs_grad = options
    config = _fit(DEFAULT, A.shape[1])
    batch, length, d_inner = x.shape
    n_groups, d_state = B.shape[2:]
    x, dt, B, C, D, z, dt_bias, seq_idx = _unit_strides(x, dt, B, C, D, z, dt_bias, seq_idx)
    float32: dict[str, Any] = {"device": x.device, "dtype": torch.float32}
    y = tape.empty(x.shape, device=x.device, dtype=x.dtype)
    final = tape.empty((batch, d_inner, d_state), **float32)
    n_saved = _ceil(length, config.save_every) if needs_grad else 0
    states = tape.empty((batch, n_saved, d_state, d_inner), **float32) if needs_grad else None
    if batch == 0:
        return y, final, states
    per_group = d_inner // n_groups
    blocks_per_group = _ceil(per_group, CHANNELS)
    n_blocks = n_groups * blocks_per_group
    n_segments, segment_length = _forward_segments(batch * n_blocks, length, x.device, config)
    ends = totals = final
    if n_segments > 1:
        ends = tape.empty((batch, n_segments - 1, d_state, d_inner), **float32)
        totals = tape.empty((batch, n_segments - 1, d_inner), **float32)
    BC = _projections(tape, B, C)
    h_strides = (0, 0, 0) if initial_state is None else initial_state.stride()
    for output in (False, True) if n_segments > 1 else (True,):
        programs = batch * n_blocks * (n_segments if output else n_segments - 1)
        tape.launch(
            scan_forward_kernel, (programs,),
            x, dt, A, BC, _or(D, A), _or(z, x), _or(dt_bias, A), _or(initial_state, final),
            _or(seq_idx, final), ends, totals, y, final, _or(states, final),
            x.stride(0), dt.stride(0), _or(z, x).stride(0), y.stride(0), BC.shape[1],
            *A.stride(), *h_strides, 0 if seq_idx is None else seq_idx.stride(0),
            *dt_limit, d_inner, per_group, blocks_per_group, n_blocks, length, segment_length, n_segments,
            n_saved,
            X_L=x.stride(1), DT_L=dt.stride(1), Z_L=_or(z, x).stride(1), Y_L=d_inner, BC_L=BC.stride(1),
            HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=dt_bias is not None,
            HAS_INITIAL=initial_state is not None, PACKED=seq_idx is not None, SOFTPLUS=dt_softplus,
            LIMITED=dt_limit != (0.0, float("inf")), OUTPUT=output,
            SAVE_EVERY=config.save_every,
            TILE=config.forward_tile, **_state_layout(d_state),
        )  # fmt: skip
    return y, final, states


def _launch_backward(tape: Tape, tensors: Tensors, options: Options) -> Tensors:
    """Gradients, those of parameters and of B and C in parts that are left to be summed."""
    x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, dy, dfinal, states = tensors
    dt_softplus, dt_limit = options
    config = _fit(DEFAULT, A.shape[1])
    batch, length, d_inner = x.shape
    n_groups, d_state = B.shape[2:]
    x, dt, B, C, D, z, dt_bias, seq_idx = _unit_strides(x, dt, B, C, D, z, dt_bias, seq_idx)
    float32: dict[str, Any] = {"device": x.device, "dtype": torch.float32}

    def like(v: Tensor) -> Tensor:
        return tape.empty(v.shape, device=v.device, dtype=v.dtype)

    per_group = d_inner // n_groups
    blocks_per_group = _ceil(per_group, CHANNELS)
    n_blocks = n_groups * blocks_per_group
    n_segments, segment_length, passes = _backward_segments(
        batch * n_groups, blocks_per_group, length, x.device, config
    )
    chunks_per_group = _ceil(blocks_per_group, passes)
    programs = batch * n_groups * chunks_per_group * n_segments

    dx, ddt, dz = like(x), like(dt), None if z is None else like(z)
    dA = tape.empty((batch, n_segments, d_state, d_inner), **float32)
    BC = _projections(tape, B, C)
    dBC = tape.empty((chunks_per_group, batch, length, *BC.shape[2:]), **float32)
    dD = None if D is None else tape.empty((batch, n_segments, d_inner), **float32)
    dbias = None if dt_bias is None else tape.empty((batch, n_segments, d_inner), **float32)
    dinitial = None if initial_state is None else tape.empty((batch, d_inner, d_state), **float32)
    scratch = tape.empty((programs, config.save_every // config.backward_tile, d_state, CHANNELS), **float32)

    z_strides = _or(z, x).stride()
    seq_stride = 0 if seq_idx is None else seq_idx.stride(0)
    dfinal_strides = (0, 0, 0) if dfinal is None else dfinal.stride()
    step = {"PACKED": seq_idx is not None, **_state_layout(d_state)}
    layout = {
        "DY_L": dy.stride(1),
        "DT_L": dt.stride(1),
        "Z_L": z_strides[1],
        "BC_L": BC.stride(1),
        "HAS_Z": z is not None,
        "HAS_BIAS": dt_bias is not None,
        "SOFTPLUS": dt_softplus,
        "LIMITED": dt_limit != (0.0, float("inf")),
        **step,
    }
    # the gradient of the state after each segment, indexed by batch, segment, channel and state
    after, after_strides = dfinal, (dfinal_strides[0], 0, *dfinal_strides[1:])
    if n_segments > 1:
        after = carry = tape.empty((batch, n_segments, d_state, d_inner), **float32)
        totals = tape.empty((batch, n_segments, d_inner), **float32)
        tape.launch(
            segment_gradients_kernel, (batch * n_blocks * (n_segments - 1),),
            dy, dt, A, BC, _or(z, x), _or(dt_bias, A), _or(seq_idx, dA), carry, totals,
            dy.stride(0), dt.stride(0), z_strides[0], BC.shape[1], *A.stride(), seq_stride, *dt_limit,
            d_inner, per_group, blocks_per_group, n_blocks, length, segment_length, n_segments,
            TILE=config.forward_tile, **layout,
        )  # fmt: skip
        after_strides = (carry.stride(0), carry.stride(1), 1, d_inner)
        flat_blocks = _ceil(d_inner, CHANNELS)
        tape.launch(
            carry_gradients_kernel, (batch * flat_blocks,),
            A, _or(seq_idx, dA), _or(dfinal, dA), totals, carry, *A.stride(), seq_stride, *dfinal_strides,
            d_inner, flat_blocks, length, segment_length, n_segments, HAS_DFINAL=dfinal is not None, **step,
        )  # fmt: skip
    tape.launch(
        scan_backward_kernel, (programs,),
        dy, x, dt, A, BC, _or(D, A), _or(z, x), _or(dt_bias, A), _or(seq_idx, dA), _or(after, dA), states,
        scratch, dx, ddt, _or(dz, dx), dA, dBC, _or(dD, dA), _or(dbias, dA), _or(dinitial, dA),
        dy.stride(0), x.stride(0), dt.stride(0), z_strides[0], BC.shape[1], *A.stride(), seq_stride,
        *after_strides, int(after is not None), *dt_limit, batch, d_inner, n_groups, per_group,
        blocks_per_group, chunks_per_group, length, segment_length, n_segments, states.shape[1], passes,
        X_L=x.stride(1), OUT_L=d_inner, HAS_D=D is not None, HAS_INITIAL=initial_state is not None,
        SAVED_EVERY=config.save_every, TILE=config.backward_tile, **layout,
    )  # fmt: skip
    return dx, ddt, dA, dBC, dD, dz, dbias, dinitial


_forward = Recordings(_launch_forward)
_backward = Recordings(_launch_backward)


def selective_scan_triton(
    tensors: Tensors, options: Options, *, checked: bool
) -> tuple[Tensor, Tensor] | None:
    """``(y, final_state)`` of ``x`` to ``seq_idx``, with fewer layers in between than a custom op has.

    Args:
        tensors: As ``scan_forward_gpu`` takes them.
        options: ``dt_softplus, dt_limit``.
        checked: Unless so, the result is None for arguments of a make not seen before.
    """
    grad = needs_grad(*tensors)
    if checked:
        if grad:
            return _SelectiveScan.apply(None, options, *tensors)
        y, final, _ = _forward.run(tensors, (*options, False))
        return y, final
    found = _forward.find(tensors, (*options, grad))
    if found is None:
        return None
    if grad:
        return _SelectiveScan.apply(found, found.recording.options[:2], *tensors)
    y, final, _ = found.recording.play(tensors, found.addresses)
    return y, final


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: Found | None, options: Options, *tensors: Any) -> tuple[Tensor, Tensor]:
        if found is None:
            y, final, states = _forward.run(tensors, (*options, True))
        else:
            y, final, states = found.recording.play(tensors, found.addresses)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, *tensors)
        ctx.options = options
        return y, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        dt_softplus, dt_limit = ctx.options
        given = (dy, dfinal, *ctx.saved_tensors)
        return None, None, *scan_backward_gpu(*given, dt_softplus=dt_softplus, dt_limit=dt_limit), None


def _projections(tape: Tape, B: Tensor, C: Tensor) -> Tensor:
    """B and C in the layout that the kernels read; see ``projections_kernel``."""
    batch, length, n_groups, d_state = B.shape
    block_n = triton.next_power_of_2(d_state)
    n_tiles = _ceil(length, TOKENS_PADDED)
    padded = n_tiles * TOKENS_PADDED
    out = tape.empty((batch, padded, n_groups, 2, block_n), device=B.device, dtype=torch.float32)
    if length > 0:
        tape.launch(
            projections_kernel, (batch * n_groups * n_tiles,),
            B, C, out, *B.stride()[:3], *C.stride()[:3], n_groups, length, padded, n_tiles,
            D_STATE=d_state, BLOCK_N=block_n, TILE=TOKENS_PADDED,
        )  # fmt: skip
    return out


def _or(value: Tensor | None, other: Tensor) -> Tensor:
    """A kernel wants some pointer for an argument that it does not read."""
    return other if value is None else value


def _unit_strides(*tensors: Tensor | None) -> list[Any]:
    return [v if v is None or v.stride(-1) == 1 else v.contiguous() for v in tensors]


def _state_layout(d_state: int) -> dict[str, Any]:
    """A thread holds at most 16 states, more are spread over warps; then sums over states cross warps."""
    block_n = triton.next_power_of_2(d_state)
    return {
        "D_STATE": d_state,
        "BLOCK_N": block_n,
        "CHANNELS": CHANNELS,
        "num_warps": max(1, min(16, block_n // 16)),
        "num_stages": 1,
    }


def _fit(config: Config, d_state: int) -> Config:
    """Shorter tiles where many states leave few registers."""
    if d_state <= 64:
        return config
    return replace(
        config, forward_tile=min(config.forward_tile, 4), backward_tile=min(config.backward_tile, 2)
    )


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


def _forward_segments(walks: int, length: int, device: torch.device, config: Config) -> tuple[int, int]:
    """``(n_segments, segment_length)``: cut only where it gains, for a cut doubles the exponentials."""
    most = length // config.shortest_segment
    n_segments = min(config.forward_programs * _multiprocessors(device) // walks, most)
    if n_segments < 3:
        return 1, max(length, 1)
    segment_length = _ceil(_ceil(length, n_segments), config.save_every) * config.save_every
    return _ceil(length, segment_length), segment_length


def _backward_segments(
    rows: int, blocks: int, length: int, device: torch.device, config: Config
) -> tuple[int, int, int]:
    """``(n_segments, segment_length, passes)``: enough programs to fill the device, then long ones."""
    wanted = config.backward_programs * _multiprocessors(device)
    passes, segment_length = min(config.passes, blocks), 4 * config.save_every
    while rows * _ceil(blocks, passes) * _ceil(length, segment_length) < wanted:
        if segment_length > config.save_every and segment_length > length // 2:
            segment_length //= 2
        elif passes > 1:
            passes = _ceil(passes, 2)
        elif segment_length > config.save_every:
            segment_length //= 2
        else:
            break
    passes = _ceil(blocks, _ceil(blocks, passes))  # even shares
    return _ceil(length, segment_length), segment_length, passes


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
