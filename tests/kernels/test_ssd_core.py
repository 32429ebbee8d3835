"""ssd_core: decay and scale apart, a skip for every token, heads' own B and C; on every backend."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from mambakit.kernels import ssd, ssd_core
from mambakit.kernels.testing import assert_as_accurate, cast, forward_backward, relative_error

Inputs = dict[str, Tensor | None]
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
# batch, length, n_heads, head_dim, d_state, n_groups, n_angles
SHAPES = [(2, 19, 4, 3, 6, 2, 2), (1, 9, 2, 5, 16, 1, 8), (1, 35, 2, 20, 5, 1, 1), (2, 1, 2, 3, 4, 2, 2)]
TURNS = ("B_bias", "C_bias", "angles")


def make(shape: tuple[int, ...], *, packed: float = 0.0, seed: int = 0) -> tuple[Inputs, list[Tensor]]:
    """Float64 arguments of ssd_core, every one of them, and cotangents of y and the state."""
    batch, length, n_heads, head_dim, d_state, n_groups, n_angles = shape
    draw = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    inputs: Inputs = {
        "x": randn(batch, length, n_heads, head_dim),
        "log_decay": -randn(batch, length, n_heads).abs(),
        "scale": randn(batch, length, n_heads) + 0.5,
        "B": randn(batch, length, n_groups, d_state),
        "C": randn(batch, length, n_groups, d_state),
        "skip": randn(batch, length, n_heads),
        "own_scale": randn(batch, length, n_heads),
        "z": randn(batch, length, n_heads, head_dim),
        "B_bias": randn(n_heads, d_state),
        "C_bias": randn(n_heads, d_state),
        "angles": 3 * randn(batch, length, n_heads, n_angles),
        "initial_state": randn(batch, n_heads, head_dim, d_state),
    }
    if packed:
        starts = torch.rand((batch, length), generator=draw) < packed
        inputs["seq_idx"] = starts.int().cumsum(1).int()
    return inputs, [randn(batch, length, n_heads, head_dim), randn(batch, n_heads, head_dim, d_state)]


def check(
    inputs: Inputs, cotangents: list[Tensor], dtype: torch.dtype, backend: str, device: str = "cpu"
) -> None:
    inputs = {name: None if v is None else v.to(device) for name, v in cast(inputs, dtype).items()}
    cotangents = [v.to(device) for v in cotangents]
    run = partial(forward_backward, ssd_core, cotangents=cotangents, return_final_state=True)
    exact = run(cast(inputs, torch.float64), backend="reference")
    naive = run(inputs, backend="reference")
    actual = run(inputs, backend=backend, chunk_size=16)
    assert actual["out0"].dtype == dtype
    for name in exact:
        got, plain = actual[name], naive[name]
        if dtype == torch.float64:
            assert relative_error(got, exact[name]) < 1e-11, name
            continue
        slack = 2.0
        if backend == "triton":  # its products take operands of the inputs' precision
            got, plain = got.to(dtype), plain.to(dtype)
            slack = 4.0 if got.is_cuda and dtype == torch.float32 else 2.0
        assert_as_accurate(name, got, exact=exact[name], naive=plain, slack=slack)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("packed", [0.0, 0.2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_portable_matches_reference(shape: tuple[int, ...], packed: float, dtype: torch.dtype) -> None:
    check(*make(shape, packed=packed), dtype, "portable")


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
@pytest.mark.parametrize(("shape", "packed"), list(zip(SHAPES, (0.2, 0.0, 0.1, 0.0), strict=True)), ids=str)
def test_triton_matches_reference(
    shape: tuple[int, ...], packed: float, dtype: torch.dtype, triton_device: str
) -> None:
    check(*make(shape, packed=packed), dtype, "triton", triton_device)


def test_later_calls_equal_the_first(triton_device: str) -> None:
    """The first call of a make launches, the second is recorded, the third is played."""
    for seed in (0, 1, 2):
        inputs, cotangents = make((1, 19, 2, 3, 4, 1, 2), seed=seed)
        check(inputs, cotangents, torch.float32, "triton", triton_device)


def test_rows_one_after_the_other(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the states of all rows would take too much memory; recorded too."""
    launches = pytest.importorskip("mambakit.kernels.ssd.gpu_launch_backward")
    monkeypatch.setattr(launches, "_STATE_BYTES", 1)
    for seed in (0, 1, 2):
        inputs, cotangents = make((2, 19, 2, 3, 4, 1, 2), seed=seed, packed=0.2)
        check(inputs, cotangents, torch.float32, "triton", triton_device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 1030, 8, 64, 128, 2, 32), (1, 4097, 4, 40, 48, 1, 24)], ids=str)
def test_triton_matches_reference_at_length(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs, cotangents = make(shape, packed=0.003)
    check(inputs, cotangents, dtype, "triton", "cuda")


@pytest.mark.parametrize("backend", ["portable", "triton"])
@pytest.mark.parametrize(
    "without",
    [
        ("skip", "z"),
        ("skip",),
        ("own_scale",),
        (*TURNS, "own_scale"),
        ("own_scale", "skip", "z"),
        ("B_bias",),
        ("C_bias", "angles"),
        ("angles", "z"),
        (*TURNS, "initial_state"),
    ],
    ids="-".join,
)
def test_any_of_them_may_be_left_out(without: tuple[str, ...], backend: str, triton_device: str) -> None:
    inputs, cotangents = make((1, 19, 2, 3, 4, 1, 2), seed=1)
    for name in without:
        inputs[name] = None
    check(inputs, cotangents, torch.float32, backend, "cpu" if backend == "portable" else triton_device)


def test_ssd_is_the_core_with_dt_for_both() -> None:
    inputs, _ = make((2, 21, 4, 3, 6, 2, 2))
    x, B, C, z = (inputs[name] for name in ("x", "B", "C", "z"))
    dt, A, D = inputs["scale"].abs(), -torch.rand(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = ssd(x, dt, A, B, C, D=D, z=z)
    actual = ssd_core(x, dt * A, dt, B, C, skip=D.expand(2, 21, 4), z=z)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("skip", (2, 5, 3), r"skip: expected shape .*n_heads=4"),
        ("B_bias", (4, 7), r"B_bias: expected shape .*d_state=6"),
        ("C_bias", (6,), r"C_bias: expected shape"),
        ("angles", (2, 5, 4, 4), r"angles: each turns two channels, but there are 4 for d_state=6"),
        ("angles", (2, 5, 2), r"angles: expected shape"),
        ("z", (2, 5, 4), r"z: expected shape"),
    ],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...], said: str) -> None:
    inputs, _ = make((2, 5, 4, 3, 6, 2, 2))
    inputs[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=said):
        ssd_core(**inputs)
