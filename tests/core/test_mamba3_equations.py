"""Mamba-3 against its equations, written out token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.blocks import Mamba3
from mambakit.core.training import parameter_groups

WIDTH, LENGTH = 12, 7


def make(**options: Any) -> Mamba3:
    """A block no parameter of which is as it starts."""
    torch.manual_seed(0)
    block = Mamba3(d_model=WIDTH, head_dim=4, d_state=6, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        block.dt_bias.add_(2.0)
    return block


def rms(v: Tensor, weight: Tensor) -> Tensor:
    return weight * v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def turned(v: Tensor, theta: Tensor) -> Tensor:
    """Channels ``2i, 2i+1`` of ``v`` ``(heads, 6)`` by ``theta`` ``(heads, n_angles)``."""
    n = 2 * theta.shape[1]
    pairs = torch.view_as_complex(v[:, :n].reshape(len(v), -1, 2).contiguous())
    pairs = torch.view_as_real(pairs * torch.exp(1j * theta)).flatten(1)
    return torch.cat([pairs, v[:, n:]], dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope_fraction": 1.0, "n_groups": 3, "decay": "softplus", "dt_limit": (0.2, 1.5)},
        {"mimo_rank": 3, "A_floor": 1.1},
        {"mimo_rank": 2, "norm": True, "n_groups": 2},
        {"norm": True, "A_init_range": (0.5, 2.0)},
    ],
    ids=str,
)
def test_by_its_equations(options):
    block = make(**options)
    rank, groups, heads = block.mimo_rank, block.n_groups, 6
    n_angles = 3 if options.get("rope_fraction") == 1.0 else 1
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    one = x.new_ones(heads, rank, 4)
    up, gate_up, down = (one if m is None else m for m in (block.mimo_x, block.mimo_z, block.mimo_o))
    bc = rank * groups * 6
    theta, S, before = torch.zeros(heads, n_angles).double(), torch.zeros(heads, 4, 6).double(), 0.0
    outputs = []
    for token in x[0]:
        row = block.in_proj.weight @ token
        z, u, B, C, dt, a, trap, angles = row.split([24, 24, bc, bc, heads, heads, heads, n_angles])
        B, C = (
            rms(v.view(rank, groups, 6), norm.weight).repeat_interleave(heads // groups, dim=1)
            for v, norm in ((B, block.B_norm), (C, block.C_norm))
        )  # [r, h, n]
        dt = F.softplus(dt + block.dt_bias).clamp(*options.get("dt_limit", (0, math.inf)))
        a = a + (0.0 if block.A_bias is None else block.A_bias)
        heavy = torch.stack([1 + v if v >= 0 else 1 / (1 - v) for v in a])
        A = -(F.softplus(a) if options.get("decay") == "softplus" else heavy)
        alpha, trap = torch.exp(dt * A.clamp(max=-options.get("A_floor", 1e-4))), trap.sigmoid()
        theta = theta + math.pi * angles.tanh() * dt[:, None]
        values = [u.view(heads, 4) * up[:, r] for r in range(rank)]
        keys = [turned(B[r] + block.B_bias[:, r], theta) for r in range(rank)]
        now = sum(v[:, :, None] * k[:, None] for v, k in zip(values, keys, strict=True))
        weights = (alpha, (1 - trap) * dt * alpha, trap * dt)
        alpha, beta, gamma = (w[:, None, None] for w in weights)
        S, before = alpha * S + beta * before + gamma * now, now
        y = torch.zeros(heads, 4).double()
        for r in range(rank):
            out = (S @ turned(C[r] + block.C_bias[:, r], theta)[:, :, None])[..., 0]
            out = out + block.D[:, None] * values[r]
            if block.norm is not None:
                out = rms(out, block.norm.weight.view(heads, 4))
            y = y + out * F.silu(z.view(heads, 4) * gate_up[:, r]) * down[:, r]
        outputs.append(block.out_proj.weight @ y.flatten())
    actual, state = block(x)
    torch.testing.assert_close(actual[0], torch.stack(outputs), atol=1e-12, rtol=0)
    torch.testing.assert_close(state["ssm"][0], S, atol=1e-12, rtol=0)
    torch.testing.assert_close(state["angles"][0].cos(), theta.cos(), atol=1e-12, rtol=0)


def test_float32_is_kept_and_bfloat16_takes_no_part_in_the_state():
    """Under autocast the projections alone are rounded: what follows of them is as exact as in float32."""
    torch.manual_seed(0)
    block = Mamba3(d_model=32, head_dim=8, d_state=8, mimo_rank=2)
    x = torch.randn(2, 50, 32)
    exact, _ = block.double()(x.double())
    actual, state = block.float()(x)
    assert all(tensor.dtype == torch.float32 for _, tensor in state.tensors())
    assert (actual - exact).abs().max() < 1e-5 * exact.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, state = block(x)
        for t in range(3):
            _, state = block.step(x[:, t], state)
    assert all(tensor.dtype == torch.float32 for _, tensor in state.tensors())
    assert (rough.float() - exact).abs().max() < 4 * 2**-8 * exact.abs().max()


def test_what_does_not_decay_in_training():
    block = Mamba3(d_model=WIDTH, head_dim=4, d_state=6, mimo_rank=2)
    decayed, kept = (group["params"] for group in parameter_groups(block, 0.1))
    names = {id(p): name for name, p in block.named_parameters()}
    assert {names[id(p)] for p in decayed} == {
        "in_proj.weight", "out_proj.weight", "mimo_x", "mimo_z", "mimo_o",
    }  # fmt: skip
    assert {"B_bias", "C_bias", "dt_bias", "D"} <= {names[id(p)] for p in kept}
