"""The compiled step of a whole block: op by op's numbers, and out of the way where it does not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mambakit.core.blocks import Context, Mamba3, build_block
from mambakit.kernels import token_step
from mambakit.kernels.mamba3_scan.token import mamba3_mix, mamba3_token
from mambakit.kernels.testing import assert_as_accurate

BLOCKS = [
    ("mamba1", {}),
    ("mamba1", {"bias": True, "conv_bias": False, "d_state": 5, "d_conv": 2, "dt_limit": (0.01, 0.05)}),
    ("mamba1", {"d_conv": 1, "dt_rank": 3, "expand": 1.5}),
    ("mamba2", {"d_state": 64, "head_dim": 16}),
    ("mamba2", {"d_state": 20, "head_dim": 8, "n_groups": 2, "bias": True, "norm": False}),
    ("mamba2", {"d_state": 3, "head_dim": 8, "n_groups": 3, "norm_before_gate": True, "conv_bias": False}),
    ("mamba2", {"head_dim": 12, "D_per_channel": True, "dt_limit": (0.0, 0.03)}),
    ("mamba3", {"d_state": 64, "head_dim": 16}),
    (
        "mamba3",
        {"d_state": 20, "head_dim": 8, "n_groups": 2, "bias": True, "decay": "softplus", "norm": True},
    ),
    ("mamba3", {"d_state": 18, "head_dim": 12, "rope_fraction": 1.0, "mimo_rank": 3, "dt_limit": (0.2, 1.5)}),
    ("mamba3", {"d_state": 7, "head_dim": 24, "rope_fraction": 0.0, "mimo_rank": 2, "norm": True}),
    ("mamba3", {"d_state": 33, "head_dim": 8, "A_init_range": (0.5, 2.0), "A_floor": 0.9}),
]
ONE_EACH = [BLOCKS[0], BLOCKS[3], BLOCKS[7]]
WIDTH = 24


def make_block(kind: str, options: dict[str, object]) -> nn.Module:
    torch.manual_seed(0)
    block = build_block(kind, WIDTH, options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return block.eval()


def stream(block: nn.Module, x: Tensor, elapsed: Tensor | None = None) -> Tensor:
    state, outputs = block.init_state(x.shape[0], dtype=x.dtype), []
    with torch.inference_mode():
        for t in range(x.shape[1]):
            context = None if elapsed is None else Context(elapsed=elapsed[:, t])
            y, state = block.step(x[:, t], state, context=context)
            outputs.append(y)
    return torch.stack(outputs, dim=1)


@pytest.fixture
def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every step so far, whether it was the compiled one."""
    pytest.importorskip("numba")
    calls: list[bool] = []

    def spied(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            result = function(*args, **options)
            calls.append(result is not None)
            return result

        return call

    for function in (token_step.mamba1_token, token_step.mamba2_token, mamba3_token):
        name = function.__name__
        monkeypatch.setattr(f"mambakit.core.blocks.{name.removesuffix('_token')}.{name}", spied(function))
    return calls


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
def test_is_as_accurate_as_op_by_op(kind, options, compiled_calls, monkeypatch):
    block, x = make_block(kind, options), torch.randn(1, 11, WIDTH)
    actual = stream(block, x)
    assert compiled_calls == [True] * 11
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")
    naive = stream(block, x)
    assert compiled_calls == [True] * 11 + [False] * 11
    assert_as_accurate("y", actual, exact=stream(block.double(), x.double()), naive=naive)


@pytest.mark.parametrize(("kind", "options"), BLOCKS)
def test_is_as_accurate_where_gaps_drive_the_step_size(kind, options, compiled_calls, monkeypatch):
    block, x = make_block(kind, options), torch.randn(1, 11, WIDTH)
    elapsed = torch.rand(1, 11) * 5
    elapsed[0, 4] = 0.0
    actual = stream(block, x, elapsed)
    assert compiled_calls == [True] * 11
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")
    naive = stream(block, x, elapsed)
    assert compiled_calls == [True] * 11 + [False] * 11
    exact = stream(block.double(), x.double(), elapsed.double())
    assert_as_accurate("y", actual, exact=exact, naive=naive)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("gaps", [False, True], ids=["even", "gaps"])
@pytest.mark.parametrize(("kind", "options"), [(kind, more) for kind, more in BLOCKS if kind != "mamba1"])
def test_many_rows_between_the_projections(kind, options, gaps, n_threads, monkeypatch):
    """As accurate as op by op on any number of threads, in place or not; a new state leaves the old one."""
    pytest.importorskip("numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(token_step, "SMALL", 0)
    calls = []

    mix = mamba3_mix if kind == "mamba3" else token_step.mamba2_mix

    def spied(*args, **arguments):
        result = mix(*args, **arguments)
        calls.append(result is not None)
        return result

    monkeypatch.setattr(f"mambakit.core.blocks.{kind}.{kind}_mix", spied)
    block, x = make_block(kind, options), torch.randn(7, 6, WIDTH)
    elapsed = torch.rand(7, 6) * 5 if gaps else None
    actual = stream(block, x, elapsed)
    assert calls == [True] * 6
    start = block.init_state(7).map(torch.randn_like)
    context = None if elapsed is None else Context(elapsed=elapsed[:, 0])
    with torch.inference_mode():
        y, after = block.step(x[:, 0], start, context=context)
        own = start.clone()
        same, there = block.step(x[:, 0], own, inplace=True, context=context)
    assert torch.equal(y, same)
    for name in start:
        assert there[name].data_ptr() == own[name].data_ptr()
        assert torch.equal(there[name], after[name])
        assert after[name].shape[-1] == 0 or not torch.equal(start[name], after[name])
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")
    naive = stream(block, x, elapsed)
    assert calls == [True] * 8 + [False] * 6
    exact = stream(block.double(), x.double(), None if elapsed is None else elapsed.double())
    assert_as_accurate("y", actual, exact=exact, naive=naive)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("gaps", [False, True], ids=["even", "gaps"])
@pytest.mark.parametrize(("kind", "options"), [(kind, more) for kind, more in BLOCKS if kind == "mamba2"])
def test_short_pieces_are_read_token_by_token(kind, options, gaps, n_threads, monkeypatch):
    """As accurate as op by op, from the beginning and from a state, which stays as it was."""
    pytest.importorskip("numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr(token_step, "SMALL", 0)
    calls, mix = [], token_step.mamba2_mix

    def spied(*args, **arguments):
        result = mix(*args, **arguments)
        calls.append(result is not None)
        return result

    monkeypatch.setattr("mambakit.core.blocks.mamba2.mamba2_mix", spied)
    block, x = make_block(kind, options), torch.randn(4, 9, WIDTH)
    elapsed = torch.rand(4, 9) * 5 if gaps else None

    def read(block, x, elapsed):
        def told(cut):
            return None if elapsed is None else Context(elapsed=elapsed[:, cut])

        with torch.inference_mode():
            first, state = block(x[:, :5], context=told(slice(None, 5)))
            kept = state.clone()
            second, after = block(x[:, 5:], state, context=told(slice(5, None)))
        for name in state:
            assert torch.equal(state[name], kept[name])
        return torch.cat([first, second], 1), after

    actual, after = read(block, x, elapsed)
    assert calls == [True, True]
    with torch.enable_grad():
        block(x)
    assert len(calls) == 2  # a loss wants gradients
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")
    naive, naive_after = read(block, x, elapsed)
    assert calls[2:] == [False, False]
    exact, exact_after = read(block.double(), x.double(), None if elapsed is None else elapsed.double())
    assert_as_accurate("y", actual, exact=exact, naive=naive)
    for name in after:
        assert_as_accurate(name, after[name], exact=exact_after[name], naive=naive_after[name])


@pytest.mark.parametrize(("kind", "options"), ONE_EACH)
def test_leaves_its_inputs_alone(kind, options, compiled_calls):
    block, x = make_block(kind, options), torch.randn(1, WIDTH)
    state = block.init_state(1).map(lambda tensor: torch.randn_like(tensor))
    before = state.clone()
    with torch.inference_mode():
        y, after = block.step(x, state)
        again, _ = block.step(x, state)
    assert compiled_calls == [True, True]
    assert torch.equal(y, again)
    for name in before:
        assert torch.equal(state[name], before[name])
        assert not torch.equal(after[name], before[name])


@pytest.mark.parametrize(("kind", "options"), ONE_EACH)
def test_sees_weights_change(kind, options, compiled_calls):
    block, x = make_block(kind, options), torch.randn(1, 6, WIDTH)
    before = stream(block, x)
    block.D.data += 0.5
    block.in_proj.weight = nn.Parameter(block.in_proj.weight.detach().clone() * 1.5)
    after = stream(block, x)
    assert all(compiled_calls)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, block(x)[0].detach())


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (x if self.inner is None else self.inner(x))


def hook(block: nn.Module) -> None:
    block.out_proj.register_forward_hook(lambda module, args, output: 2 * output)


def hook_before(block: nn.Module) -> None:
    block.in_proj.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def replace(block: nn.Module) -> None:
    block.in_proj = Doubled(block.in_proj)


def parametrize_projection(block: nn.Module) -> None:
    parametrize.register_parametrization(block.out_proj, "weight", Doubled())


def parametrize_own(block: nn.Module) -> None:
    parametrize.register_parametrization(block, "D", Doubled())


def hook_a_norm(block: nn.Module) -> None:
    norm = block.B_norm if isinstance(block, Mamba3) else block.in_proj
    norm.register_forward_hook(lambda module, args, output: 2 * output)


def rewrite_forward(block: nn.Module) -> None:
    inner = block.in_proj.forward
    block.in_proj.forward = lambda x: 2 * inner(x)


@pytest.mark.parametrize(("kind", "options"), ONE_EACH)
@pytest.mark.parametrize(
    "change",
    [hook, hook_before, hook_a_norm, replace, parametrize_projection, parametrize_own, rewrite_forward],
)
def test_honours_what_is_done_to_a_block(kind, options, change, compiled_calls):
    block, x = make_block(kind, options), torch.randn(1, 6, WIDTH)
    plain = stream(block, x)
    compiled_calls.clear()
    change(block)
    changed = stream(block, x)
    assert not any(compiled_calls)
    assert not torch.allclose(plain, changed)
    torch.testing.assert_close(changed, block(x)[0].detach())


@pytest.mark.parametrize(("kind", "options"), ONE_EACH)
def test_is_not_for_gradients_batches_or_other_dtypes(kind, options, compiled_calls):
    block, x = make_block(kind, options), torch.randn(1, WIDTH)
    y, _ = block.step(x, block.init_state(1))
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    stream(block, torch.randn(3, 2, WIDTH))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert block.step(x, block.init_state(1))[0].dtype == torch.bfloat16
    stream(block.double(), torch.randn(1, 2, WIDTH).double())
    assert not any(compiled_calls)
