"""ssd, ssd_core and ssd_step: against the reference, the dual matrix form and the op contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mambakit.kernels import ssd, ssd_step
from mambakit.kernels.selective_scan.reference import selective_scan_reference
from mambakit.kernels.ssd.testing import OPTIONS, check, make_inputs
from mambakit.kernels.testing import cast, forward_backward, relative_error

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [0.0, 0.1])
@pytest.mark.parametrize(
    ("batch", "length", "n_heads", "head_dim", "d_state", "n_groups", "chunk_size"),
    [
        (2, 37, 4, 3, 5, 2, 16),
        (1, 1, 1, 1, 1, 1, None),
        (2, 0, 2, 3, 4, 1, None),
        (0, 5, 2, 3, 4, 1, None),
        (2, 70, 3, 8, 16, 1, None),
        (1, 53, 6, 33, 17, 3, 7),
        (2, 40, 2, 48, 32, 1, 13),
        (1, 20, 8, 2, 3, 1, 1),
    ],
    ids=str,
)
def test_matches_reference(
    batch: int,
    length: int,
    n_heads: int,
    head_dim: int,
    d_state: int,
    n_groups: int,
    chunk_size: int | None,
    packed: float,
    dtype: torch.dtype,
) -> None:
    inputs, cotangents = make_inputs(batch, length, n_heads, head_dim, d_state, n_groups, packed=packed)
    check(inputs, cotangents, dtype, chunk_size=chunk_size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference_without_options(dtype: torch.dtype) -> None:
    inputs, cotangents = make_inputs(2, 29, 4, 5, 6, 2, optional=False)
    check(inputs, cotangents, dtype, chunk_size=8)
    check(inputs, cotangents, dtype, chunk_size=8, dt_limit=(0.05, 0.5))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 45),
    heads_a_group=st.integers(1, 3),
    n_groups=st.integers(1, 3),
    head_dim=st.integers(1, 20),
    d_state=st.integers(1, 20),
    packed=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    chunk_size=st.sampled_from([None, 1, 5, 16, 19]),
    optional=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
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
    chunk_size: int | None,
    optional: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    inputs, _ = make_inputs(
        batch,
        length,
        heads_a_group * n_groups,
        head_dim,
        d_state,
        n_groups,
        packed=packed,
        optional=optional,
        seed=seed,
    )
    y, state = ssd(**cast(inputs, dtype), **OPTIONS, chunk_size=chunk_size, backend="portable")
    expected_y, expected_state = ssd(**inputs, **OPTIONS, backend="reference")
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    assert relative_error(y, expected_y) < tolerance
    assert relative_error(state, expected_state) < tolerance


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("packed", [0.0, 0.3])
def test_gradcheck(packed: float, backend: str) -> None:
    inputs, _ = make_inputs(1, 5, 4, 2, 2, 2, packed=packed)
    leaves = {name: v.requires_grad_() for name, v in inputs.items() if v is not None and name != "seq_idx"}
    seq_idx = inputs.get("seq_idx")

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(leaves, values, strict=True))
        return ssd(**named, seq_idx=seq_idx, chunk_size=3, backend=backend, **OPTIONS)

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


def test_is_a_semiseparable_matrix() -> None:
    """``y = M x`` with ``M_ij = C_i^T (product of decays from j+1 to i) B_j dt_j`` (Dao & Gu 2024, eq. 3)."""
    inputs, _ = make_inputs(2, 50, 4, 3, 6, 2, optional=False)
    x, dt, A, B, C = (inputs[name] for name in ("x", "dt", "A", "B", "C"))
    dt = dt.exp()
    log_decay = dt * A
    B, C = B.repeat_interleave(2, dim=2), C.repeat_interleave(2, dim=2)
    M = torch.zeros(2, 4, 50, 50, dtype=torch.float64)
    for i in range(50):
        for j in range(i + 1):
            decay = log_decay[:, j + 1 : i + 1].sum(1).exp()
            M[:, :, i, j] = (C[:, i] * B[:, j]).sum(-1) * decay * dt[:, j]
    expected = torch.einsum("bhij,bjhp->bihp", M, x)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        y = ssd(*(v.to(dtype) for v in (x, dt, A, inputs["B"], inputs["C"])), chunk_size=16)
        assert relative_error(y, expected) < tolerance


def test_is_the_selective_scan_with_a_shared_decay() -> None:
    inputs, _ = make_inputs(2, 21, 4, 3, 5, 2)
    inputs["D"] = inputs["D"][:, None].expand(4, 3) if inputs["D"].dim() == 1 else inputs["D"]
    y, state = ssd(**inputs, **OPTIONS, chunk_size=8, backend="portable")
    per_channel = {
        "x": inputs["x"].flatten(2),
        "dt": inputs["dt"].repeat_interleave(3, dim=2),
        "A": inputs["A"].repeat_interleave(3)[:, None].expand(12, 5),
        "B": inputs["B"],
        "C": inputs["C"],
        "D": inputs["D"].flatten(),
        "z": inputs["z"].flatten(2),
        "dt_bias": inputs["dt_bias"].repeat_interleave(3),
        "initial_state": inputs["initial_state"].flatten(1, 2),
    }
    expected_y, expected_state = selective_scan_reference(**per_channel, dt_softplus=True)
    torch.testing.assert_close(y.flatten(2), expected_y)
    torch.testing.assert_close(state.flatten(1, 2), expected_state)


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_pieces_and_steps_are_the_whole(dtype: torch.dtype, backend: str) -> None:
    inputs, _ = make_inputs(2, 41, 4, 5, 6, 2)
    inputs = cast(inputs, dtype)
    fixed = {name: inputs[name] for name in ("A", "D", "dt_bias")}
    tokens = {name: inputs[name] for name in ("x", "dt", "B", "C", "z")}
    state = inputs["initial_state"]
    y, final = ssd(**inputs, **OPTIONS, dt_limit=(0.1, 2.0), chunk_size=16, backend=backend)
    pieces = []
    for start, stop in ((0, 16), (16, 17), (17, 17), (17, 41)):
        piece, state = ssd(
            **{name: v[:, start:stop] for name, v in tokens.items()},
            **fixed,
            **OPTIONS,
            dt_limit=(0.1, 2.0),
            initial_state=state,
            chunk_size=16,
            backend=backend,
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)
    state, steps = inputs["initial_state"], []
    for t in range(41):
        token = {name: v[:, t] for name, v in tokens.items()}
        y_t, state = ssd_step(state, **token, **fixed, dt_softplus=True, dt_limit=(0.1, 2.0), backend=backend)
        steps.append(y_t)
    torch.testing.assert_close(torch.stack(steps, dim=1), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("lengths", [(1, 1, 30, 1), (16, 16), (8, 9, 15), (3, 32, 5)], ids=str)
def test_packed_sequences_are_separate_ones(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs, _ = make_inputs(2, sum(lengths), 4, 5, 6, 2)
    inputs = cast(inputs, dtype)
    seq_idx = (
        torch.repeat_interleave(torch.arange(len(lengths)) * 2, torch.tensor(lengths)).int().expand(2, -1)
    )
    y, final = ssd(**inputs, **OPTIONS, seq_idx=seq_idx, chunk_size=16)
    start, state = 0, None
    for k, length in enumerate(lengths):
        alone = {
            name: v[:, start : start + length] if name in ("x", "dt", "B", "C", "z") else v
            for name, v in inputs.items()
        }
        if k:
            alone["initial_state"] = None
        y_k, state = ssd(**alone, **OPTIONS, chunk_size=16)
        torch.testing.assert_close(y[:, start : start + length], y_k, rtol=1e-4, atol=1e-5)
        start += length
    torch.testing.assert_close(final, state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_past_does_not_see_the_future(dtype: torch.dtype) -> None:
    inputs, _ = make_inputs(1, 40, 2, 4, 5, optional=False)
    inputs = cast(inputs, dtype)
    other = {
        name: v if name == "A" else torch.cat((v[:, :23], 7 * v[:, 23:] + 1), 1) for name, v in inputs.items()
    }
    y, changed = (ssd(**v, dt_softplus=True, chunk_size=16) for v in (inputs, other))
    assert torch.equal(y[:, :23], changed[:, :23])
    assert not torch.isclose(y[:, 23:], changed[:, 23:]).all()


@pytest.mark.parametrize("name", ["x", "dt", "B", "C"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_token_leaves_earlier_ones_alone(name: str, value: float) -> None:
    torch.manual_seed(0)
    length, at = 70, 43
    given = {
        "x": torch.randn(1, length, 2, 20),
        "dt": torch.rand(1, length, 2),
        "A": -torch.rand(2),
        "B": torch.randn(1, length, 1, 18),
        "C": torch.randn(1, length, 1, 18),
    }
    whole = ssd(**given, chunk_size=64)
    given[name] = given[name].clone()
    given[name][:, at] = value
    broken = ssd(**given, chunk_size=64)
    torch.testing.assert_close(broken[:, :at], whole[:, :at])
    assert not broken[:, at].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("dt", "A"), [(1e-20, -1e-20), (1e3, -1e3), (50.0, -1e-6), (1e15, -1e30), (0.0, -1.0)]
)
def test_extreme_decays_stay_finite(dt: float, A: float, dtype: torch.dtype) -> None:
    inputs, cotangents = make_inputs(1, 40, 2, 3, 4, optional=False)
    inputs["dt"] = torch.full_like(inputs["dt"], dt)
    inputs["A"] = torch.full_like(inputs["A"], A)
    inputs = cast(inputs, dtype)
    run = partial(forward_backward, ssd, inputs, cotangents, return_final_state=True)
    expected, actual = run(backend="reference"), run(backend="portable", chunk_size=16)
    for name, value in expected.items():
        assert value.isfinite().all()
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


def test_reads_views_and_leaves_inputs_alone() -> None:
    wide = torch.randn(2, 30, 4 * 8 + 2 * 6)
    before = wide.clone()
    x, B, C = wide.split((32, 6, 6), dim=-1)
    x, B, C = x.unflatten(-1, (4, 8)), B.unsqueeze(2), C.unsqueeze(2)
    strided = wide.mT.contiguous().mT
    z = strided[..., :32].unflatten(-1, (4, 8))
    dt, A = torch.rand(4, 30, 2).permute(2, 1, 0), -torch.rand(4)
    y = ssd(x, dt, A, B, C, z=z)
    copies = [v.clone(memory_format=torch.contiguous_format) for v in (x, dt, A, B, C)]
    assert torch.equal(y, ssd(*copies, z=z.clone(memory_format=torch.contiguous_format)))
    assert torch.equal(wide, before)


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_opcheck(dtype: torch.dtype, optional: bool) -> None:
    inputs, _ = make_inputs(2, 9, 2, 3, 4, seed=1, optional=optional, packed=0.3 if optional else 0.0)
    values = {k: v.to(dtype).requires_grad_() for k, v in inputs.items() if v is not None and k != "seq_idx"}
    arguments = (
        values["x"],
        -values["dt"].detach().abs().requires_grad_(),
        values["dt"],
        values["B"],
        values["C"],
        values.get("D"),
        values.get("z"),
        values.get("initial_state"),
        inputs.get("seq_idx"),
        4,
    )
    torch.library.opcheck(torch.ops.mambakit.ssd_fwd, arguments)


class _Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(-torch.rand(2))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return ssd(x, dt, self.A, B, C, dt_softplus=True)


def test_compiles_and_exports_as_one_graph() -> None:
    module = _Module()
    inputs = (torch.randn(2, 9, 2, 3), torch.randn(2, 9, 2), torch.randn(2, 9, 1, 4), torch.randn(2, 9, 1, 4))
    expected = module(*inputs)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected)
    compiled(*inputs).sum().backward()
    gradient, module.A.grad = module.A.grad, None
    module(*inputs).sum().backward()
    torch.testing.assert_close(gradient, module.A.grad)
    exported = torch.export.export(module, inputs)
    torch.testing.assert_close(exported.module()(*inputs), expected)


Refused = tuple[dict[str, object], type[Exception], str]
REFUSED: list[Refused] = [
    ({"x": [1.0]}, TypeError, r"x: expected a torch\.Tensor, got list"),
    ({"x": torch.zeros(2, 6, 4, 3).int()}, TypeError, "x: expected a floating dtype .* got int32"),
    (
        {"x": torch.zeros(2, 6, 12)},
        ValueError,
        r"x: expected shape \(batch, length, n_heads, head_dim\), got",
    ),
    ({"dt": torch.zeros(2, 5, 4)}, ValueError, r"dt: expected shape \(batch=2, length=6, n_heads=4\), got"),
    ({"A": torch.zeros(4, 2)}, ValueError, r"A: expected shape \(n_heads=4\), got \(4, 2\)"),
    ({"B": torch.zeros(2, 6, 3, 5)}, ValueError, "B: n_groups must divide n_heads=4 .* got n_groups=3"),
    ({"C": torch.zeros(2, 6, 2, 4)}, ValueError, r"C: expected shape .* d_state=5\), got \(2, 6, 2, 4\)"),
    ({"D": torch.zeros(4, 2)}, ValueError, r"D: expected shape \(n_heads=4, head_dim=3\), got \(4, 2\)"),
    ({"z": torch.zeros(2, 6, 12)}, ValueError, r"z: expected shape .* got \(2, 6, 12\)"),
    ({"dt_bias": torch.zeros(3)}, ValueError, r"dt_bias: expected shape \(n_heads=4\), got \(3,\)"),
    ({"dt_limit": (2.0, 1.0)}, ValueError, "dt_limit: expected .* low <= high, got"),
    ({"initial_state": torch.zeros(2, 4, 5, 3)}, ValueError, "initial_state: expected shape .* d_state=5"),
    ({"seq_idx": torch.zeros(2, 6).long()}, TypeError, "seq_idx: expected dtype int32, got int64"),
    ({"seq_idx": torch.zeros(6).int()}, ValueError, r"seq_idx: expected shape \(batch=2, length=6\), got"),
    ({"chunk_size": 0}, ValueError, "chunk_size: expected at least 1, got 0"),
    ({"chunk_size": 8.0}, TypeError, "chunk_size: expected an int or None, got float"),
    ({"backend": "cuda"}, ValueError, "backend: expected one of reference, portable, triton, got 'cuda'"),
    ({"B": torch.zeros(2, 6, 2, 5, device="meta")}, ValueError, "B: expected device cpu .* got meta"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), REFUSED, ids=lambda v: next(iter(v)) if isinstance(v, dict) else ""
)
def test_refuses(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {
        "x": torch.zeros(2, 6, 4, 3),
        "dt": torch.zeros(2, 6, 4),
        "A": torch.zeros(4),
        "B": torch.zeros(2, 6, 2, 5),
        "C": torch.zeros(2, 6, 2, 5),
    }
    call: Callable[..., object] = ssd
    with pytest.raises(error, match=message):
        call(**arguments | change)
