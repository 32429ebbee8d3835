"""Parametric heads: their likelihoods and quantiles are the library's, and they learn heavy tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mambakit.core.distributions import DistributionHead, forecast_head, student_t_quantile
from mambakit.core.heads import QuantileHead

LEVELS = (0.001, 0.025, 0.1, 0.3, 0.5, 0.6, 0.9, 0.975, 0.999)
FAMILIES = ("normal", "student-t")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def output_of(location: float, scale: float, df: float) -> torch.Tensor:
    return torch.tensor([[location, scale, df]], dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(level=st.floats(1e-5, 1 - 1e-5), df=st.floats(2.0, 1e4))
def test_student_t_quantiles_are_scipys(level: float, df: float) -> None:
    found = student_t_quantile(np.array(level), np.array(df))
    assert found == pytest.approx(stats.t.ppf(level, df), rel=1e-7, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(location=st.floats(-5, 5), scale=st.floats(0.01, 10), df=st.floats(2.0, 100.0))
def test_quantiles_are_scipys(location: float, scale: float, df: float) -> None:
    made = DistributionHead(d_model=2, quantiles=LEVELS).to_quantiles(output_of(location, scale, df))
    wanted = stats.t.ppf(LEVELS, df, loc=location, scale=scale)
    np.testing.assert_allclose(made[0].numpy(), wanted, rtol=1e-6, atol=1e-6 * scale)
    normal = DistributionHead(d_model=2, family="normal", quantiles=LEVELS)
    made = normal.to_quantiles(output_of(location, scale, df)[:, :2])
    np.testing.assert_allclose(
        made[0].numpy(), stats.norm.ppf(LEVELS, location, scale), rtol=1e-6, atol=1e-6 * scale
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_scipys_likelihoods(family: str) -> None:
    head = DistributionHead(d_model=4, family=family, d_output=2).double()
    output = head(3 * torch.randn(7, 4, dtype=torch.float64))
    location, scale = output[..., 0], output[..., 1]
    target = location + scale * (8 * torch.rand(7, 2, dtype=torch.float64) - 4)
    at = (target.detach().numpy(), *(x.detach().numpy() for x in (location, scale)))
    if family == "normal":
        wanted = -stats.norm.logpdf(*at)
    else:
        wanted = -stats.t.logpdf(at[0], output[..., 2].detach().numpy(), *at[1:])
    np.testing.assert_allclose(head.losses(output, target)[..., 0].detach().numpy(), wanted)
    assert head.loss(output, target).item() == pytest.approx(wanted.mean())
    distribution = head.distribution(output)
    torch.testing.assert_close(distribution.log_prob(target), torch.tensor(-wanted))


@pytest.mark.parametrize("family", FAMILIES)
def test_moving_the_output_moves_the_distribution(family: str) -> None:
    head = DistributionHead(d_model=4, family=family, quantiles=LEVELS)
    output = head(torch.randn(5, 4))
    shift, scale = torch.randn(5, 1), torch.rand(5, 1) + 0.5
    moved = head.to_quantiles(head.moved(output, shift, scale))
    torch.testing.assert_close(moved, head.to_quantiles(output) * scale[..., None] + shift[..., None])
    assert (moved.diff() > 0).all()
    quantiles = QuantileHead(d_model=4, quantiles=LEVELS)
    output = quantiles(torch.randn(5, 4))
    torch.testing.assert_close(quantiles.moved(output, shift), output + shift[..., None])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("outlier", [1e3, 1e9, -1e15])
def test_gradients_stay_finite(family: str, outlier: float) -> None:
    head = DistributionHead(d_model=4, family=family)
    target = torch.randn(6, 1)
    target[0], target[1] = outlier, torch.nan
    mask = torch.ones(6, dtype=torch.bool)
    mask[1] = False
    head.loss(head(torch.randn(6, 4)), target, mask).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    head.zero_grad()
    head.loss(head(torch.randn(6, 4)), target, torch.zeros(6, dtype=torch.bool)).backward()
    assert head.proj.bias.grad is not None
    assert (head.proj.bias.grad == 0).all()


def test_an_outlier_moves_students_t_little() -> None:
    """Its pull on the location is at most (df + 1) / (2 sqrt(df) scale), and falls beyond that."""
    head = DistributionHead(d_model=1)
    head.begin_at_normal(1.0)
    pulls = []
    for target in (1.0, 3.0, 30.0, 3e3):
        output = head(torch.zeros(1, 1)).detach().requires_grad_()
        head.losses(output, torch.full((1, 1), target)).sum().backward()
        assert output.grad is not None
        pulls.append(abs(float(output.grad[0, 0, 0])))
    assert max(pulls) <= 11 / (2 * 10**0.5)
    assert pulls[3] < pulls[2] < pulls[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_begins_as_said(family: str) -> None:
    head = DistributionHead(d_model=3, family=family, d_output=2, quantiles=LEVELS)
    head.begin_at_normal(0.6)
    made = head.to_quantiles(head(torch.zeros(3)))[1].detach().numpy()
    wanted = stats.norm.ppf(LEVELS, scale=0.6) if family == "normal" else stats.t.ppf(LEVELS, 10, scale=0.6)
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-6)


def test_coverage_is_right_on_heavy_tails() -> None:
    """Student's t finds degrees of freedom and scale of its data; a normal's intervals can't all be right."""
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, 6000)
    target = torch.from_numpy(np.where(side, 2.0, 0.5) * rng.standard_t(3, 6000)).float()[:, None]
    x = torch.nn.functional.one_hot(torch.from_numpy(side), 2).float()
    shares = {}
    for family in FAMILIES:
        head = DistributionHead(d_model=2, family=family, quantiles=(0.005, 0.25, 0.5, 0.75, 0.995))
        head.begin_at_normal(1.0)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(250):
            optimizer.zero_grad()
            head.loss(head(x), target).backward()
            optimizer.step()
        q = head.to_quantiles(head(x)).detach()
        shares[family] = [
            float(((target > q[..., i]) & (target < q[..., -1 - i])).float().mean()) for i in (0, 1)
        ]
    scale, df = head(torch.eye(2))[:, 0, 1:].detach().unbind(-1)
    np.testing.assert_allclose(df, [3, 3], rtol=0.2)
    np.testing.assert_allclose(scale, [0.5, 2.0], rtol=0.08)
    assert shares["student-t"] == pytest.approx([0.99, 0.5], abs=0.01)
    assert shares["normal"][1] > 0.55


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_costs_quantiles_no_digits(family: str) -> None:
    head = DistributionHead(d_model=4, family=family, quantiles=(0.025, 0.5, 0.975))
    output = head(torch.randn(50, 4)).detach()
    wanted = head.to_quantiles(output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.to_quantiles(output)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="family: expected one of normal, student-t, got 'gamma'"):
        DistributionHead(d_model=2, family="gamma")
    with pytest.raises(ValueError, match="quantiles: expected increasing levels"):
        DistributionHead(d_model=2, quantiles=(0.5, 0.1))
    head = forecast_head("normal", d_model=2, quantiles=(0.1, 0.9), d_output=3)
    assert isinstance(head, DistributionHead)
    with pytest.raises(ValueError, match=r"target: expected shape \(4, 3\), got \(4,\)"):
        head.loss(head(torch.zeros(4, 2)), torch.zeros(4))
    assert isinstance(forecast_head("quantiles", d_model=2, quantiles=(0.1,)), QuantileHead)
