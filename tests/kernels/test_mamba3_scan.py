"""mamba3_scan: its parallel form and its step against the recurrence, and the recurrence against theory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.kernels import Mamba3State, mamba3_scan, mamba3_step, ssd
from mambakit.kernels.mamba3_scan import op
from mambakit.kernels.testing import assert_as_accurate, cast, forward_backward

Inputs = dict[str, Tensor | None]
STATE = Mamba3State._fields
OPTIONAL = ("turn", "B_bias", "C_bias", "up", "D", "z", "state")
UP = {"length": 18, "per_group": 3, "head_dim": 5, "d_state": 6}
SINGLE = {"without": ("up",), "rows": "padded"}
MULTIPLE = {"rank": 3, "n_groups": 2, "per_group": 1, "length": 9}


def make(
    *,
    batch: int = 2,
    length: int = 19,
    n_groups: int = 1,
    per_group: int = 2,
    head_dim: int = 3,
    d_state: int = 5,
    rank: int = 1,
    n_angles: int = 2,
    rows: str = "packed",
    without: tuple[str, ...] = (),
    seed: int = 0,
) -> tuple[Inputs, list[Tensor]]:
    """Float64 arguments of ``scan`` and cotangents of all that it gives."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    n_heads = n_groups * per_group
    projections = (batch, length, rank, n_groups, d_state)
    y = (batch, length, rank, n_heads, head_dim)
    states = {
        "ssm": (batch, n_heads, head_dim, d_state),
        "angles": (batch, n_heads, n_angles),
        "key": (batch, rank, n_heads, d_state),
        "value": (batch, n_heads, head_dim),
    }
    inputs: Inputs = {
        "x": randn(batch, length, n_heads, head_dim),
        "dt": randn(batch, length, n_heads).abs(),
        "log_decay": -randn(batch, length, n_heads).abs(),
        "trap": randn(batch, length, n_heads).sigmoid(),
        "B": randn(*projections),
        "C": randn(*projections),
        "turn": math.pi * randn(batch, length, n_angles).tanh(),
        "B_bias": randn(n_heads, rank, d_state),
        "C_bias": randn(n_heads, rank, d_state),
        "up": randn(n_heads, rank, head_dim),
        "D": randn(n_heads),
        "z": randn(*y),
        **{name: randn(*shape) for name, shape in states.items()},
    }
    if rows == "packed":
        inputs["seq_idx"] = (torch.rand((batch, length), generator=draw) < 0.2).int().cumsum(1).int()
    elif rows == "padded":
        inputs["lengths"] = torch.randint(0, length + 1, (batch,), generator=draw)
    cotangents = [randn(*y), *(randn(*shape) for shape in (states["ssm"], states["angles"]))]
    cotangents += [randn(*states["angles"]), randn(*states["key"]), randn(*states["value"])]
    for name in without:
        for one in STATE if name == "state" else (name,):
            inputs[one] = None
    if "turn" in without and inputs["ssm"] is not None:
        inputs["angles"] = randn(batch, n_heads, 0)
    if "turn" in without:
        cotangents[2:4] = [randn(batch, n_heads, 0)] * 2
    return inputs, cotangents


def scan(backend: str | None = None, chunk_size: int | None = None, **inputs: Any) -> tuple[Tensor, ...]:
    """``mamba3_scan`` with the state's tensors among its own; y zero at padding, angles as points."""
    state = [inputs.pop(name) for name in STATE]
    given = None if state[0] is None else Mamba3State(*state)
    y, (ssm, angles, key, value) = mamba3_scan(
        **inputs, initial_state=given, backend=backend, chunk_size=chunk_size
    )
    if inputs.get("lengths") is not None:
        padding = torch.arange(y.shape[1], device=y.device) >= inputs["lengths"][:, None]
        y = y.masked_fill(padding[..., None, None, None], 0.0)
    return y, ssm, angles.cos(), angles.sin(), key, value


shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "length": st.integers(0, 37),
        "n_groups": st.integers(1, 2),
        "per_group": st.integers(1, 3),
        "head_dim": st.integers(1, 7),
        "d_state": st.integers(4, 9),
        "rank": st.integers(1, 3),
        "n_angles": st.integers(1, 2),
        "rows": st.sampled_from(["plain", "packed", "padded"]),
        "seed": st.integers(0, 99),
    }
)


@settings(max_examples=40, deadline=None)
@given(
    shape=shapes,
    without=st.sets(st.sampled_from(OPTIONAL), max_size=3).map(tuple),
    chunk_size=st.sampled_from([None, 1, 4, 16]),
)
def test_portable_is_the_reference(shape, without, chunk_size):
    """Outputs, final state and every gradient, in float64; any of the options left out."""
    inputs, cotangents = make(**shape, without=without)
    expected = forward_backward(scan, inputs, cotangents, backend="reference")
    actual = forward_backward(scan, inputs, cotangents, backend="portable", chunk_size=chunk_size)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("backend", ["portable", "triton"])
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (UP, torch.float32),
        (SINGLE, torch.float32),
        (SINGLE, torch.float16),
        (MULTIPLE, torch.float32),
        (MULTIPLE, torch.float16),
        pytest.param(SINGLE, torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param(MULTIPLE, torch.bfloat16, marks=pytest.mark.gpu),
    ],
    ids=["up", "single", "single-half", "multiple", "multiple-half", "single-bfloat16", "multiple-bfloat16"],
)
def test_is_as_accurate_as_the_reference(options, dtype, backend, triton_device):
    device = "cpu" if backend == "portable" else triton_device
    inputs, cotangents = make(**options)
    low = {name: None if v is None else v.to(device) for name, v in cast(inputs, dtype).items()}
    cotangents = [v.to(device) for v in cotangents]
    exact = forward_backward(scan, cast(low, torch.float64), cotangents, backend="reference")
    naive = forward_backward(scan, low, cotangents, backend="reference")
    actual = forward_backward(scan, low, cotangents, backend=backend, chunk_size=16)
    assert actual["out0"].dtype == dtype
    assert actual["out1"].dtype == torch.float32
    for name in exact:
        # the values of ranks are rounded to the inputs' precision, and Triton's operands are
        got, plain = (found[name].to(dtype) for found in (actual, naive))
        # an output of the trapezoid's two ends at once is a difference of larger numbers
        assert_as_accurate(name, got, exact=exact[name], naive=plain, slack=4.0)


@pytest.mark.parametrize("rows", ["plain", "packed"])
def test_weights_and_angles_over_many_tiles(rows, triton_device):
    """Nothing but what surrounds the recurrence: its sums go over the whole sequence, in tiles."""
    gpu = pytest.importorskip("mambakit.kernels.mamba3_scan.gpu")
    length, shape = 100, (2, 100, 2)
    draw = torch.Generator().manual_seed(0)
    dt, trap = (torch.rand(shape, generator=draw).to(triton_device) for _ in range(2))
    turn, begin = (torch.randn(2, n, 2, generator=draw).to(triton_device) for n in (length, 2))
    pulls = [torch.randn(*shape, *more, generator=draw).to(triton_device) for more in ((), (), (2,), (2,))]
    seq_idx = None
    if rows == "packed":
        seq_idx = (torch.rand((2, length), generator=draw) < 0.05).int().cumsum(1).int().to(triton_device)

    def run(weights: Any, angles: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [v.to(dtype).requires_grad_() for v in (dt, trap, turn, begin)]
        theta = angles(leaves[0], leaves[2], leaves[3], seq_idx)
        outputs = [*weights(*leaves[:2], seq_idx), theta.cos(), theta.sin()]
        return outputs + list(torch.autograd.grad(outputs, leaves, [v.to(dtype) for v in pulls]))

    exact = run(op._weights, op._angles, torch.float64)
    naive = run(op._weights, op._angles, torch.float32)
    for _ in range(3):  # launched, recorded, played
        actual = run(gpu.weights, gpu.angles, torch.float32)
        names = ("scale", "own", "cos", "sin", "ddt", "dtrap", "dturn", "dbegin")
        for name, got, wanted, plain in zip(names, actual, exact, naive, strict=True):
            assert_as_accurate(name, got, exact=wanted, naive=plain)


@settings(max_examples=20, deadline=None)
@given(shape=shapes, cut=st.integers(0, 37), inplace=st.booleans())
def test_steps_are_the_scan_from_any_token_on(shape, cut, inplace):
    inputs, _ = make(**{**shape, "rows": "plain"})
    state = Mamba3State(*(inputs.pop(name) for name in STATE))
    whole, final = mamba3_scan(**inputs, initial_state=state)
    of_model = {name: inputs.pop(name) for name in ("B_bias", "C_bias", "up", "D")}
    first = {name: v[:, :cut] for name, v in inputs.items()}
    y, state = mamba3_scan(**first, **of_model, initial_state=state)
    outputs = [y]
    state = Mamba3State(*(v.clone() for v in state))
    for t in range(cut, whole.shape[1]):
        token = {name: v[:, t] for name, v in inputs.items()}
        y, following = mamba3_step(state, **token, **of_model, inplace=inplace)
        assert not inplace or all(a is b for a, b in zip(state, following, strict=True))
        state = following
        outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), whole, atol=1e-10, rtol=0)
    for name in ("ssm", "key", "value"):
        torch.testing.assert_close(getattr(state, name), getattr(final, name), atol=1e-10, rtol=0)
    torch.testing.assert_close(state.angles.cos(), final.angles.cos(), atol=1e-10, rtol=0)


def test_turning_b_and_c_is_a_complex_decay():
    """Pairs of channels as complex numbers: the state decays by ``exp(dt (A - i turn))``, B and C stay."""
    inputs, _ = make(d_state=4, rows="plain", without=("B_bias", "C_bias", "up", "D", "z", "state"))
    x, dt, log_decay, trap, B, C, turn = (
        inputs[name] for name in ("x", "dt", "log_decay", "trap", "B", "C", "turn")
    )
    b, c = (torch.view_as_complex(v[:, :, 0].unflatten(-1, (2, 2))) for v in (B, C))  # [b, l, 1, n/2]
    h = torch.zeros(2, 2, 3, 2, dtype=torch.complex128)
    before, ys = torch.zeros_like(h), []
    for t in range(x.shape[1]):
        decay = torch.exp(log_decay[:, t, :, None] - 1j * dt[:, t, :, None] * turn[:, t, None])[:, :, None]
        now = x[:, t, ..., None] * b[:, t, :, None]
        near, far = ((w * dt[:, t])[..., None, None] for w in (1 - trap[:, t], trap[:, t]))
        h = decay * (h + near * before) + far * now
        before = now
        ys.append((h * c[:, t, :, None].conj()).real.sum(-1))
    torch.testing.assert_close(scan(**inputs)[0][:, :, 0], torch.stack(ys, 1), atol=1e-12, rtol=0)


def test_with_all_weight_on_the_later_end_it_is_mamba2():
    inputs, _ = make(without=("turn", "B_bias", "C_bias", "up", "state"))
    x, dt, B, C, D, z = (inputs[name] for name in ("x", "dt", "B", "C", "D", "z"))
    A = -torch.rand(2, dtype=torch.float64)
    seq_idx = inputs["seq_idx"]
    expected, state = ssd(
        x, dt, A, B[:, :, 0], C[:, :, 0], D=D, z=z[:, :, 0], seq_idx=seq_idx, return_final_state=True
    )
    y, after = mamba3_scan(x, dt, dt * A, torch.ones_like(dt), B, C, D=D, z=z, seq_idx=seq_idx)
    torch.testing.assert_close(y[:, :, 0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(after.ssm, state, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("trap", "order"), [(0.5, 2), (1.0, 1)])
def test_order_of_the_rule(trap, order):
    """``h' = -h + cos t`` from 0: half the step makes the trapezoid's error a quarter, Euler's a half."""

    def error(n: int) -> float:
        t = torch.linspace(0, 3, n + 1, dtype=torch.float64)[None, :, None]
        dt = torch.full_like(t, 3 / n)
        dt[:, 0] = 0.0  # the first token is the start
        one = torch.ones(1, n + 1, 1, 1, 1, dtype=torch.float64)
        y, _ = mamba3_scan(t.cos()[..., None], dt, -dt, torch.full_like(dt, trap), one, one)
        exact = (t.cos() + t.sin() - torch.exp(-t)) / 2
        return (y.flatten() - exact.flatten()).abs().max().item()

    assert error(100) / error(200) == pytest.approx(2**order, rel=0.02)


def test_angles_stay_exact_over_a_long_sequence():
    n = 100_000
    dt, turn = torch.rand(1, n, 1), torch.full((1, n, 1), 3.0)
    B = torch.ones(1, n, 1, 1, 2)
    _, state = mamba3_scan(torch.ones(1, n, 1, 1), dt, -dt, 0.5 * torch.ones_like(dt), B, B, turn=turn)
    exact = (3.0 * dt.double().sum()) % (2 * math.pi)
    assert state.angles.item() == pytest.approx(exact.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 19, 6)}, ValueError, r"x: expected shape \(batch, length, n_heads, head_dim\)"),
        (
            {"trap": torch.zeros(2, 19, 3)},
            ValueError,
            r"trap: expected shape \(batch=2, length=19, n_heads=2",
        ),
        ({"dt": torch.zeros(2, 19, 2).int()}, TypeError, "dt: expected a floating dtype"),
        ({"C": torch.zeros(2, 19, 2, 1, 5)}, ValueError, r"C: expected shape .*rank=1"),
        ({"turn": torch.zeros(2, 19, 3)}, ValueError, "turn: .* there are 3 for d_state=5"),
        ({"up": torch.zeros(2, 1, 4)}, ValueError, r"up: expected shape \(n_heads=2, rank=1, head_dim=3\)"),
        ({"angles": torch.zeros(2, 2, 1)}, ValueError, r"angles: expected shape .*n_angles=2"),
        ({"lengths": torch.tensor([1, 2])}, ValueError, "either lengths .* or seq_idx"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments(change, error, message):
    inputs, _ = make()
    with pytest.raises(error, match=message):
        scan(**{**inputs, **change})
