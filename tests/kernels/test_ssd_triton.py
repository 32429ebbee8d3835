"""ssd and ssd_core on Triton: on a GPU, or on the CPU in Triton's interpreter (small shapes, no bfloat16)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from mambakit.kernels import ssd
from mambakit.kernels.backend import BackendUnavailableError
from mambakit.kernels.ssd.testing import OPTIONS, check, make_inputs
from mambakit.kernels.tape import Tape
from mambakit.kernels.testing import cast, forward_backward, relative_error

pytest.importorskip("triton")

gpu = pytest.importorskip("mambakit.kernels.ssd.gpu")
gpu_launch = pytest.importorskip("mambakit.kernels.ssd.gpu_launch")
gpu_launch_backward = pytest.importorskip("mambakit.kernels.ssd.gpu_launch_backward")

BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
# with two heads a group, without a next token, empty, of the default chunk, of three chunks and wide heads
SHAPES = [
    (1, 21, 4, 3, 5, 2, 16),
    (1, 1, 1, 1, 1, 1, None),
    (2, 0, 2, 3, 4, 1, None),
    (0, 5, 2, 3, 4, 1, None),
    (1, 37, 2, 8, 16, 1, None),
    (1, 35, 2, 33, 17, 2, 7),
]


@pytest.mark.parametrize(
    ("packed", "dtype"),
    [
        (0.0, torch.float32),
        (0.1, torch.float32),
        (0.1, torch.float16),
        pytest.param(0.0, torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param(0.1, torch.bfloat16, marks=pytest.mark.gpu),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(
    shape: tuple[Any, ...], packed: float, dtype: torch.dtype, triton_device: str
) -> None:
    *sizes, chunk_size = shape
    inputs, cotangents = make_inputs(*sizes, packed=packed)
    check(inputs, cotangents, dtype, backend="triton", device=triton_device, chunk_size=chunk_size)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("packed", [0.0, 0.02])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 517, 8, 64, 128, 1),
        (1, 1031, 4, 64, 64, 2),
        (3, 255, 8, 128, 128, 8),
        (1, 700, 2, 32, 256, 1),
        (1, 4097, 3, 40, 24, 1),
        (300, 6, 8, 16, 16, 1),
    ],
    ids=str,
)
def test_matches_reference_on_large_shapes(
    shape: tuple[int, ...], packed: float, dtype: torch.dtype, triton_device: str
) -> None:
    inputs, cotangents = make_inputs(*shape, packed=packed)
    check(inputs, cotangents, dtype, backend="triton", device=triton_device)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_matches_reference_without_options(dtype: torch.dtype, triton_device: str) -> None:
    inputs, cotangents = make_inputs(1, 19, 2, 5, 6, 2, optional=False)
    run = partial(check, inputs, cotangents, dtype, backend="triton", device=triton_device, chunk_size=16)
    run()
    run(dt_limit=(0.05, 0.5))
    run(dt_softplus=False, dt_limit=(0.01, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_a_skip_per_channel(dtype: torch.dtype, triton_device: str) -> None:
    inputs, cotangents = make_inputs(2, 19, 2, 5, 6, 1, seed=1)
    check(inputs, cotangents, dtype, backend="triton", device=triton_device, chunk_size=16)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 35),
    heads_a_group=st.integers(1, 3),
    n_groups=st.integers(1, 2),
    head_dim=st.integers(1, 20),
    d_state=st.integers(1, 20),
    packed=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    optional=st.booleans(),
    seed=st.integers(0, 999),
)
def test_matches_reference_on_drawn_shapes(
    batch: int,
    length: int,
    heads_a_group: int,
    n_groups: int,
    head_dim: int,
    d_state: int,
    packed: float,
    optional: bool,
    seed: int,
    triton_device: str,
) -> None:
    heads = heads_a_group * n_groups
    inputs, _ = make_inputs(
        batch, length, heads, head_dim, d_state, n_groups, packed=packed, optional=optional, seed=seed
    )
    there = {k: None if v is None else v.to(triton_device) for k, v in cast(inputs, torch.float32).items()}
    y, state = ssd(**there, **OPTIONS, chunk_size=16, backend="triton")
    expected_y, expected_state = ssd(**inputs, **OPTIONS, backend="reference")
    assert relative_error(y.cpu(), expected_y) < 2e-5
    assert relative_error(state.cpu(), expected_state) < 2e-5


def _run_config(inputs: dict[str, Tensor | None], device: str, config: Any) -> tuple[Tensor, Tensor]:
    values = {k: None if v is None else v.to(device) for k, v in cast(inputs, torch.float32).items()}
    given = tuple(values.get(name) for name in gpu.Inputs._fields[: gpu.N_TENSORS])
    return gpu.launch_forward(Tape(), given, (True, (0.0, float("inf")), None, True), config)


_WALK = gpu.Forward(walk=True, chunk=16, block_p=16, warps=4, stages=1)


@pytest.mark.parametrize("packed", [0.0, 0.1])
@pytest.mark.parametrize("segments", [False, True])
def test_the_other_schedule(
    segments: bool, packed: float, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walks that write the outputs themselves, also cut into segments."""
    monkeypatch.setattr(gpu_launch, "_MIN_SEGMENT_CHUNKS", 1 if segments else 1 << 30)
    inputs, _ = make_inputs(1, 53, 4, 5, 6, 2, packed=packed)
    y, state = _run_config(inputs, triton_device, _WALK)
    expected_y, expected_state = ssd(**inputs, **OPTIONS, backend="reference")
    assert relative_error(y.cpu(), expected_y) < 2e-5
    assert relative_error(state.cpu(), expected_state) < 2e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_token_in_the_other_schedule(value: float, triton_device: str) -> None:
    """The walk is taken a second time, with a guard: other sequences, channels and earlier tokens stay."""
    inputs, _ = make_inputs(2, 53, 4, 5, 6, 2, packed=0.1)
    inputs["x"][0, 27, 1, 3] = value
    y, state = _run_config(inputs, triton_device, _WALK)
    expected_y, expected_state = ssd(**inputs, **OPTIONS, backend="reference")
    assert not expected_y.isfinite().all()
    for actual, expected in ((y.cpu(), expected_y), (state.cpu(), expected_state)):
        sound = expected.isfinite()
        torch.testing.assert_close(actual.isfinite(), sound)
        assert relative_error(actual[sound], expected[sound]) < 2e-5


@pytest.mark.parametrize(
    ("batch", "n_heads", "n_groups", "slice_heads", "packed"),
    [(1, 4, 2, 0, 0.1), (2, 2, 1, 2, 0.0)],
    ids=["a head at a time", "a row at a time"],
)
def test_segments_and_slices(
    batch: int,
    n_heads: int,
    n_groups: int,
    slice_heads: int,
    packed: float,
    triton_device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Walks cut into segments, and a backward pass that goes by slices of rows and heads."""
    n_chunks, head_dim, d_state = 3, 5, 6
    state_bytes = max(1, slice_heads * 2 * n_chunks * head_dim * d_state * 4)
    monkeypatch.setattr(gpu_launch, "_MIN_SEGMENT_CHUNKS", 1)
    monkeypatch.setattr(gpu_launch_backward, "_STATE_BYTES", state_bytes)
    inputs, cotangents = make_inputs(batch, 35, n_heads, head_dim, d_state, n_groups, packed=packed)
    check(inputs, cotangents, torch.float32, backend="triton", device=triton_device, chunk_size=16)


@pytest.mark.parametrize("name", ["x", "dt", "B", "C"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_token_leaves_earlier_ones_alone(name: str, value: float, triton_device: str) -> None:
    torch.manual_seed(0)
    length, at = 24, 19
    given = {
        "x": torch.randn(2, length, 2, 20),
        "dt": torch.rand(2, length, 2),
        "A": -torch.rand(2),
        "B": torch.randn(2, length, 1, 18),
        "C": torch.randn(2, length, 1, 18),
    }
    given = {k: v.to(triton_device) for k, v in given.items()}
    whole = ssd(**given, backend="triton")
    given[name] = given[name].clone()
    given[name][0, at] = value
    broken = ssd(**given, backend="triton")
    torch.testing.assert_close(broken[:, :at], whole[:, :at])
    torch.testing.assert_close(broken[1], whole[1])
    assert not broken[0, at].isfinite().all()


@pytest.mark.parametrize(
    ("dt", "A"), [(1e-20, -1e-20), (1e3, -1e3), (50.0, -1e-6), (1e15, -1e30), (0.0, -1.0)]
)
def test_extreme_decays_stay_finite(dt: float, A: float, triton_device: str) -> None:
    inputs, cotangents = make_inputs(1, 20, 1, 3, 4, optional=False)
    inputs["dt"] = torch.full_like(inputs["dt"], dt)
    inputs["A"] = torch.full_like(inputs["A"], A)
    inputs = {k: v.to(triton_device) for k, v in cast(inputs, torch.float32).items()}
    run = partial(
        forward_backward, ssd, inputs, [v.to(triton_device) for v in cotangents], return_final_state=True
    )
    expected, actual = run(backend="reference"), run(backend="triton", chunk_size=16)
    for name, value in expected.items():
        assert value.isfinite().all()
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


def test_reads_views_and_leaves_inputs_alone(triton_device: str) -> None:
    wide = torch.randn(2, 20, 4 * 8 + 2 * 6, device=triton_device)
    before = wide.clone()
    x, B, C = wide.split((32, 6, 6), dim=-1)
    x, B, C = x.unflatten(-1, (4, 8)), B.unsqueeze(2), C.unsqueeze(2)
    z = wide.mT.contiguous().mT[..., :32].unflatten(-1, (4, 8))
    dt = torch.rand(4, 20, 2, device=triton_device).permute(2, 1, 0)
    A = -torch.rand(4, device=triton_device)
    y = ssd(x, dt, A, B, C, z=z, backend="triton")
    copies = [v.clone(memory_format=torch.contiguous_format) for v in (x, dt, A, B, C, z)]
    assert torch.equal(y, ssd(*copies[:5], z=copies[5], backend="triton"))
    assert torch.equal(wide, before)


def test_types_may_differ(triton_device: str) -> None:
    inputs, cotangents = make_inputs(1, 19, 2, 5, 6)
    mixed = {
        k: v.to(torch.float16 if k in ("x", "B", "C", "z", "dt") else torch.float32)
        for k, v in inputs.items()
    }
    mixed = {k: v.to(triton_device) for k, v in mixed.items()}
    cotangents = [v.to(triton_device) for v in cotangents]
    actual = forward_backward(ssd, mixed, cotangents, **OPTIONS, backend="triton")
    exact = forward_backward(ssd, cast(mixed, torch.float64), cotangents, **OPTIONS, backend="reference")
    for name, value in exact.items():
        if name.startswith("d"):
            assert actual[name].dtype == mixed[name[1:]].dtype
        assert relative_error(actual[name], value) < 5e-3, name


def test_only_what_asks_for_gradients_gets_them(triton_device: str) -> None:
    inputs, cotangents = make_inputs(1, 19, 2, 5, 6)
    there = {k: v.float().to(triton_device) for k, v in inputs.items()}
    there["B"].requires_grad_()
    y = ssd(**there, dt_softplus=True, backend="triton")
    (dB,) = torch.autograd.grad(y, there["B"], cotangents[0].float().to(triton_device))
    expected = forward_backward(
        ssd, there, [cotangents[0].to(triton_device)], dt_softplus=True, backend="reference"
    )["dB"]
    torch.testing.assert_close(dB, expected, rtol=1e-4, atol=1e-4)


def test_float64_is_refused_by_name(triton_device: str) -> None:
    inputs, _ = make_inputs(1, 3, 1, 2, 2)
    with pytest.raises(BackendUnavailableError, match="for float64 use backend="):
        ssd(**{k: v.to(triton_device) for k, v in inputs.items()}, backend="triton")


def test_backward_is_repeatable(triton_device: str) -> None:
    inputs, cotangents = make_inputs(2, 35, 2, 5, 6)
    there = {k: v.float().to(triton_device) for k, v in inputs.items()}
    cotangents = [v.to(triton_device) for v in cotangents]
    first, second = (forward_backward(ssd, there, cotangents, **OPTIONS, backend="triton") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("optional", [False, True])
def test_opcheck(optional: bool, triton_device: str) -> None:
    inputs, _ = make_inputs(1, 9, 2, 3, 4, seed=1, optional=optional, packed=0.3 if optional else 0.0)
    values = [inputs.get(name) for name in gpu.Inputs._fields[: gpu.N_TENSORS]]
    values = [
        v
        if v is None
        else v.to(triton_device)
        if v.dtype == torch.int32
        else v.float().to(triton_device).requires_grad_()
        for v in values
    ]
    arguments = (*values, True, 0.0, float("inf"), None, optional)
    torch.library.opcheck(torch.ops.mambakit.ssd_triton_fwd, arguments)


class _Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(-torch.rand(2))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return ssd(x, dt, self.A, B, C, dt_softplus=True, backend="triton")


def test_compiles_as_one_graph(triton_device: str) -> None:
    module = _Module().to(triton_device)
    shapes = ((1, 9, 2, 3), (1, 9, 2), (1, 9, 1, 4), (1, 9, 1, 4))
    inputs = [torch.randn(shape, device=triton_device) for shape in shapes]
    expected = module(*inputs)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected)
    compiled(*inputs).sum().backward()
    gradient, module.A.grad = module.A.grad, None
    module(*inputs).sum().backward()
    torch.testing.assert_close(gradient, module.A.grad)


@pytest.mark.gpu
def test_compiles_where_no_backend_is_named() -> None:
    """One graph for the first length and one for all others."""

    def run(**given: Tensor) -> Any:
        return ssd(**given, dt_softplus=True)

    counter = CompileCounter()
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for length in (16, 40, 33, 70):
        inputs, _ = make_inputs(2, length, 2, 16, 16)
        given = {name: value.float().cuda() for name, value in inputs.items() if value is not None}
        torch.testing.assert_close(compiled(**given), run(**given))
    assert counter.frame_count == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [6, 64, 200])
def test_compiles_without_states(length: int, dtype: torch.dtype) -> None:
    """No state in and none out: the interpreter accepts what the compiler may not."""
    inputs, _ = make_inputs(2, length, 4, 16, 16)
    inputs = cast({k: None if v is None else v.cuda() for k, v in inputs.items()}, dtype)
    del inputs["initial_state"]
    expected = ssd(**inputs, dt_softplus=True, backend="portable")
    actual = ssd(**inputs, dt_softplus=True, backend="triton")
    assert relative_error(actual, expected) < 8 * torch.finfo(dtype).eps
