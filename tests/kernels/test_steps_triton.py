"""The one-token steps on Triton: against the steps in plain torch in float64, and what a stream relies on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mambakit.kernels import causal_conv1d_step, selective_scan_step, ssd_step
from mambakit.kernels.backend import BackendUnavailableError
from mambakit.kernels.testing import assert_as_accurate, cast

Step = Callable[..., tuple[Tensor, Tensor]]
OF_TOKEN = ("x", "dt", "B", "C", "z")


def conv_inputs(
    batch: int, channels: int, width: int, *, options: bool = True, **_: Any
) -> tuple[Step, dict[str, Tensor], dict[str, Any]]:
    normal = _normal()
    inputs = {
        "state": normal(batch, channels, width - 1),
        "x": normal(batch, channels),
        "weight": normal(channels, width),
    }
    if options:
        inputs["bias"] = normal(channels)
    return causal_conv1d_step, inputs, {"activation": "silu"} if options else {}


def scan_inputs(
    batch: int, d_inner: int, n_groups: int, d_state: int, *, options: bool = True, **_: Any
) -> tuple[Step, dict[str, Tensor], dict[str, Any]]:
    normal = _normal()
    inputs = {
        "state": normal(batch, d_inner, d_state),
        "x": normal(batch, d_inner),
        "dt": normal(batch, d_inner) - 3 if options else normal(batch, d_inner).abs(),
        "A": -0.1 - normal(d_inner, d_state).abs(),
        "B": normal(batch, n_groups, d_state),
        "C": normal(batch, n_groups, d_state),
    }
    if options:
        inputs |= {"D": normal(d_inner), "z": normal(batch, d_inner), "dt_bias": normal(d_inner)}
    return selective_scan_step, inputs, _dt_options(options)


def ssd_inputs(
    batch: int,
    n_heads: int,
    head_dim: int,
    n_groups: int,
    d_state: int,
    *,
    options: bool = True,
    D_per_channel: bool = False,
) -> tuple[Step, dict[str, Tensor], dict[str, Any]]:
    normal = _normal()
    inputs = {
        "state": normal(batch, n_heads, head_dim, d_state),
        "x": normal(batch, n_heads, head_dim),
        "dt": normal(batch, n_heads) - 3 if options else normal(batch, n_heads).abs(),
        "A": -0.1 - normal(n_heads).abs(),
        "B": normal(batch, n_groups, d_state),
        "C": normal(batch, n_groups, d_state),
    }
    if options:
        inputs |= {
            "D": normal(n_heads, head_dim) if D_per_channel else normal(n_heads),
            "z": normal(batch, n_heads, head_dim),
            "dt_bias": normal(n_heads),
        }
    return ssd_step, inputs, _dt_options(options)


def _normal() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _dt_options(options: bool) -> dict[str, Any]:
    return {"dt_softplus": True, "dt_limit": (0.01, 0.9)} if options else {}


CASES = [
    (conv_inputs, (3, 35, 4)),
    (conv_inputs, (2, 130, 1)),
    (conv_inputs, (1, 8, 2)),
    (conv_inputs, (0, 8, 3)),
    (scan_inputs, (3, 35, 1, 5)),
    (scan_inputs, (2, 24, 3, 16)),
    (scan_inputs, (0, 24, 1, 16)),
    (ssd_inputs, (3, 4, 5, 2, 6)),
    (ssd_inputs, (2, 3, 40, 1, 128)),
    (ssd_inputs, (0, 4, 16, 1, 16)),
]
MAKES = [conv_inputs, scan_inputs, ssd_inputs]
SMALL = {conv_inputs: (3, 16, 4), scan_inputs: (3, 16, 2, 8), ssd_inputs: (3, 4, 8, 2, 16)}


def on(device: str, inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything in ``dtype`` but the state, which is float32."""
    moved = {name: v.to(device) for name, v in cast(inputs, dtype).items()}
    return moved | {"state": inputs["state"].float().to(device)}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [False, True], ids=["bare", "options"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
@pytest.mark.parametrize(("make", "shape"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_matches_torch(
    make: Any, shape: tuple[int, ...], dtype: torch.dtype, options: bool, inplace: bool, triton_device: str
) -> None:
    step, exact_inputs, named = make(*shape, options=options, D_per_channel=inplace)
    inputs = on(triton_device, exact_inputs, dtype)
    rounded = {name: v.double() for name, v in inputs.items()}
    exact = step(**rounded, **named, backend="reference")
    naive = step(**inputs, **named, backend="reference")
    before = inputs["state"].clone()
    y, state = step(**inputs, **named, inplace=inplace, backend="triton")
    assert (state is inputs["state"]) == inplace
    assert inplace or torch.equal(inputs["state"], before)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    assert y.is_contiguous()
    assert_as_accurate("y", y, exact=exact[0], naive=naive[0])
    assert_as_accurate("state", state, exact=exact[1], naive=naive[1])


@pytest.mark.parametrize("make", MAKES)
def test_a_stream_of_tokens(make: Any, triton_device: str) -> None:
    step, inputs, named = make(*SMALL[make])
    fixed = on(triton_device, inputs, torch.float32)
    state = fixed.pop("state")
    expected = state
    for t in range(4):
        token = {name: v.roll(t, 0) if name in OF_TOKEN else v for name, v in fixed.items()}
        y, state = step(state, **token, **named, inplace=t % 2 == 1, backend="triton")
        y_expected, expected = step(expected, **token, **named, backend="reference")
        torch.testing.assert_close(y, y_expected)
        torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("make", MAKES)
def test_reads_views(make: Any, triton_device: str) -> None:
    """A split of a projection's output, and stranger layouts, of unaligned addresses too."""
    step, inputs, named = make(*SMALL[make])
    inputs = on(triton_device, inputs, torch.float32)
    expected = step(**inputs, **named, backend="triton")
    for start in (4, 3, None):
        views = {}
        for name, v in inputs.items():
            if start is None:
                views[name] = torch.stack([v, v * float("nan")], -1)[..., 0]
            elif name in OF_TOKEN:
                wide = torch.full((len(v), v[0].numel() + 7), float("nan"), device=v.device)
                views[name] = wide[:, start : start + v[0].numel()].view(v.shape).copy_(v)
            else:
                views[name] = v.clone()
        before = {name: v.clone() for name, v in views.items()}
        y, state = step(**views, **named, backend="triton")
        assert all(torch.equal(v, before[name]) for name, v in views.items())
        torch.testing.assert_close(y, expected[0], rtol=0, atol=0)
        torch.testing.assert_close(state, expected[1], rtol=0, atol=0)
        y, state = step(**views, **named, inplace=True, backend="triton")
        assert state is views["state"]
        torch.testing.assert_close(y, expected[0], rtol=0, atol=0)
        torch.testing.assert_close(state, expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("make", MAKES)
def test_a_state_of_low_precision_keeps_its_dtype(make: Any, triton_device: str) -> None:
    step, inputs, named = make(*SMALL[make])
    inputs = {name: v.to(triton_device) for name, v in cast(inputs, torch.float16).items()}
    y, state = step(**inputs, **named, backend="triton")
    exact = step(**{name: v.double() for name, v in inputs.items()}, **named, backend="reference")
    assert y.dtype == state.dtype == torch.float16
    torch.testing.assert_close(y, exact[0].half())
    torch.testing.assert_close(state, exact[1].half())


@pytest.mark.parametrize("make", MAKES)
def test_a_broken_row_stays_alone(make: Any, triton_device: str) -> None:
    step, inputs, named = make(*SMALL[make])
    inputs = on(triton_device, inputs, torch.float32)
    expected = step(**inputs, **named, backend="triton")
    for name in {"x", "dt"} & inputs.keys():
        broken = inputs[name].clone()
        broken[1] = float("nan")
        y, state = step(**inputs | {name: broken}, **named, backend="triton")
        assert y[1].isnan().all()
        assert torch.equal(y[0::2], expected[0][0::2])
        assert torch.equal(state[0::2], expected[1][0::2])


@pytest.mark.parametrize("make", MAKES)
def test_gradients_go_through_torch(make: Any, triton_device: str) -> None:
    step, inputs, named = make(*SMALL[make])
    inputs = on(triton_device, inputs, torch.float32)
    step(**inputs, **named, backend="triton")  # a make that is known, but for the gradient
    grads = []
    for backend in ("triton", "reference"):
        leaves = {name: v.clone().requires_grad_() for name, v in inputs.items()}
        y, state = step(**leaves, **named, backend=backend)
        (y.sum() + state.sum()).backward()
        grads.append({name: v.grad for name, v in leaves.items()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


@pytest.mark.parametrize("make", MAKES)
def test_refuses_what_it_cannot_do(make: Any, triton_device: str) -> None:
    step, inputs, named = make(*SMALL[make])
    inputs = {name: v.to(triton_device) for name, v in inputs.items()}
    with pytest.raises(BackendUnavailableError, match="float64"):
        step(**inputs, **named, backend="triton")
    inputs = cast(inputs, torch.float32)
    step(**inputs, **named, backend="triton")
    with pytest.raises(ValueError, match="expected shape"):
        step(**inputs | {"x": inputs["x"][:, :3]}, **named, backend="triton")
    with pytest.raises(TypeError, match="x: expected"):
        step(**inputs | {"x": [1.0]}, **named, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("make", MAKES)
def test_runs_in_a_cuda_graph(make: Any) -> None:
    step, inputs, named = make(*SMALL[make])
    inputs = on("cuda", inputs, torch.float32)
    expected_y, expected = step(**inputs, **named, backend="reference")
    step(**inputs | {"state": inputs["state"].clone()}, **named, inplace=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = step(**inputs, **named, inplace=True)
    graph.replay()
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(inputs["state"], expected)


def test_compile_sees_through(triton_device: str) -> None:
    step, inputs, named = ssd_inputs(*SMALL[ssd_inputs])
    inputs = on(triton_device, inputs, torch.float32)
    compiled = torch.compile(
        lambda **given: step(**given, **named, backend="triton"), backend="eager", fullgraph=True
    )
    expected = step(**inputs, **named, backend="triton")
    for value, want in zip(compiled(**inputs), expected, strict=True):
        torch.testing.assert_close(value, want)


@pytest.mark.parametrize("backend", ["triton", "portable", "reference"])
@pytest.mark.parametrize("make", [partial(scan_inputs, 2, 12, 3, 5), partial(ssd_inputs, 2, 4, 3, 2, 5)])
def test_the_logarithm_in_place_of_the_decay(
    make: Callable[[], tuple[Step, dict[str, Tensor], dict[str, Any]]], backend: str, triton_device: str
) -> None:
    """Twice, for the second call is found by the make of its arguments; with gradients the same."""
    step, inputs, options = make()
    given = {name: v.float().to(triton_device) for name, v in inputs.items()}
    A_log = (-given["A"]).log().requires_grad_()
    expected = step(**given, **options, backend=backend)
    del given["A"]
    for _ in range(2):
        with torch.no_grad():
            actual = step(A=A_log, A_is_log=True, **given, **options, backend=backend)
        torch.testing.assert_close(actual, expected)
    y, _ = step(A=A_log, A_is_log=True, **given, **options, backend=backend)
    (gradient,) = torch.autograd.grad(y.sum(), A_log)
    assert gradient.abs().max() > 0
