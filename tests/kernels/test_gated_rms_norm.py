"""gated_rms_norm against its reference, torch's own rms_norm, and the rules of the op contract."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from mambakit.kernels import gated_rms_norm
from mambakit.kernels.backend import BackendUnavailableError
from mambakit.kernels.testing import assert_as_accurate, cast, forward_backward, relative_error

Inputs = dict[str, Tensor | None]


def make_inputs(shape: tuple[int, ...], gated: bool = True, seed: int = 0) -> tuple[Inputs, list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    inputs = {"x": randn(*shape), "weight": randn(shape[-1]), "z": randn(*shape) if gated else None}
    return inputs, [randn(*shape)]


def check(
    inputs: Inputs,
    cotangents: list[Tensor],
    dtype: torch.dtype,
    backend: str = "portable",
    device: str = "cpu",
    **options: object,
) -> None:
    inputs = {name: None if v is None else v.to(device) for name, v in cast(inputs, dtype).items()}
    cotangents = [v.to(device) for v in cotangents]
    tested = partial(gated_rms_norm, backend=backend, **options)
    reference = partial(gated_rms_norm, backend="reference", **options)
    actual = forward_backward(tested, inputs, cotangents)
    naive = forward_backward(reference, inputs, cotangents)
    exact = forward_backward(reference, cast(inputs, torch.float64), cotangents)
    for name in exact:
        assert actual[name].dtype == dtype
        if dtype == torch.float64:
            assert relative_error(actual[name], exact[name]) < 1e-12, name
        else:
            assert_as_accurate(name, actual[name], exact=exact[name], naive=naive[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [
        ((2, 7, 24), None),
        ((2, 7, 24), 8),
        ((3, 33), 11),
        ((40,), 1),
        ((2, 0, 5), None),
        ((0, 3, 4), 2),
        ((130, 300), 100),
    ],
    ids=str,
)
def test_matches_reference(
    shape: tuple[int, ...], group_size: int | None, gated: bool, norm_before_gate: bool, dtype: torch.dtype
) -> None:
    check(*make_inputs(shape, gated), dtype, group_size=group_size, norm_before_gate=norm_before_gate)


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("shape", "group_size", "dtype"),
    [
        ((2, 7, 24), None, torch.float32),
        ((2, 7, 24), 8, torch.float16),
        ((3, 33), 11, torch.float32),
        ((6,), 3, torch.float32),
        ((2, 0, 5), None, torch.float32),
        ((0, 3, 4), 2, torch.float32),
        # three tiles a row, several rows a program
        ((2, 3, 768), None, torch.float16),
        ((7, 200), 100, torch.float32),
        pytest.param((4, 1000, 1536), None, torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param((3, 1001, 1536), 192, torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param((777, 5000), None, torch.float32, marks=pytest.mark.gpu),
        pytest.param((5, 33000), None, torch.float32, marks=pytest.mark.gpu),
    ],
    ids=str,
)
def test_triton_matches_reference(
    shape: tuple[int, ...],
    group_size: int | None,
    dtype: torch.dtype,
    gated: bool,
    norm_before_gate: bool,
    triton_device: str,
) -> None:
    options = {"group_size": group_size, "norm_before_gate": norm_before_gate}
    check(*make_inputs(shape, gated), dtype, "triton", triton_device, **options)


def test_triton_takes_mixed_dtypes_and_not_float64(triton_device: str) -> None:
    inputs, cotangents = make_inputs((5, 48))
    inputs = {name: v.to(triton_device) for name, v in inputs.items()}
    with pytest.raises(BackendUnavailableError, match="float64"):
        gated_rms_norm(**inputs, backend="triton")
    mixed = {"x": inputs["x"].half(), "weight": inputs["weight"].float(), "z": inputs["z"].half()}
    cotangents = [v.to(triton_device) for v in cotangents]
    actual = forward_backward(partial(gated_rms_norm, backend="triton"), mixed, cotangents)
    naive = forward_backward(partial(gated_rms_norm, backend="reference"), mixed, cotangents)
    exact = forward_backward(
        partial(gated_rms_norm, backend="reference"), cast(mixed, torch.float64), cotangents
    )
    for name in exact:
        assert actual[name].dtype == naive[name].dtype
        assert_as_accurate(name, actual[name], exact=exact[name], naive=naive[name])


@pytest.mark.gpu
def test_triton_offsets_beyond_2_to_the_31() -> None:
    x = torch.randn((1 << 25) + 5, 72, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(72, device="cuda")
    y = gated_rms_norm(x, weight, backend="triton")
    torch.testing.assert_close(y[-30:], gated_rms_norm(x[-30:], weight, backend="reference"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 9),
    groups=st.integers(1, 4),
    # the gradient of one normed value is all cancellation: only a grid case above, among others, has it
    group_size=st.integers(3, 40),
    before=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_matches_reference_on_drawn_shapes(
    rows: int, groups: int, group_size: int, before: bool, seed: int
) -> None:
    inputs, cotangents = make_inputs((rows, groups * group_size), seed=seed)
    check(inputs, cotangents, torch.float32, group_size=group_size, norm_before_gate=before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("group_size", [4, 12])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_is_torchs_rms_norm_with_a_gate(
    norm_before_gate: bool, group_size: int, backend: str, dtype: torch.dtype
) -> None:
    inputs, _ = make_inputs((3, 5, 12))
    x, weight, z = (inputs[name].to(dtype) for name in ("x", "weight", "z"))
    u = x if norm_before_gate else x * F.silu(z)
    expected = F.rms_norm(u.unflatten(-1, (-1, group_size)), (group_size,), eps=1e-3).flatten(-2) * weight
    if norm_before_gate:
        expected = expected * F.silu(z)
    actual = gated_rms_norm(
        x, weight, z=z, eps=1e-3, group_size=group_size, norm_before_gate=norm_before_gate, backend=backend
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_gradcheck(norm_before_gate: bool, backend: str) -> None:
    inputs, _ = make_inputs((2, 3, 6))
    leaves = [value.requires_grad_() for value in inputs.values()]
    assert torch.autograd.gradcheck(
        lambda x, weight, z: gated_rms_norm(
            x, weight, z=z, group_size=3, norm_before_gate=norm_before_gate, backend=backend
        ),
        leaves,
    )


@pytest.mark.parametrize("backend", ["portable", "triton"])
@pytest.mark.parametrize("start", [3, 8])
def test_reads_views_and_leaves_inputs_alone(start: int, backend: str, triton_device: str) -> None:
    wide = torch.randn(2, 6, 40).to(triton_device if backend == "triton" else "cpu")
    before = wide.clone()
    x, z = wide[..., start : start + 16], wide[..., 20:36]
    weight = torch.randn(16).to(wide.device)
    norm = partial(gated_rms_norm, backend=backend)
    y = norm(x, weight, z=z)
    torch.testing.assert_close(y, norm(x.clone(), weight, z=z.clone()), rtol=0, atol=0)
    torch.testing.assert_close(norm(x.mT.clone().mT, weight, z=z), y, rtol=0, atol=0)
    assert torch.equal(wide, before)


@pytest.mark.parametrize("backend", ["portable", "triton"])
@pytest.mark.parametrize("gated", [False, True])
def test_opcheck(gated: bool, backend: str, triton_device: str) -> None:
    inputs, _ = make_inputs((2, 3, 6), gated)
    device = triton_device if backend == "triton" else "cpu"
    x, weight, z = (None if v is None else v.float().to(device).requires_grad_() for v in inputs.values())
    torch.library.opcheck(torch.ops.mambakit.gated_rms_norm_fwd, (x, weight, z, 1e-5, 3, False, backend))


@pytest.mark.parametrize("backend", ["portable", "triton"])
def test_compiles_as_one_graph_for_any_length(backend: str, triton_device: str) -> None:
    inputs, _ = make_inputs((2, 5, 6))
    device = triton_device if backend == "triton" else "cpu"
    x, weight, z = (v.float().to(device).requires_grad_() for v in inputs.values())
    norm = partial(gated_rms_norm, backend=backend)
    compiles = CompileCounter()
    compiled = torch.compile(norm, backend=compiles, fullgraph=True, dynamic=True)
    for length in (5, 4):
        some_x, some_z = x[:, :length].clone(), z[:, :length].clone()
        torch.testing.assert_close(compiled(some_x, weight, z=some_z), norm(some_x, weight, z=some_z))
    assert compiles.frame_count == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x: expected a torch\.Tensor, got list"),
        ({"x": torch.zeros(2, 6, dtype=torch.int64)}, TypeError, "x: expected a floating dtype .* got int64"),
        ({"weight": torch.ones(5)}, ValueError, r"weight: expected shape \(channels=6\), got \(5,\)"),
        ({"z": torch.ones(6)}, ValueError, r"z: expected the shape of x, \(2, 6\), got \(6,\)"),
        ({"eps": 0.0}, ValueError, "eps: expected a positive number, got 0"),
        ({"group_size": 4}, ValueError, "group_size: must divide channels=6 .* got 4"),
        ({"group_size": 3.0}, TypeError, r"group_size: expected a whole number or None, got 3\.0"),
        ({"group_size": 0}, ValueError, "group_size: must divide channels=6 .* got 0"),
        ({"backend": "fast"}, ValueError, "backend: expected one of reference, portable, triton, got 'fast'"),
    ],
)
def test_refuses(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.ones(2, 6), "weight": torch.ones(6), **change}
    with pytest.raises(error, match=message):
        gated_rms_norm(arguments.pop("x"), arguments.pop("weight"), **arguments)
