"""causal_conv1d and its step: every backend against the reference in float64, and the op's laws."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.kernels import causal_conv1d, causal_conv1d_step
from mambakit.kernels.backend import BackendUnavailableError
from mambakit.kernels.causal_conv1d import portable
from mambakit.kernels.causal_conv1d.library import causal_conv1d_fwd
from mambakit.kernels.testing import assert_as_accurate, cast, forward_backward

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def make_inputs(
    batch: int = 2,
    length: int = 37,
    channels: int = 18,
    width: int = 4,
    *,
    options: bool = True,
    packed: bool = False,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs: dict[str, Tensor | None] = {
        "x": normal(batch, length, channels),
        "weight": normal(channels, width),
    }
    if options:
        inputs |= {"bias": normal(channels), "initial_state": normal(batch, channels, width - 1)}
    if packed:
        opens = torch.rand(batch, length, generator=generator) < 0.4
        inputs["seq_idx"] = opens.cumsum(1).int()
    return {name: value.to(device) for name, value in cast(inputs, dtype).items()}


def check_against_reference(
    inputs: dict[str, Tensor | None], activation: str | None, backend: str = "portable"
) -> None:
    generator = torch.Generator().manual_seed(1)
    batch, _, channels = inputs["x"].shape
    state_shape = (batch, channels, inputs["weight"].shape[1] - 1)
    cotangents = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs["x"].device)
        for shape in (tuple(inputs["x"].shape), state_shape)
    ]

    def run(values: dict[str, Tensor | None], backend: str) -> dict[str, Tensor]:
        return forward_backward(
            causal_conv1d,
            values,
            cotangents,
            activation=activation,
            return_final_state=True,
            backend=backend,
        )

    actual = run(inputs, backend)
    naive = run(inputs, "reference")
    exact = run(cast(inputs, torch.float64), "reference")
    for name, value in exact.items():
        assert actual[name].dtype == naive[name].dtype
        assert_as_accurate(name, actual[name], exact=value, naive=naive[name])


@pytest.mark.parametrize("plain_torch", [False, True], ids=["compiled", "torch"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("options", [False, True], ids=["bare", "options"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 0, 4, 3), (0, 4, 3, 2), (1, 1, 1, 1), (2, 2, 17, 5), (2, 67, 18, 4), (1, 100, 48, 3)],
    ids=str,
)
def test_matches_reference(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    options: bool,
    packed: bool,
    plain_torch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(portable, "HAS_NUMBA", not plain_torch)
    inputs = make_inputs(*shape, options=options, packed=packed, dtype=dtype)
    check_against_reference(inputs, "silu" if options else None)


OPTIONS_AND_PACKED = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "packed"),
    [
        *((shape, torch.float32, *kind) for shape in [(2, 0, 4, 3), (0, 4, 3, 2), (1, 1, 1, 1), (2, 2, 17, 5)]
          for kind in OPTIONS_AND_PACKED),
        # several runs and blocks of channels, ragged: each of the four once
        ((2, 35, 16, 4), torch.float16, False, False),
        ((2, 35, 16, 4), torch.float16, True, True),
        ((1, 35, 264, 3), torch.float32, False, True),
        ((1, 35, 264, 3), torch.float32, True, False),
        *(pytest.param(*at, *kind, marks=pytest.mark.gpu)
          for at in [((2, 1000, 264, 4), torch.float32), ((2, 4097, 520, 4), torch.bfloat16),
                     ((3, 257, 130, 2), torch.bfloat16)]
          for kind in OPTIONS_AND_PACKED),
    ],
    ids=str,
)  # fmt: skip
def test_triton_matches_reference(
    shape: tuple[int, ...], dtype: torch.dtype, options: bool, packed: bool, triton_device: str
) -> None:
    inputs = make_inputs(*shape, options=options, packed=packed, dtype=dtype, device=triton_device)
    check_against_reference(inputs, "silu" if options else None, "triton")


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(1, 150), st.integers(1, 6)),
    options=st.booleans(),
    packed=st.booleans(),
    activation=st.sampled_from([None, "silu"]),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape_matches_reference(
    shape: tuple[int, int, int, int], options: bool, packed: bool, activation: str | None, dtype: torch.dtype
) -> None:
    check_against_reference(make_inputs(*shape, options=options, packed=packed, dtype=dtype), activation)


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_gradcheck(backend: str, packed: bool) -> None:
    inputs = make_inputs(2, 5, 3, 4, packed=packed)
    seq_idx = inputs.pop("seq_idx", None)
    names = list(inputs)

    def op(*values: Tensor) -> Any:
        given = dict(zip(names, values, strict=True))
        return causal_conv1d(
            **given, seq_idx=seq_idx, activation="silu", return_final_state=True, backend=backend
        )

    leaves = [value.requires_grad_() for value in inputs.values()]
    assert torch.autograd.gradcheck(op, leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(op, leaves)


def test_triton_takes_mixed_dtypes_and_the_states_gradient_alone(triton_device: str) -> None:
    inputs = make_inputs(2, 9, 24, 4, dtype=torch.float32, device=triton_device)
    inputs["x"] = inputs["x"].half()
    exact = {name: value.double() for name, value in inputs.items()}
    for values in (inputs, exact):
        for value in values.values():
            value.requires_grad_()
    for values, backend in ((inputs, "triton"), (exact, "reference")):
        _, final = causal_conv1d(**values, activation="silu", return_final_state=True, backend=backend)
        final.square().sum().backward()
    for name, value in inputs.items():
        assert value.grad.dtype == value.dtype
        expected = exact[name].grad if name in ("x", "initial_state") else torch.zeros_like(exact[name])
        torch.testing.assert_close(value.grad.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
def test_triton_offsets_beyond_2_to_the_31() -> None:
    x = torch.randn(1, (1 << 25) + 5, 72, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(72, 4, device="cuda")
    tail = causal_conv1d(x[:, -40:], weight, activation="silu", backend="reference")
    y = causal_conv1d(x, weight, activation="silu", backend="triton")
    torch.testing.assert_close(y[:, -30:], tail[:, -30:])


@pytest.mark.parametrize(("width", "backend"), [(1, None), (2, None), (4, None), (4, "triton")])
def test_pieces_and_steps_equal_the_whole(width: int, backend: str | None, triton_device: str) -> None:
    dtype, device = (torch.float32, triton_device) if backend else (torch.float64, "cpu")
    near = {"rtol": 1e-5, "atol": 1e-6} if backend else {"rtol": 1e-12, "atol": 1e-12}
    inputs = make_inputs(2, 41, 18, width, dtype=dtype, device=device)
    x, state = inputs.pop("x"), inputs.pop("initial_state")
    options: dict[str, Any] = {"activation": "silu", "backend": backend}
    y, final = causal_conv1d(x, **inputs, **options, initial_state=state, return_final_state=True)
    h, pieces = state, []
    for start, stop in ((0, 0), (0, 1), (1, 33), (33, 41)):
        piece, h = causal_conv1d(
            x[:, start:stop], **inputs, **options, initial_state=h, return_final_state=True
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), y, **near)
    assert torch.equal(h, final)
    h = state
    for t in range(41):
        y_t, h = causal_conv1d_step(h, x[:, t], **inputs, **options)
        torch.testing.assert_close(y_t, y[:, t], **near)
    assert torch.equal(h, final)


@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize("lengths", [(1, 1, 1), (5, 1, 32, 40), (64, 2)], ids=str)
def test_packing_equals_separate_sequences(
    lengths: tuple[int, ...], backend: str | None, triton_device: str
) -> None:
    dtype, device = (torch.float32, triton_device) if backend else (torch.float64, "cpu")
    inputs = make_inputs(1, sum(lengths), 18, 4, dtype=dtype, device=device)
    x, first_state = inputs.pop("x"), inputs.pop("initial_state")
    seq_idx = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int()[None]
    seq_idx = seq_idx.to(device)
    options: dict[str, Any] = {"activation": "silu", "return_final_state": True, "backend": backend}
    y, final = causal_conv1d(x, **inputs, initial_state=first_state, seq_idx=seq_idx, **options)
    start = 0
    for i, length in enumerate(lengths):
        own = x[:, start : start + length]
        y_own, own_state = causal_conv1d(own, **inputs, initial_state=None if i else first_state, **options)
        torch.testing.assert_close(y[:, start : start + length], y_own, rtol=1e-12, atol=1e-12)
        start += length
    assert torch.equal(final, own_state)


@pytest.mark.parametrize("backend", [None, "triton"])
def test_nan_stays_in_its_own_sequence_and_time(backend: str | None, triton_device: str) -> None:
    dtype, device = (torch.float32, triton_device) if backend else (torch.float64, "cpu")
    inputs = make_inputs(1, 50, 18, 4, dtype=dtype, device=device)
    seq_idx = (torch.arange(50, device=device) >= 20).int()[None]
    inputs["x"][0, 19] = float("nan")
    x = inputs["x"].requires_grad_()
    y, final = causal_conv1d(
        **inputs, seq_idx=seq_idx, activation="silu", return_final_state=True, backend=backend
    )
    assert y[0, 19].isnan().all()
    assert y[0, :19].isfinite().all()
    assert y[0, 20:].isfinite().all()
    assert final.isfinite().all()
    y[0, 20:].sum().backward()
    assert x.grad[0, 20:].isfinite().all()


@pytest.mark.parametrize("backend", ["portable", "triton"])
@pytest.mark.parametrize("channels", [18, 24])
def test_views_and_inputs_left_alone(channels: int, backend: str, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    whole = torch.randn(2, 40, 2 * channels, generator=torch.Generator().manual_seed(0)).to(device)
    weight = torch.randn(4, channels, generator=torch.Generator().manual_seed(1)).to(device).t()
    before = whole.clone()
    x = whole.chunk(2, -1)[1]
    run = functools.partial(causal_conv1d, activation="silu", backend=backend)
    y = run(x, weight)
    assert torch.equal(y, run(x.contiguous(), weight.contiguous()))
    assert torch.equal(y, run(x.mT.contiguous().mT, weight))
    assert torch.equal(whole, before)


@pytest.mark.parametrize("backend", ["portable", "triton"])
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool, backend: str, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    inputs = make_inputs(2, 5, 3, 4, packed=packed, dtype=torch.float32, device=device)
    tensors = {name: v.requires_grad_(v.is_floating_point()) for name, v in inputs.items()}
    names = ("x", "weight", "bias", "initial_state", "seq_idx")
    torch.library.opcheck(causal_conv1d_fwd, (*(tensors.get(name) for name in names), True, backend))


class _Conv(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return causal_conv1d(x, weight, activation="silu", backend=self.backend)


@pytest.mark.parametrize("backend", ["portable", "triton"])
def test_export_and_compile_see_through(backend: str, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    inputs = make_inputs(2, 9, 4, 3, options=False, dtype=torch.float32, device=device)
    values = (inputs["x"], inputs["weight"])
    conv = _Conv(backend)
    expected = conv(*values)
    assert torch.equal(torch.export.export(conv, values).module()(*values), expected)
    compiles = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(conv, backend=compiles, fullgraph=True, dynamic=True)
    assert torch.equal(compiled(*values), expected)
    assert torch.equal(compiled(values[0][:, :7].clone(), values[1]), expected[:, :7])
    assert compiles.frame_count == 1
    leaf = values[0].clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(conv, leaf, values[1], use_reentrant=False).sum().backward()
    own = values[0].clone().requires_grad_()
    conv(own, values[1]).sum().backward()
    assert torch.equal(leaf.grad, own.grad)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("width", [1, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_matches_reference(dtype: torch.dtype, width: int, grad: bool, inplace: bool) -> None:
    if grad and inplace:
        pytest.skip("a state that needs gradients is not overwritten")
    inputs = make_inputs(3, 1, 35, width, dtype=dtype)
    expected, state_expected = causal_conv1d(
        **inputs, activation="silu", return_final_state=True, backend="reference"
    )
    state = inputs.pop("initial_state").to(torch.float64 if dtype == torch.float64 else torch.float32)
    kept = state.clone()
    inputs["x"] = inputs["x"][:, 0].requires_grad_(grad)
    y, new_state = causal_conv1d_step(state, **inputs, activation="silu", inplace=inplace)
    assert y.dtype == dtype
    assert y.requires_grad == grad
    torch.testing.assert_close(y, expected[:, 0])
    assert torch.equal(new_state, state_expected)
    assert (new_state is state) == inplace
    assert inplace or torch.equal(state, kept)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("x", lambda v: v[0], ValueError, r"x: expected shape \(batch, length, channels\), got \(7, 6\)"),
        ("x", lambda v: v.int(), TypeError, "x: expected a floating dtype"),
        (
            "weight",
            lambda v: v[:2],
            ValueError,
            r"weight: expected shape \(channels=6, width\), got \(2, 4\)",
        ),
        ("weight", lambda v: v[:, :0], ValueError, "weight: expected width of at least 1"),
        ("bias", lambda v: v[:2], ValueError, "bias: expected shape"),
        ("initial_state", lambda v: v[..., :1], ValueError, "initial_state: expected shape .*past=3"),
        ("seq_idx", lambda v: v.long(), TypeError, "seq_idx: expected dtype int32"),
        ("bias", lambda v: v.to("meta"), ValueError, "bias: expected device cpu"),
    ],
)
def test_checks(name: str, change: Any, error: type[Exception], message: str) -> None:
    inputs = make_inputs(2, 7, 6, 4, packed=True)
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=message):
        causal_conv1d(**inputs)


def test_options_are_checked() -> None:
    inputs = make_inputs(1, 3, 2, 2)
    with pytest.raises(ValueError, match="activation: expected None or 'silu', got 'relu'"):
        causal_conv1d(**inputs, activation="relu")
    with pytest.raises(ValueError, match="backend: expected one of"):
        causal_conv1d(**inputs, backend="fast")
    with pytest.raises(BackendUnavailableError, match=r"cannot run causal_conv1d: .*backend='portable'"):
        causal_conv1d(**inputs, backend="triton")  # float64
    with pytest.raises(ValueError, match="state: expected shape"):
        causal_conv1d_step(torch.zeros(1, 2, 3), torch.zeros(1, 2), torch.zeros(2, 2))
