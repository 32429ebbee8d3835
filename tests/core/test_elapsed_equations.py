"""Blocks whose step size irregular gaps drive, by their equations, in time and in other reading orders."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mambakit.core.blocks import Bidirectional, Block, Context, GridScan, SequenceScan, build_block
from mambakit.core.state import State
from mambakit.core.testing import assert_states_close

D_MODEL = 8
LENGTH = 9
OPTIONS = {
    "mamba1": {"d_state": 3, "dt_limit": (0.05, 0.6)},
    "mamba2": {"head_dim": 4, "d_state": 4, "dt_limit": (0.05, 0.6)},
    "mamba3": {"head_dim": 4, "d_state": 4, "dt_limit": (0.05, 0.6)},
}


def _lively(module: nn.Module) -> nn.Module:
    """Larger dt than at the start of training, so that gaps are felt within a few tokens."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.add_(3.0)
    return module


def tokens(batch: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, D_MODEL, generator=generator, dtype=torch.float64).to(dtype)


def gaps(batch: int = 3, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    """From 0.1 to 10 ordinary gaps, and now and then none at all."""
    draw = torch.Generator().manual_seed(2)
    drawn = 10.0 ** (2 * torch.rand(batch, length, generator=draw, dtype=torch.float64) - 1)
    return drawn.masked_fill(torch.rand(batch, length, generator=draw) < 0.1, 0.0).to(dtype)


# --- the recurrence


def _dt(raw: Tensor, bias: Tensor, elapsed: Tensor) -> Tensor:
    """Softplus, then the limits, then the gap: a gap may take dt out of its limits."""
    return torch.log1p(torch.exp(raw + bias)).clamp(0.05, 0.6) * elapsed[..., None]


def _convolved(inputs: Tensor, block: Block) -> Tensor:
    past = F.pad(inputs, (0, 0, 3, 0))
    taps = (past[:, k : k + LENGTH] * block.conv_weight[:, k] for k in range(4))
    return F.silu(sum(taps) + block.conv_bias)


def test_mamba1_by_its_equations():
    block = _lively(build_block("mamba1", D_MODEL, OPTIONS["mamba1"])).double()
    x, elapsed = tokens(), gaps()
    u, z = (x @ block.in_proj.weight.T).split(16, dim=-1)
    u = _convolved(u, block)
    dt, B, C = (u @ block.x_proj.weight.T).split([1, 3, 3], dim=-1)
    dt = _dt(dt @ block.dt_proj.weight.T, block.dt_proj.bias, elapsed)
    h = torch.zeros(3, 16, 3, dtype=torch.float64)
    outputs = []
    for t in range(LENGTH):
        h = torch.exp(dt[:, t, :, None] * -torch.exp(block.A_log)) * h
        h = h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1) + block.D * u[:, t])
    expected = (torch.stack(outputs, 1) * F.silu(z)) @ block.out_proj.weight.T
    got, state = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(state["ssm"], h, atol=1e-12, rtol=0)


def test_mamba2_by_its_equations():
    block = _lively(build_block("mamba2", D_MODEL, {**OPTIONS["mamba2"], "norm": False})).double()
    x, elapsed = tokens(), gaps()
    z, inputs, dt = (x @ block.in_proj.weight.T).split([16, 24, 4], dim=-1)
    u, B, C = _convolved(inputs, block).split([16, 4, 4], dim=-1)
    u = u.unflatten(-1, (4, 4))
    dt = _dt(dt, block.dt_bias, elapsed)
    h = torch.zeros(3, 4, 4, 4, dtype=torch.float64)
    outputs = []
    for t in range(LENGTH):
        h = torch.exp(dt[:, t] * -torch.exp(block.A_log))[..., None, None] * h
        h = h + (dt[:, t, :, None] * u[:, t])[..., None] * B[:, t, None, None]
        outputs.append((h @ C[:, t, None, :, None])[..., 0] + block.D[:, None] * u[:, t])
    expected = (torch.stack(outputs, 1).flatten(2) * F.silu(z)) @ block.out_proj.weight.T
    got, state = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(state["ssm"], h, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
@settings(max_examples=10, deadline=None)
@given(first=st.floats(0, 20), second=st.floats(0, 20))
def test_decays_over_gaps_compose(kind, first, second):
    """With nothing coming in, two gaps one after the other are one as long as both."""
    options = {**OPTIONS[kind], "d_conv": 1, "conv_bias": False}
    block = _lively(build_block(kind, D_MODEL, options)).double()
    _, state = block(tokens(batch=1))
    nothing = torch.zeros(1, D_MODEL, dtype=torch.float64)

    def after(state: State, gap: float) -> State:
        told = Context(elapsed=torch.tensor([gap], dtype=torch.float64))
        return block.step(nothing, state, context=told)[1]

    assert_states_close(after(after(state, first), second), after(state, first + second), atol=1e-12)
    bias = block.dt_bias if kind == "mamba2" else block.dt_proj.bias
    rate = F.softplus(bias).clamp(0.05, 0.6)
    decay = torch.exp(rate.view(-1, 1) * -torch.exp(block.A_log).view(len(rate), -1) * first)
    expected = state["ssm"] * decay.view(*decay.shape, *[1] * (state["ssm"].dim() - 3))
    torch.testing.assert_close(after(state, first)["ssm"], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2", "mamba3"])
def test_no_time_leaves_the_state(kind):
    block = _lively(build_block(kind, D_MODEL, OPTIONS[kind])).double()
    _, state = block(tokens())
    _, after = block.step(tokens()[:, 0], state, context=Context(elapsed=torch.zeros(3).double()))
    torch.testing.assert_close(after["ssm"], state["ssm"], atol=0, rtol=0)


# --- other orders


def _reversed_gaps(elapsed: Tensor) -> Tensor:
    """From the stamps: the sequence filmed backwards, which begins as the other does."""
    stamps = elapsed.cumsum(1)
    return torch.cat([elapsed[:, :1], -stamps.flip(1).diff(dim=1)], dim=1)


@pytest.mark.parametrize("share", ["none", "all"])
def test_backwards_a_gap_is_that_to_the_next_token(share):
    torch.manual_seed(0)
    block = _lively(
        Bidirectional(d_model=D_MODEL, inner="mamba2", inner_options=OPTIONS["mamba2"], share=share)
    ).double()
    x, elapsed = tokens(), gaps()
    reader = block.back or block.ahead
    back, _ = reader(x.flip(1), context=Context(elapsed=_reversed_gaps(elapsed)))
    ahead, _ = block.ahead(x, context=Context(elapsed=elapsed))
    got, _ = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, ahead + back.flip(1), atol=1e-10, rtol=0)
    # its own gap read backwards would be another thing
    wrong, _ = reader(x.flip(1), context=Context(elapsed=elapsed.flip(1)))
    assert (wrong - back).abs().max() > 1e-3


def _mean_gaps(elapsed: Tensor, order: list[int]) -> Tensor:
    """Between tokens read one after the other: the time from one to the other over their distance."""
    stamps = elapsed.cumsum(1)
    read = [elapsed[:, 0]]
    for before, now in pairwise(order):
        read.append((stamps[:, now] - stamps[:, before]).abs() / abs(now - before))
    return torch.stack(read, dim=1)


def test_a_stride_sees_the_mean_of_the_gaps_it_spans():
    options = {"inner": "mamba1", "inner_options": OPTIONS["mamba1"], "isolate": False}
    block = _lively(SequenceScan(d_model=D_MODEL, size=3, **options)).double()
    x, elapsed = tokens(), gaps()
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    y, _ = block.inner(x[:, order], context=Context(elapsed=_mean_gaps(elapsed, order)))
    expected = torch.empty_like(y)
    expected[:, order] = y
    got, _ = block(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("share", ["none", "all"])
def test_a_grid_in_every_order(share):
    grid = GridScan(
        d_model=D_MODEL,
        grid=(3, 3),
        scan="zigzag",
        inner="mamba1",
        inner_options=OPTIONS["mamba1"],
        share=share,
    )
    grid = _lively(grid).double()
    x, elapsed = tokens(), gaps()
    total = torch.zeros_like(x)
    for i, order in enumerate(grid.orders.tolist()):
        told = Context(elapsed=_mean_gaps(elapsed, order))
        y, _ = grid.inner[i % len(grid.inner)](x[:, order], context=told)
        total[:, order] += y
    got, _ = grid(x, context=Context(elapsed=elapsed))
    torch.testing.assert_close(got, total, atol=1e-10, rtol=0)
