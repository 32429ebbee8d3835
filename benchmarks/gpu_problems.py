"""What the GPU benchmarks time: inputs, the candidates that compute the same from them, and the least work.

Least work: every input read and every output written once (the backward pass reads the inputs and the
output's gradient and writes a gradient each); matrix products of chunked state-space duality at chunk 64,
in the backward pass twice those of the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_candidates import Candidate, Index, Problem
from gpu_timing import random
from mambakit.kernels import (
    causal_conv1d,
    gated_rms_norm,
    mamba3_scan,
    selective_scan,
    ssd,
    ssd_core,
    ssd_step,
)

CHUNK = 64
WIDTH = 4
# attention's float64 check holds length x length numbers
_LONGEST_ATTENTION_CHECK = 4096

Sizes = dict[str, int]


def build_problem(kind: str, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    """The problem of that kind (a key of ``PROBLEMS``) and size, its inputs drawn from one seed."""
    torch.manual_seed(0)
    return PROBLEMS[kind](sizes, device, dtype)


def _dt_bias(channels: int, device: torch.device) -> Tensor:
    """Mamba's own start: softplus of it is log-uniform in 0.001 to 0.1."""
    dt = torch.exp(torch.empty(channels, device=device).uniform_(math.log(1e-3), math.log(1e-1)))
    return torch.log(torch.expm1(dt))


def _ssd(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    batch, length, n_heads, d_state = (sizes[k] for k in "BLHN")
    head_dim = sizes.get("P", 64)
    inputs = {
        "x": random((batch, length, n_heads, head_dim), device, dtype),
        "dt": random((batch, length, n_heads), device, dtype),
        "A": -torch.empty(n_heads, device=device).uniform_(1, 16),
        "B": random((batch, length, 1, d_state), device, dtype),
        "C": random((batch, length, 1, d_state), device, dtype),
        "D": torch.ones(n_heads, device=device),
        "dt_bias": _dt_bias(n_heads, device),
    }
    row, heads, all_ = slice(0, 1), slice(0, 2), slice(None)
    per_head = (row, all_, heads)
    part: dict[str, Index] = dict.fromkeys(("x", "dt", "out0"), per_head)
    part |= {**dict.fromkeys(("A", "D", "dt_bias"), (heads,)), "B": (row,), "C": (row,)}

    def exact(**given: Tensor) -> tuple[Tensor, ...]:
        return (ssd(**given, dt_softplus=True, backend="portable"),)

    def mambakit() -> Candidate:
        def call(**given: Tensor) -> tuple[Tensor, ...]:
            return (ssd(**given, dt_softplus=True),)

        return Candidate(inputs, call, exact, part)

    def mamba_ssm() -> Candidate:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        def call(**given: Tensor) -> tuple[Tensor, ...]:
            return (mamba_chunk_scan_combined(**given, chunk_size=256, dt_softplus=True),)

        return Candidate(inputs, call, exact, part)

    def fla() -> Candidate:
        # The recurrence alone: step sizes, dt * x, the skip, and B and C of every head are made beforehand.
        from fla.ops.simple_gla import chunk_simple_gla

        dt = F.softplus(inputs["dt"].float() + inputs["dt_bias"])
        expanded = {
            "q": inputs["C"].expand(-1, -1, n_heads, -1).contiguous(),
            "k": inputs["B"].expand(-1, -1, n_heads, -1).contiguous(),
            "v": (inputs["x"] * dt[..., None]).to(dtype),
            "g": dt * inputs["A"],
        }

        def call(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, ...]:
            return (chunk_simple_gla(q, k, v, g, scale=1.0)[0],)

        def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, ...]:
            return (ssd_core(v, g, torch.ones_like(g), k, q, backend="portable"),)

        return Candidate(expanded, call, recurrence, dict.fromkeys([*expanded, "out0"], per_head))

    wide = n_heads * head_dim
    tokens, size = batch * length, dtype.itemsize
    forward = tokens * (n_heads * (CHUNK * head_dim + 4 * d_state * head_dim) + CHUNK * d_state)
    moved = tokens * size * (2 * wide + 2 * d_state + n_heads)
    both = moved + tokens * size * (3 * wide + 4 * d_state + 2 * n_heads)
    problem = Problem({"fwd": moved, "fwd+bwd": both}, {"fwd": forward, "fwd+bwd": 3 * forward})
    problem.candidates = {"mambakit": mambakit, "mamba_ssm": mamba_ssm, "fla": fla}
    for backend in ("flash", "cudnn"):
        problem.candidates[f"torch_sdpa_{backend}"] = lambda backend=backend: _attention(
            sizes, device, dtype, backend
        )
    return problem


def _attention(sizes: Sizes, device: torch.device, dtype: torch.dtype, backend: str) -> Candidate:
    """Causal attention of the same width, in heads of 128."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[backend]
    shape = (sizes["B"], sizes["H"] // 2, sizes["L"], 128)
    # laid out as projections leave it, (batch, length, heads, channels)
    inputs = {
        name: random((shape[0], shape[2], shape[1], shape[3]), device, dtype).transpose(1, 2)
        for name in ("query", "key", "value")
    }

    def call(**given: Tensor) -> tuple[Tensor, ...]:
        with sdpa_kernel(chosen):
            return (F.scaled_dot_product_attention(**given, is_causal=True),)

    def exact(**given: Tensor) -> tuple[Tensor, ...]:
        with sdpa_kernel(SDPBackend.MATH):
            return (F.scaled_dot_product_attention(**given, is_causal=True),)

    head: Index = (slice(0, 1), slice(0, 1))
    checked = sizes["L"] <= _LONGEST_ATTENTION_CHECK
    return Candidate(inputs, call, exact, dict.fromkeys([*inputs, "out0"], head) if checked else {})


def _mamba3(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    """Mamba-3 with single input and output: everything between a block's projections and its gate."""
    batch, length, n_heads, d_state = (sizes[k] for k in "BLHN")
    head_dim = sizes.get("P", 64)
    n_angles = d_state // 4  # half of the channels turn
    per_token = (batch, length, n_heads)
    dt = F.softplus(torch.randn(per_token, device=device) + _dt_bias(n_heads, device))
    inputs = {
        "x": random((*per_token, head_dim), device, dtype),
        "dt": dt,
        "log_decay": -dt * torch.empty(n_heads, device=device).uniform_(1, 16),
        "trap": torch.randn(per_token, device=device).sigmoid(),
        "B": random((batch, length, 1, 1, d_state), device, dtype),
        "C": random((batch, length, 1, 1, d_state), device, dtype),
        "turn": math.pi * torch.randn(batch, length, n_angles, device=device).tanh(),
        "B_bias": 1 + 0.1 * torch.randn(n_heads, 1, d_state, device=device),
        "C_bias": 1 + 0.1 * torch.randn(n_heads, 1, d_state, device=device),
        "D": torch.ones(n_heads, device=device),
    }
    row, heads, all_ = slice(0, 1), slice(0, 2), slice(None)
    part: dict[str, Index] = dict.fromkeys(("x", "dt", "log_decay", "trap"), (row, all_, heads))
    part |= {"out0": (row, all_, all_, heads), **dict.fromkeys(("B_bias", "C_bias", "D"), (heads,))}
    part |= dict.fromkeys(("B", "C", "turn"), (row,))

    def exact(**given: Tensor) -> tuple[Tensor, ...]:
        return (mamba3_scan(**given, backend="portable")[0],)

    def mambakit() -> Candidate:
        return Candidate(inputs, lambda **given: (mamba3_scan(**given)[0],), exact, part)

    wide = n_heads * head_dim
    tokens, size = batch * length, dtype.itemsize
    forward = tokens * n_heads * (CHUNK * (head_dim + d_state) + 4 * d_state * head_dim)
    numbers = 4 * (3 * n_heads + n_angles)  # float32: dt, decay, trap and turn
    moved = tokens * (size * (2 * wide + 2 * d_state) + numbers)
    both = moved + tokens * (size * (3 * wide + 4 * d_state) + 2 * numbers)
    return Problem(
        {"fwd": moved, "fwd+bwd": both}, {"fwd": forward, "fwd+bwd": 3 * forward}, {"mambakit": mambakit}
    )


def _selective_scan(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    batch, length, d_inner, d_state = (sizes[k] for k in "BLDN")
    spread = torch.empty(d_inner, d_state, device=device).uniform_(0.5, 1.5)
    inputs = {
        "x": random((batch, length, d_inner), device, dtype),
        "dt": random((batch, length, d_inner), device, dtype),
        "A": -torch.arange(1, d_state + 1, device=device) * spread,
        "B": random((batch, length, 1, d_state), device, dtype),
        "C": random((batch, length, 1, d_state), device, dtype),
        "D": torch.ones(d_inner, device=device),
        "z": random((batch, length, d_inner), device, dtype),
        "dt_bias": _dt_bias(d_inner, device),
    }
    row, channels, all_ = slice(0, 1), slice(0, 8), slice(None)
    per_token = (row, all_, channels)
    shared: dict[str, Index] = {"A": (channels,), "D": (channels,), "dt_bias": (channels,)}
    part: dict[str, Index] = dict.fromkeys(("x", "dt", "z", "out0"), per_token)
    part |= {**shared, "B": (row,), "C": (row,)}

    def exact(**given: Tensor) -> tuple[Tensor, ...]:
        return (selective_scan(**given, dt_softplus=True, backend="portable"),)

    def mambakit() -> Candidate:
        def call(**given: Tensor) -> tuple[Tensor, ...]:
            return (selective_scan(**given, dt_softplus=True),)

        return Candidate(inputs, call, exact, part)

    def mamba_ssm() -> Candidate:
        # its own layout, channels first
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        first = {
            **{k: v for k, v in inputs.items() if k in shared},
            **{k: inputs[k].transpose(1, 2).contiguous() for k in ("x", "dt", "z")},
            **{k: inputs[k].permute(0, 2, 3, 1).contiguous() for k in ("B", "C")},
        }

        def call(x: Tensor, dt: Tensor, dt_bias: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
            return (selective_scan_fn(u=x, delta=dt, delta_bias=dt_bias, delta_softplus=True, **rest),)

        def transposed(**given: Tensor) -> tuple[Tensor, ...]:
            given |= {k: given[k].transpose(1, 2) for k in ("x", "dt", "z")}
            given |= {k: given[k].permute(0, 3, 1, 2) for k in ("B", "C")}
            return (exact(**given)[0].transpose(1, 2),)

        where: dict[str, Index] = dict.fromkeys(("x", "dt", "z", "out0"), (row, channels))
        return Candidate(first, call, transposed, where | {**shared, "B": (row,), "C": (row,)})

    tokens, size = batch * length, dtype.itemsize
    moved = tokens * size * (4 * d_inner + 2 * d_state)
    both = moved + tokens * size * (7 * d_inner + 4 * d_state)
    return Problem(
        {"fwd": moved, "fwd+bwd": both},
        {"fwd": 0, "fwd+bwd": 0},
        {"mambakit": mambakit, "mamba_ssm": mamba_ssm},
    )


def _causal_conv1d(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    batch, length, channels = (sizes[k] for k in "BLD")
    inputs = {
        "x": random((batch, length, channels), device, dtype),
        "weight": random((channels, WIDTH), device, dtype) / WIDTH**0.5,
        "bias": random((channels,), device, dtype),
    }
    row, few = slice(0, 1), slice(0, 16)
    per_token = (row, slice(None), few)
    part: dict[str, Index] = {"x": per_token, "out0": per_token, "weight": (few,), "bias": (few,)}

    def exact(**given: Tensor) -> tuple[Tensor, ...]:
        return (causal_conv1d(**given, activation="silu", backend="portable"),)

    def mambakit() -> Candidate:
        def call(**given: Tensor) -> tuple[Tensor, ...]:
            return (causal_conv1d(**given, activation="silu"),)

        return Candidate(inputs, call, exact, part)

    def original() -> Candidate:
        from causal_conv1d import causal_conv1d_fn

        def call(x: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
            return (causal_conv1d_fn(x.transpose(1, 2), **rest, activation="silu").transpose(1, 2),)

        return Candidate(inputs, call, exact, part)

    moved = 2 * batch * length * channels * dtype.itemsize
    return Problem(
        {"fwd": moved, "fwd+bwd": 2.5 * moved},
        {"fwd": 0, "fwd+bwd": 0},
        {"mambakit": mambakit, "causal_conv1d": original},
    )


def _gated_rms_norm(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    rows, channels = sizes["R"], sizes["D"]
    inputs = {
        "x": random((rows, channels), device, dtype),
        "weight": 1 + 0.1 * random((channels,), device, torch.float32),
        "z": random((rows, channels), device, dtype),
    }
    few = (slice(0, 64),)
    part: dict[str, Index] = {"x": few, "z": few, "out0": few, "weight": (slice(None),)}

    def exact(**given: Tensor) -> tuple[Tensor, ...]:
        return (gated_rms_norm(**given, backend="portable"),)

    def mambakit() -> Candidate:
        return Candidate(inputs, lambda **given: (gated_rms_norm(**given),), exact, part)

    def mamba_ssm() -> Candidate:
        from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn

        def call(**given: Tensor) -> tuple[Tensor, ...]:
            return (rmsnorm_fn(**given, bias=None, eps=1e-5, norm_before_gate=False),)

        return Candidate(inputs, call, exact, part)

    one = rows * channels * dtype.itemsize
    return Problem(
        {"fwd": 3 * one, "fwd+bwd": 8 * one},
        {"fwd": 0, "fwd+bwd": 0},
        {"mambakit": mambakit, "mamba_ssm": mamba_ssm},
    )


def _ssd_step(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    batch, n_heads, d_state = (sizes[k] for k in "BHN")
    head_dim = sizes.get("P", 64)
    inputs = {
        "state": torch.randn(batch, n_heads, head_dim, d_state, device=device),
        "x": random((batch, n_heads, head_dim), device, dtype),
        "dt": random((batch, n_heads), device, dtype),
        "A": -torch.empty(n_heads, device=device).uniform_(1, 16),
        "B": random((batch, 1, d_state), device, dtype),
        "C": random((batch, 1, d_state), device, dtype),
        "D": torch.ones(n_heads, device=device),
        "dt_bias": _dt_bias(n_heads, device),
    }
    row, heads = slice(0, 1), slice(0, 2)
    part: dict[str, Index] = dict.fromkeys(("state", "x", "dt", "out0", "out1"), (row, heads))
    part |= {**dict.fromkeys(("A", "D", "dt_bias"), (heads,)), "B": (row,), "C": (row,)}

    def exact(**given: Tensor) -> tuple[Tensor, ...]:
        return ssd_step(**given, dt_softplus=True, backend="portable")

    def mambakit() -> Candidate:
        def call(**given: Tensor) -> tuple[Tensor, ...]:
            return ssd_step(**given, dt_softplus=True, inplace=True)

        return Candidate(inputs, call, exact, part, writes=("state",))

    def mamba_ssm() -> Candidate:
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update

        channels = (n_heads, head_dim)
        expanded = inputs | {
            "dt": inputs["dt"][..., None].expand(batch, *channels),
            "A": inputs["A"][:, None, None].expand(*channels, d_state),
            "D": inputs["D"][:, None].expand(channels),
            "dt_bias": inputs["dt_bias"][:, None].expand(channels),
        }

        def call(state: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
            return selective_state_update(state, **rest, dt_softplus=True), state

        def unexpanded(**given: Tensor) -> tuple[Tensor, ...]:
            given |= {k: given[k][..., 0] for k in ("dt", "D", "dt_bias")} | {"A": given["A"][..., 0, 0]}
            return exact(**given)

        return Candidate(expanded, call, unexpanded, part, writes=("state",))

    moved = 2 * 4 * batch * n_heads * head_dim * d_state
    passes = ("eager", "graph", "step")
    return Problem(
        dict.fromkeys(passes, moved),
        dict.fromkeys(passes, 0),
        {"mambakit": mambakit, "mamba_ssm": mamba_ssm},
    )


PROBLEMS: dict[str, Callable[[Sizes, torch.device, torch.dtype], Problem]] = {
    "ssd": _ssd,
    "mamba3": _mamba3,
    "selective_scan": _selective_scan,
    "causal_conv1d": _causal_conv1d,
    "gated_rms_norm": _gated_rms_norm,
    "ssd_step": _ssd_step,
}
