"""Starts of the state, beside the papers' formulas and HiPPO's matrix, and as the blocks then behave."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mambakit.core import init
from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.blocks import Mamba1, Mamba2, Mamba3
from mambakit.core.state import State
from mambakit.core.testing import check_streaming

COMPLEX = list(init.COMPLEX_STARTS)


def test_s4d_lin_and_inv_entry_by_entry() -> None:
    size = 8
    for n in range(size // 2):
        assert complex(init.s4d_lin(size)[n]) == pytest.approx(complex(-0.5, math.pi * n), rel=1e-15)
        wanted = complex(-0.5, size / math.pi * (size / (2 * n + 1) - 1))
        assert complex(init.s4d_inv(size)[n]) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_s4d_legs_are_the_eigenvalues_of_the_normal_part_of_hippo(size: int) -> None:
    A, _ = init.hippo_legs(size)
    P = torch.sqrt(torch.arange(size, dtype=torch.float64) + 0.5)
    normal = (A + torch.outer(P, P)).numpy()
    np.testing.assert_allclose(normal @ normal.T, normal.T @ normal, atol=1e-9)  # it is a normal matrix
    found = np.linalg.eigvals(normal)
    found = found[found.imag > 1e-9]
    found = found[np.argsort(-found.imag)]
    ours = init.s4d_legs(size).numpy()
    np.testing.assert_allclose(ours, found[: size // 2], rtol=1e-9, atol=1e-9)
    assert (ours.real == -0.5).all()


@pytest.mark.parametrize("size", [1, 4, 12])
def test_s4d_real_are_the_eigenvalues_of_hippo_itself(size: int) -> None:
    A, _ = init.hippo_legs(size)
    found = np.sort_complex(np.linalg.eigvals(A.numpy()))[::-1]
    np.testing.assert_allclose(found.imag, 0, atol=1e-6)
    np.testing.assert_allclose(init.s4d_real(1, size)[0].double().numpy(), found.real, rtol=1e-9)


@pytest.mark.parametrize("size", [32, 128, 512])
def test_s4d_inv_comes_to_s4d_legs_with_more_channels(size: int) -> None:
    """What it rests on (Gu et al. 2022, section 4): the fastest of LegS comes to N^2 / pi."""
    ratio = float(init.s4d_inv(size).imag[0] / init.s4d_legs(size).imag[0])
    assert abs(ratio - 1) < 1.1 / size


def test_random_starts_are_in_their_ranges() -> None:
    torch.manual_seed(0)
    A = init.log_uniform_decay(1.0, 16.0, 4000, 5)
    assert -16 <= A.min() < -15.9
    assert -1.01 < A.max() <= -1
    assert (-A).log().mean().item() == pytest.approx(math.log(4), abs=0.02)
    turns = init.random_frequencies(20_000)
    assert (turns.real == -0.5).all()
    assert turns.imag.min() >= 0
    assert turns.imag.mean().item() == pytest.approx(math.pi * 5000, rel=0.02)
    with pytest.raises(ValueError, match="0 < low <= high"):
        init.log_uniform_decay(0.0, 1.0, 3)


@pytest.mark.parametrize("name", [*COMPLEX])
@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_another_unit_of_time_has_the_same_products(name: str, n: int) -> None:
    torch.manual_seed(0)
    start = init.turning(name, n)
    torch.manual_seed(0)
    A, dt = init.COMPLEX_STARTS[name](2 * n), 0.003
    assert start.turns.abs().max() <= 0.95 + 1e-12
    there = torch.complex(torch.full_like(start.turns, -start.decay), math.pi * start.turns)
    torch.testing.assert_close(torch.exp(dt * start.unit * there), torch.exp(dt * A), rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("decay", ["heavy_tail", "softplus"])
def test_mamba3s_state_begins_as_that_complex_diagonal_system(name: str, decay: str) -> None:
    """By what a token whose projection is nothing makes of a state: exp(dt A), and how much enters."""
    options = {"d_model": 8, "head_dim": 4, "d_state": 12, "rope_fraction": 1, "decay": decay}
    torch.manual_seed(0)
    block = Mamba3(**options, A_init=name).double()  # type: ignore[arg-type]
    torch.manual_seed(0)
    plain = Mamba3(**options, bias=True).double()  # type: ignore[arg-type]
    drawn = block.in_proj.bias[-6:].tanh() * math.pi
    unit = F.softplus(block.dt_bias) / F.softplus(plain.dt_bias)
    # parameters begin in float32
    torch.testing.assert_close(unit, unit[:1].expand(4), rtol=1e-6, atol=0)
    A = torch.complex(torch.full_like(drawn, -0.5), drawn * unit[0])
    if name != "random":
        wanted = init.COMPLEX_STARTS[name](12)
        torch.testing.assert_close(A, wanted, rtol=1e-6, atol=1e-6)
    dt = F.softplus(plain.dt_bias)
    state = block.init_state(1)
    state = State({**state, "ssm": torch.randn_like(state["ssm"]), "value": torch.zeros_like(state["value"])})
    _, after = block.step(torch.zeros(1, 8, dtype=torch.float64), state)
    decayed = after["ssm"] / state["ssm"]
    torch.testing.assert_close(
        decayed, (-0.5 * dt).exp()[None, :, None, None].expand_as(decayed), rtol=1e-6, atol=0
    )
    turned = after["angles"]
    gap = torch.remainder(turned - dt[:, None] * A.imag + math.pi, 2 * math.pi) - math.pi
    assert gap.abs().max() < 1e-6
    # B starts as ones in the published unit of time, and a pair of ones is turned on its circle
    lengths = after["key"].unflatten(-1, (6, 2)).square().sum(-1).sqrt() * unit[0]
    torch.testing.assert_close(lengths, torch.full_like(lengths, math.sqrt(2)), rtol=1e-6, atol=0)
    check_streaming(block, torch.randn(2, 7, 8, dtype=torch.float64), [3], atol=1e-9)


@torch.no_grad()
def test_real_starts_of_the_blocks() -> None:
    torch.manual_seed(0)
    one = Mamba1(d_model=8, d_state=6, A_init="hippo-legs")
    torch.testing.assert_close(-one.A_log.exp(), init.s4d_real(16, 6))
    torch.manual_seed(0)
    plain = Mamba1(d_model=8, d_state=6)
    ratio = one.x_proj.weight / plain.x_proj.weight
    n = torch.arange(6)
    expected = torch.cat([torch.ones(1), ((2 * n + 1) / 6).sqrt(), torch.ones(6)])
    torch.testing.assert_close(ratio, expected[:, None].expand_as(ratio))
    one = Mamba1(d_model=8, d_state=6, A_init="random")
    assert one.A_log.min() >= 0
    assert one.A_log.max() <= math.log(6) + 1e-6
    assert one.A_log.std() > 0.3
    two = Mamba2(d_model=8, head_dim=2, A_init="s4d-real")
    torch.testing.assert_close(-two.A_log.exp(), -torch.arange(1.0, 9))
    two = Mamba2(d_model=8, head_dim=2, A_init="random", A_init_range=(2.0, 4.0))
    assert 2 - 1e-6 <= two.A_log.exp().min() < two.A_log.exp().max() <= 4 + 1e-6
    three = Mamba3(d_model=8, head_dim=2, d_state=4, A_init="s4d-real").double()
    state = three.init_state(1).map(torch.ones_like)
    state = State({**state, "value": torch.zeros_like(state["value"])})
    _, after = three.step(torch.zeros(1, 8, dtype=torch.float64), state)
    A = after["ssm"][0, :, 0, 0].log() / F.softplus(three.dt_bias)
    torch.testing.assert_close(A, -torch.arange(1.0, 9).double(), rtol=1e-5, atol=0)


def test_starts_come_from_config() -> None:
    config = BackboneConfig.from_yaml(
        "{d_model: 8, layers: [mamba3, mamba1], block_options: {mamba3: {A_init: s4d-inv, head_dim: 4, "
        "d_state: 8, rope_fraction: 1}, mamba1: {A_init: random, d_state: 4}}}"
    )
    y, _ = Backbone(config)(torch.randn(2, 30, 8))
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (Mamba1, {"A_init": "s4d-lin"}, "A is real here, and mamba3 holds complex ones"),
        (Mamba1, {"A_init": "zero"}, "'random', got 'zero'$"),
        (Mamba2, {"A_init": "s4d-legs", "head_dim": 4}, "A is real here"),
        (Mamba3, {"A_init": "hippo", "head_dim": 4}, "expected one of s4d-real, s4d-lin"),
        (Mamba3, {"A_init": "s4d-lin", "head_dim": 4, "rope_fraction": 0}, "leaves no pair"),
        (Mamba3, {"A_init": "s4d-lin", "head_dim": 4, "A_init_range": (1, 2)}, "give one"),
    ],
)
def test_starts_that_a_block_cannot_hold_are_refused(
    block: type, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        block(d_model=8, **options)
