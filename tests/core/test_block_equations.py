"""Blocks against their equations, written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mambakit.core.blocks import (
    Attention,
    Bidirectional,
    Block,
    RMSNorm,
    build_block,
)

OPTIONS = {"mamba1": {"d_state": 4}, "attention": {"n_heads": 2}, "mlp": {}}


def small(kind: str) -> Block:
    torch.manual_seed(0)
    return build_block(kind, 16, OPTIONS[kind]).double()


def sample(batch: int = 2, length: int = 5, d_model: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, d_model, generator=generator, dtype=torch.float64)


def test_rms_norm():
    norm = RMSNorm(16, eps=0.1).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(16.0))
    x = sample()
    torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), norm.weight, 0.1))


def test_mlp_is_swiglu():
    block = small("mlp")
    assert block.d_hidden == 48
    x = sample()
    gate, up = (x @ block.in_proj.weight.T).split(48, dim=-1)
    torch.testing.assert_close(block(x)[0], (F.silu(gate) * up) @ block.out_proj.weight.T)


def test_mamba1_by_its_equations():
    block = small("mamba1")
    x = sample()
    u, z = (x @ block.in_proj.weight.T).split(32, dim=-1)
    past = F.pad(u, (0, 0, 3, 0))
    conv = sum(past[:, k : k + 5] * block.conv_weight[:, k] for k in range(4)) + block.conv_bias
    u = F.silu(conv)
    dt, B, C = (u @ block.x_proj.weight.T).split([1, 4, 4], dim=-1)
    dt = F.softplus(dt @ block.dt_proj.weight.T + block.dt_proj.bias)
    h = torch.zeros(2, 32, 4, dtype=torch.float64)
    ys = []
    for t in range(5):
        h = torch.exp(dt[:, t, :, None] * -torch.exp(block.A_log)) * h
        h = h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + block.D * u[:, t])
    y = (torch.stack(ys, 1) * F.silu(z)) @ block.out_proj.weight.T
    actual, state = block(x)
    torch.testing.assert_close(actual, y, atol=1e-12, rtol=0)
    torch.testing.assert_close(state["ssm"], h, atol=1e-12, rtol=0)
    torch.testing.assert_close(state["conv"], past[:, 5:].transpose(1, 2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrences_by_their_equations(kind):
    """Cho et al. 2014, equations 5 to 8, with the reset behind the product; Gers et al. 2000."""
    torch.manual_seed(0)
    block, x = build_block(kind, 16, {"d_hidden": 6}).double(), sample()
    in_weight, weight, in_bias, bias = block.rnn.parameters()
    h = c = torch.zeros(2, 6, dtype=torch.float64)
    ys = []
    for t in range(5):
        of_x = (x[:, t] @ in_weight.T + in_bias).split(6, dim=-1)
        of_h = (h @ weight.T + bias).split(6, dim=-1)
        if kind == "gru":
            reset, update = (torch.sigmoid(a + b) for a, b in zip(of_x[:2], of_h[:2], strict=True))
            h = (1 - update) * torch.tanh(of_x[2] + reset * of_h[2]) + update * h
        else:
            enter, forget, new, leave = (a + b for a, b in zip(of_x, of_h, strict=True))
            c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
            h = torch.sigmoid(leave) * torch.tanh(c)
        ys.append(h @ block.out_proj.weight.T + block.out_proj.bias)
    y, state = block(x)
    torch.testing.assert_close(y, torch.stack(ys, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(state["hidden"], h, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_its_equations(n_kv_heads, causal):
    torch.manual_seed(0)
    block = Attention(d_model=16, n_heads=4, n_kv_heads=n_kv_heads, causal=causal).double()
    x = sample()
    q, k, v = (x @ block.in_proj.weight.T).split([16, 4 * n_kv_heads, 4 * n_kv_heads], dim=-1)
    out = torch.zeros(2, 5, 4, 4, dtype=torch.float64)
    for head in range(4):
        kv = head * n_kv_heads // 4

        def turned(part, i):
            pair = torch.complex(part[..., 4 * i : 4 * i + 2], part[..., 4 * i + 2 : 4 * i + 4])
            angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 10000.0**-0.5]).double()
            return pair * torch.polar(torch.ones_like(angle), angle)

        scores = (turned(q, head)[:, :, None] * turned(k, kv)[:, None].conj()).real.sum(-1) / 2.0
        if causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        out[:, :, head] = scores.softmax(-1) @ v[..., 4 * kv : 4 * kv + 4]
    expected = out.flatten(2) @ block.out_proj.weight.T
    torch.testing.assert_close(block(x)[0], expected, atol=1e-7, rtol=0)


def test_attention_by_distance_only():
    """Rotary positions: where a sequence stands in a longer stream does not matter to itself."""
    block = small("attention")
    x = sample(length=6)
    whole = torch.cat([x, x], dim=1)
    seq_idx = torch.tensor([[0] * 6 + [1] * 6] * 2, dtype=torch.int32)
    y, _ = block(whole, seq_idx=seq_idx)
    torch.testing.assert_close(y[:, 6:], y[:, :6], atol=1e-12, rtol=0)


def test_attention_keeps_only_what_it_may_look_at():
    block = small("attention")
    _, state = block(sample(batch=3, length=7), lengths=torch.tensor([4, 2, 0]))
    assert state["key"].shape == (3, 4, 2, 8)
    assert state["valid"].tolist() == [[True] * 4, [True] * 2 + [False] * 2, [False] * 4]
    _, state = block(sample(), seq_idx=torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.int32))
    assert state["valid"].sum(1).tolist() == [3, 1]
    assert state["key"].shape[1] == 3


@pytest.mark.parametrize("share", ["none", "projections", "all"])
@pytest.mark.parametrize("merge", ["sum", "mean", "concat", "gated"])
def test_bidirectional_is_both_directions(merge, share):
    torch.manual_seed(0)
    block = Bidirectional(d_model=16, inner="mamba1", merge=merge, share=share).double()
    if merge == "gated":
        nn.init.normal_(block.merge.gate_proj.weight)
    x = sample()
    reverse_reader = block.ahead if share == "all" else block.back
    ahead = block.ahead(x)[0]
    back = reverse_reader(x.flip(1))[0].flip(1)
    if merge == "gated":
        first, second = block.merge.gate_proj.weight.chunk(2)
        gate = torch.sigmoid(x @ (first - second).T)
    expected = {
        "sum": lambda: ahead + back,
        "mean": lambda: (ahead + back) / 2,
        "concat": lambda: torch.cat([ahead, back], -1) @ block.merge.out_proj.weight.T,
        "gated": lambda: gate * ahead + (1 - gate) * back,
    }[merge]()
    torch.testing.assert_close(block(x)[0], expected)
    if share != "all":  # weights of their own
        assert (block.ahead(x)[0] - block.back(x)[0]).abs().max() > 1e-3
