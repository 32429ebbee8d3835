"""selective_scan on Triton: on a GPU, or on the CPU in Triton's interpreter (small shapes, no bfloat16)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mambakit.kernels import selective_scan
from mambakit.kernels.backend import BackendUnavailableError
from mambakit.kernels.selective_scan.library import selective_scan_fwd
from mambakit.kernels.selective_scan.testing import check_against_reference, make_inputs

pytest.importorskip("triton")

gpu = pytest.importorskip("mambakit.kernels.selective_scan.gpu")


def check(*shape: int, device: str, **options: Any) -> None:
    kwargs = {name: options.pop(name) for name in ("options", "packed", "dtype") if name in options}
    inputs = make_inputs(*shape, device=device, **{"dtype": torch.float32} | kwargs)
    check_against_reference(inputs, "triton", **{"dt_softplus": True} | options)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("options", [False, True], ids=["bare", "options"])
@pytest.mark.parametrize(
    "shape", [(2, 0, 4, 1, 2), (0, 4, 3, 1, 2), (1, 1, 1, 1, 1), (1, 9, 6, 2, 5)], ids=str
)
def test_matches_reference(shape: tuple[int, ...], options: bool, packed: bool, triton_device: str) -> None:
    limits = {"dt_limit": (0.1, 2.0)} if options else {}
    check(*shape, options=options, packed=packed, device=triton_device, **limits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sixteen_states(dtype: torch.dtype, triton_device: str) -> None:
    """The shape that the kernels are made for, with a second, partly filled block of channels."""
    check(1, 6, 34, 1, 16, dtype=dtype, device=triton_device)


def test_more_states_than_a_thread_holds(triton_device: str) -> None:
    check(1, 3, 3, 1, 40, device=triton_device)


def test_without_softplus(triton_device: str) -> None:
    inputs = make_inputs(1, 5, 3, 1, 2, dtype=torch.float32, device=triton_device)
    inputs["dt"] = inputs["dt"].abs()
    del inputs["dt_bias"]
    check_against_reference(inputs, "triton")


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_segments(packed: bool, triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence cut for more parallel work, forward and backward, with several saved states each."""
    config = dataclasses.replace(
        gpu.DEFAULT,
        save_every=4,
        shortest_segment=4,
        forward_tile=4,
        forward_programs=99,
        backward_programs=99,
    )
    monkeypatch.setattr(gpu, "DEFAULT", config)
    device = torch.device(triton_device)
    assert gpu._forward_segments(1, 19, device, config)[0] > 1
    assert gpu._backward_segments(1, 1, 19, device, config)[0] > 1
    check(1, 19, 2, 1, 3, packed=packed, device=triton_device)


def test_programs_of_several_blocks(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(gpu.DEFAULT, save_every=4, forward_tile=4, backward_programs=0, passes=2)
    monkeypatch.setattr(gpu, "DEFAULT", config)
    check(1, 6, 66, 1, 2, device=triton_device)


def test_nan_stays_in_its_own_sequence(triton_device: str) -> None:
    inputs = make_inputs(1, 12, 3, 1, 2, dtype=torch.float32, device=triton_device)
    seq_idx = (torch.arange(12) >= 7).int()[None].to(triton_device)
    inputs["x"][0, 3] = float("nan")
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    y, final = selective_scan(
        **leaves, seq_idx=seq_idx, dt_softplus=True, return_final_state=True, backend="triton"
    )
    assert y[0, 3:7].isnan().all()
    assert y[0, :3].isfinite().all()
    assert y[0, 7:].isfinite().all()
    assert final.isfinite().all()
    y[0, 7:].sum().backward()
    assert leaves["x"].grad[0, 7:].isfinite().all()


def test_is_causal(triton_device: str) -> None:
    inputs = make_inputs(1, 12, 3, 1, 2, dtype=torch.float32, device=triton_device)
    y = selective_scan(**inputs, dt_softplus=True, backend="triton")
    for name in ("x", "dt", "B", "C", "z"):
        inputs[name][:, 7:] = float("nan")
    changed = selective_scan(**inputs, dt_softplus=True, backend="triton")
    assert torch.equal(y[:, :7], changed[:, :7])
    assert changed[:, 7:].isnan().all()


@pytest.mark.parametrize("dt_value", [-100.0, 0.0, 100.0, 1e4])
def test_extreme_steps(dt_value: float, triton_device: str) -> None:
    inputs = make_inputs(1, 4, 18, 1, 5, dtype=torch.float32, device=triton_device)
    inputs["dt"] = torch.full_like(inputs["dt"], dt_value)
    inputs["A"] = inputs["A"] * 100
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    y = selective_scan(**leaves, dt_softplus=True, backend="triton")
    y.sum().backward()
    assert y.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())
    if dt_value >= 0:  # below that the step size is smaller than any normal number and may count as zero
        check_against_reference({name: v.detach() for name, v in inputs.items()}, "triton", dt_softplus=True)


def test_views_and_repeats(triton_device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(2, 5, 3 * 3 + 12, generator=generator).to(triton_device)
    x, z, dt, BC = whole.split([3, 3, 3, 12], dim=-1)
    B, C = BC.unflatten(-1, (2, 1, 6)).unbind(2)
    A = -torch.rand(6, 3, generator=generator).t().to(triton_device) - 0.1
    before = whole.clone()
    y = selective_scan(x, dt, A, B, C, z=z, dt_softplus=True, backend="triton")
    copies = [value.contiguous() for value in (x, dt, A, B, C)]
    again = selective_scan(*copies, z=z.contiguous(), dt_softplus=True, backend="triton")
    assert torch.equal(y, again)
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(y, selective_scan(transposed, dt, A, B, C, z=z, dt_softplus=True, backend="triton"))
    assert torch.equal(whole, before)


def test_mixed_dtypes(triton_device: str) -> None:
    inputs = make_inputs(1, 3, 3, 1, 2, dtype=torch.float32, device=triton_device)
    inputs |= {name: inputs[name].half().requires_grad_() for name in ("x", "dt", "B", "C", "z")}
    y, state = selective_scan(**inputs, dt_softplus=True, return_final_state=True, backend="triton")
    rounded = {name: v.detach().float() for name, v in inputs.items()}
    expected = selective_scan(**rounded, dt_softplus=True, backend="reference")
    assert (y.dtype, state.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(y.float(), expected, rtol=2e-3, atol=2e-3)
    y.sum().backward()
    assert inputs["B"].grad.dtype == torch.float16


def test_opcheck(triton_device: str) -> None:
    inputs = make_inputs(1, 2, 2, 1, 1, packed=True, dtype=torch.float32, device=triton_device)
    tensors = {name: v.requires_grad_(v.is_floating_point()) for name, v in inputs.items()}
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state", "seq_idx")
    arguments = tuple(tensors.get(name) for name in names)
    torch.library.opcheck(selective_scan_fwd, (*arguments, True, 0.0, float("inf"), True, "triton"))


def test_compiled_equals_eager(triton_device: str) -> None:
    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(x, dt, A, B, C, dt_softplus=True, backend="triton")

    compiled = torch.compile(scan, backend="eager", fullgraph=True, dynamic=True)
    for length in (3, 5):
        inputs = make_inputs(1, length, 2, 1, 2, options=False, dtype=torch.float32, device=triton_device)
        values = [inputs[name].requires_grad_() for name in ("x", "dt", "A", "B", "C")]
        y, y_compiled = scan(*values), compiled(*values)
        assert torch.equal(y, y_compiled)
        cotangent = torch.randn_like(y)
        grads, grads_compiled = (torch.autograd.grad(out, values, cotangent) for out in (y, y_compiled))
        assert all(torch.equal(a, b) for a, b in zip(grads, grads_compiled, strict=True))


def test_float64_is_refused(triton_device: str) -> None:
    inputs = make_inputs(1, 3, 2, 1, 2, device=triton_device)
    with pytest.raises(BackendUnavailableError, match=r"float64.*portable"):
        selective_scan(**inputs, backend="triton")
    assert selective_scan(**inputs).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 67, 18, 2, 5), (1, 100, 48, 3, 16), (2, 1000, 70, 1, 16), (1, 333, 40, 1, 32), (1, 70, 33, 1, 256)],
    ids=str,
)
def test_matches_reference_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype, packed: bool) -> None:
    check(*shape, packed=packed, dtype=dtype, device="cuda", dt_limit=(0.01, 2.0))
