"""``causal_conv1d`` and ``causal_conv1d_step``: argument checks and the choice of backend."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.kernels.arrays import addresses, is_plain_cpu_call, step_memory, usual_addresses
from mambakit.kernels.backend import choose_backend
from mambakit.kernels.causal_conv1d.library import causal_conv1d_fwd
from mambakit.kernels.causal_conv1d.portable import conv_forward
from mambakit.kernels.causal_conv1d.reference import causal_conv1d_reference
from mambakit.kernels.checks import check_float, check_same_device, check_seq_idx, check_shape
from mambakit.kernels.launch import asks_for_triton, is_eager


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution: ``y_t = activation(bias + sum_k weight[:, k] x[t - (width - 1) + k])``.

    Gradients flow to every tensor argument, and from the final state too. Computed in float32 (float64
    for float64 ``x``). The inputs need not be contiguous.

    Args:
        x: Input, ``(batch, length, channels)``; any length, 0 too.
        weight: One filter per channel, ``(channels, width)``; the last tap meets the current token.
        bias: ``(channels,)``.
        activation: None or ``"silu"``.
        initial_state: The ``width - 1`` tokens before the first, ``(batch, channels, width - 1)``; zero if
            None.
        seq_idx: ``(batch, length)`` int32, non-decreasing in a row: which packed sequence a token belongs
            to. The row's first sequence continues ``initial_state``; for the others the past is zero.
        return_final_state: Also return the last ``width - 1`` tokens (zero where they belong to another
            than the row's last sequence).
        backend: ``"reference"``, ``"portable"``, ``"triton"``, or None for the best on this device. Only
            ``"reference"`` can be differentiated twice.

    Returns:
        ``y``, shaped as ``x`` and of its dtype; with ``return_final_state`` the pair of ``y`` and the
        state, ``(batch, channels, width - 1)`` float32 (float64 for float64 ``x``).

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype.
        ValueError: On a wrong shape, device, ``activation`` or name of a backend.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    tensors = (x, weight, bias, initial_state, seq_idx)
    if asks_for_triton(x, backend):
        # of a make that was checked before
        done = _triton()(tensors, (activation, return_final_state), checked=False)
        if done is not None:
            return done if return_final_state else done[0]
    check_float("x", x)
    check_shape("x", x, batch=None, length=None, channels=None)
    batch, length, channels = x.shape
    _check_filter(weight, bias, activation, channels)
    if initial_state is not None:
        check_float("initial_state", initial_state)
        check_shape("initial_state", initial_state, batch=batch, channels=channels, past=weight.shape[1] - 1)
    if seq_idx is not None:
        check_seq_idx(seq_idx, batch=batch, length=length)
    check_same_device("x", x, weight=weight, bias=bias, initial_state=initial_state, seq_idx=seq_idx)
    chosen = choose_backend("causal_conv1d", backend, x.device, x.dtype)
    state: Tensor | None
    if chosen == "reference":
        y, state = causal_conv1d_reference(
            x, weight, bias, activation=activation, initial_state=initial_state, seq_idx=seq_idx
        )
    # a custom op takes longer to call than a short sequence to compute
    elif chosen == "triton" and is_eager(*tensors):
        y, state = _triton()(tensors, (activation, return_final_state), checked=True)
    elif chosen == "portable" and is_plain_cpu_call(*tensors):
        y, state = conv_forward(*tensors, activation == "silu")
    else:
        y, state = causal_conv1d_fwd(*tensors, activation == "silu", chosen)
    if return_final_state:
        assert state is not None
        return y, state
    return y


@functools.cache
def _triton() -> Any:
    from mambakit.kernels.causal_conv1d.gpu import causal_conv1d_triton

    return causal_conv1d_triton


def causal_conv1d_step(
    state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of ``causal_conv1d``.

    Args:
        state: The ``width - 1`` tokens before this one, ``(batch, channels, width - 1)``; computed in its
            dtype, float32 as a rule.
        x: ``(batch, channels)``.
        weight, bias, activation: As in ``causal_conv1d``.
        inplace: Overwrite ``state`` with the new state and return it; not for a state that needs gradients.
        backend: As in ``causal_conv1d``.

    Returns:
        ``(y, state)``: ``y`` shaped as ``x`` and of its dtype, and the new state.

    Raises:
        TypeError: If an argument is no tensor or has the wrong dtype.
        ValueError: On a wrong shape, device, ``activation`` or name of a backend.
        BackendUnavailableError: If the backend asked for cannot run here.
    """
    if asks_for_triton(state, backend):
        done = _triton_step()(state, x, weight, bias, activation, inplace, checked=False)
        if done is not None:
            return done
    found = _usual_addresses(state, x, weight, bias, activation)
    if found is None:
        check_float("x", x)
        check_shape("x", x, batch=None, channels=None)
        batch, channels = x.shape
        _check_filter(weight, bias, activation, channels)
        check_float("state", state)
        check_shape("state", state, batch=batch, channels=channels, past=weight.shape[1] - 1)
        check_same_device("x", x, state=state, weight=weight, bias=bias)
    dtype = state.dtype
    chosen = choose_backend("causal_conv1d_step", backend, x.device, dtype)
    if chosen == "triton" and not torch.compiler.is_compiling():
        done = _triton_step()(state, x, weight, bias, activation, inplace, checked=True)
        if done is not None:
            return done
    if chosen != "reference":
        memory: list[Any] | None = [state, x]
        if found is None:
            memory = step_memory(state, x, weight, bias, inplace=inplace)
        if memory is not None:
            new_state, y = memory[0] if inplace else torch.empty_like(memory[0]), torch.empty_like(memory[1])
            _compiled_step(dtype)(
                *(found or addresses(memory)), y.data_ptr(), new_state.data_ptr(),
                *state.shape, activation == "silu", 0.0,
            )  # fmt: skip
            return y if y.dtype is x.dtype else y.to(x.dtype), state if inplace else new_state
    window = torch.cat([state, x.to(dtype)[..., None]], dim=-1)  # [b, c, w]
    y = torch.linalg.vecdot(window, weight.to(dtype))
    if bias is not None:
        y = y + bias.to(dtype)
    if activation == "silu":
        y = F.silu(y)
    new_state = window[..., 1:].contiguous()  # other strides would have a compiled step compiled again
    if inplace:
        state.copy_(new_state)
        new_state = state
    return y.to(x.dtype), new_state


@functools.cache
def _triton_step() -> Any:
    from mambakit.kernels.causal_conv1d.gpu_step import causal_conv1d_step_triton

    return causal_conv1d_step_triton


@functools.cache
def _compiled_step(dtype: torch.dtype) -> Any:
    from mambakit.kernels.causal_conv1d.cpu_step import compiled_step

    return compiled_step(dtype == torch.float64)


def _usual_addresses(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> list[int] | None:
    try:
        batch, channels, past = state.shape
        dtype = state.dtype
    except (AttributeError, ValueError):
        return None
    if activation not in (None, "silu"):
        return None
    return usual_addresses(
        dtype,
        (state, (batch, channels, past)),
        (x, (batch, channels)),
        (weight, (channels, past + 1)),
        (bias, (channels,)),
    )


def _check_filter(weight: Tensor, bias: Tensor | None, activation: str | None, channels: int) -> None:
    check_float("weight", weight)
    check_shape("weight", weight, channels=channels, width=None)
    if weight.shape[1] < 1:
        raise ValueError(f"weight: expected width of at least 1, got shape {tuple(weight.shape)}")
    if bias is not None:
        check_float("bias", bias)
        check_shape("bias", bias, channels=channels)
    if activation not in (None, "silu"):
        raise ValueError(f"activation: expected None or 'silu', got {activation!r}")
