from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mambakit.core import init
from mambakit.core.blocks import Mamba1, Mamba2, Mamba3


def test_s4d_real_is_the_negative_integers():
    A = init.s4d_real(3, 5)
    assert A.tolist() == [[-1.0, -2.0, -3.0, -4.0, -5.0]] * 3


def test_hippo_legs_entry_by_entry():
    A, B = init.hippo_legs(6)
    for n in range(6):
        assert B[n].item() == pytest.approx(math.sqrt(2 * n + 1), rel=1e-15)
        for k in range(6):
            expected = -math.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1) if n == k else 0
            assert A[n, k].item() == pytest.approx(expected, rel=1e-15)


def test_hippo_legs_diagonal_is_s4d_real():
    diagonal, B = init.hippo_legs(7, diagonal=True)
    A, B_full = init.hippo_legs(7)
    assert torch.equal(diagonal, A.diagonal())
    assert torch.equal(diagonal.float(), init.s4d_real(1, 7)[0])
    assert torch.equal(B, B_full)


def test_hippo_legs_remembers_legendre_coefficients():
    """d/dt c = (A c + B f) / t keeps the projection of the whole past onto Legendre polynomials."""
    n = 4
    A, B = init.hippo_legs(n)
    steps = 2000
    c = torch.zeros(n, dtype=torch.float64)
    c[0] = 1.0  # f(0) = 1
    identity = torch.eye(n, dtype=torch.float64)
    for k in range(1, steps):  # implicit Euler on t = k / steps, f(t) = 1 + t
        c = torch.linalg.solve(identity - A / k, c + B * (1 + k / steps) / k)
    # 1 + t on [0, 1] in shifted Legendre polynomials sqrt(2n+1) P_n(2t - 1): 3/2, 1/(2 sqrt 3), 0, 0
    expected = torch.tensor([1.5, 1 / (2 * math.sqrt(3)), 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(c, expected, atol=2e-3, rtol=0)


def test_inverse_softplus():
    y = torch.logspace(-6, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(F.softplus(init.inverse_softplus(y)), y, rtol=1e-9, atol=0)


def test_dt_bias_is_log_uniform():
    torch.manual_seed(0)
    dt = F.softplus(init.dt_bias(200_000).double())
    assert dt.min() >= 0.001 * (1 - 1e-3)
    assert dt.max() <= 0.1 * (1 + 1e-3)
    position = (dt.log() - math.log(0.001)) / math.log(100)  # uniform in [0, 1]
    quantiles = position.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9]).double(), atol=0.01, rtol=0)


def test_dt_bias_has_a_floor():
    dt = F.softplus(init.dt_bias(1000, dt_min=1e-8, dt_max=1e-7, dt_floor=1e-3))
    torch.testing.assert_close(dt, torch.full_like(dt, 1e-3), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="0 < dt_min <= dt_max"):
        init.dt_bias(3, dt_min=0.1, dt_max=0.01)


def test_uniform_decay():
    torch.manual_seed(0)
    A = init.uniform_decay(100_000)
    assert -16 <= A.min() < -15.9
    assert -1.1 < A.max() <= -1
    assert A.mean().item() == pytest.approx(-8.5, abs=0.05)
    with pytest.raises(ValueError, match="0 < low <= high"):
        init.uniform_decay(3, 0.0, 1.0)


def test_dt_projection():
    weight = torch.empty(4000, 9)
    init.dt_projection_(weight, scale=0.5)
    assert 0.99 * 0.5 / 3 < weight.abs().max() <= 0.5 / 3
    assert weight.std().item() == pytest.approx(0.5 / 3 / math.sqrt(3), rel=0.02)
    init.dt_projection_(weight, mode="constant")
    torch.testing.assert_close(weight, torch.full_like(weight, 1 / 3))
    with pytest.raises(ValueError, match="'random' or 'constant', got 'zero'"):
        init.dt_projection_(weight, mode="zero")


def test_convolution_starts_like_torch():
    torch.manual_seed(0)
    theirs = nn.Conv1d(5000, 5000, 4, groups=5000)
    weight, bias = torch.empty(5000, 4), torch.empty(5000)
    init.convolution_(weight, bias)
    for ours, reference in ((weight, theirs.weight), (bias, theirs.bias)):
        assert ours.std().item() == pytest.approx(reference.std().item(), rel=0.03)
        assert ours.abs().max() <= 0.5


def test_only_output_projections_are_rescaled():
    module = nn.ModuleDict({"a": nn.ModuleDict({"out_proj": nn.Linear(3, 3), "in_proj": nn.Linear(3, 3)})})
    before = {name: p.clone() for name, p in module.named_parameters()}
    init.rescale_output_projections_(module, 16)
    for name, p in module.named_parameters():
        factor = 0.25 if name == "a.out_proj.weight" else 1.0
        torch.testing.assert_close(p, before[name] * factor)


def test_blocks_start_as_published():
    torch.manual_seed(0)
    one = Mamba1(d_model=64)
    torch.testing.assert_close(-torch.exp(one.A_log), init.s4d_real(128, 16))
    assert one.dt_rank == 4
    assert one.dt_proj.weight.abs().max() <= 0.5
    dt = F.softplus(one.dt_proj.bias)
    assert dt.min() >= 0.000999
    assert dt.max() <= 0.1001
    assert torch.equal(one.D, torch.ones(128))
    two = Mamba2(d_model=64, head_dim=2, A_init_range=(2.0, 4.0))
    assert 2 <= torch.exp(two.A_log).min() < torch.exp(two.A_log).max() <= 4
    dt = F.softplus(two.dt_bias)
    assert dt.min() >= 0.000999
    assert dt.max() <= 0.1001
    assert torch.equal(two.D, torch.ones(64))
    assert torch.equal(two.norm_weight, torch.ones(128))
    three = Mamba3(d_model=64, head_dim=2, mimo_rank=4)
    dt = F.softplus(three.dt_bias)
    assert dt.min() >= 0.000999
    assert dt.max() <= 0.1001
    starts = {"D": 1, "B_bias": 1, "C_bias": 1, "mimo_x": 0.25, "mimo_z": 1, "mimo_o": 0.25}
    for name, value in starts.items():
        assert torch.equal(getattr(three, name), torch.full_like(getattr(three, name), value)), name


@pytest.mark.parametrize("decay", ["heavy_tail", "softplus"])
def test_mamba3s_decay_starts_where_it_is_asked_to(decay):
    """By the decay of the state at a token whose projection is nothing: ``exp(A dt)``."""
    torch.manual_seed(0)
    block = Mamba3(d_model=8, head_dim=1, d_state=2, decay=decay, A_init_range=(0.2, 5.0)).double()
    state = block.init_state(1).map(torch.ones_like)
    state = type(state)({**state, "value": torch.zeros_like(state["value"])})
    _, after = block.step(torch.zeros(1, 8, dtype=torch.float64), state)
    A = after["ssm"][0, :, 0, 0].log() / F.softplus(block.dt_bias)
    assert -5.0 <= A.min() < -2.0
    assert -2.0 < A.max() <= -0.2
