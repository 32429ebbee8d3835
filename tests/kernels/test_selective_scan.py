"""selective_scan and its step: every backend against the reference in float64, and the op's laws."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.kernels import selective_scan, selective_scan_step
from mambakit.kernels.backend import BackendUnavailableError
from mambakit.kernels.selective_scan import portable
from mambakit.kernels.selective_scan.library import selective_scan_fwd
from mambakit.kernels.selective_scan.testing import check_against_reference, make_inputs
from mambakit.kernels.testing import assert_as_accurate, cast

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("options", [False, True], ids=["bare", "options"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 0, 4, 1, 2), (0, 4, 3, 1, 2), (1, 1, 1, 1, 1), (2, 67, 18, 2, 5), (1, 100, 48, 3, 16)],
    ids=str,
)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, options: bool, packed: bool) -> None:
    inputs = make_inputs(*shape, options=options, packed=packed, dtype=dtype)
    limits = {"dt_limit": (0.1, 2.0)} if options else {}
    check_against_reference(inputs, dt_softplus=True, **limits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_plain_torch_matches_reference(
    dtype: torch.dtype, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of other devices, and of a machine without numba."""
    monkeypatch.setattr(portable, "HAS_NUMBA", False)
    inputs = make_inputs(2, 67, 18, 2, 5, packed=packed, dtype=dtype)
    check_against_reference(inputs, dt_softplus=True, dt_limit=(0.1, 2.0))
    check_against_reference(make_inputs(1, 0, 3, 1, 2, dtype=dtype))


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 70),
    n_groups=st.integers(1, 3),
    per_group=st.integers(1, 35),
    d_state=st.integers(1, 19),
    options=st.booleans(),
    packed=st.booleans(),
    dt_softplus=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape_matches_reference(
    batch: int,
    length: int,
    n_groups: int,
    per_group: int,
    d_state: int,
    options: bool,
    packed: bool,
    dt_softplus: bool,
    dtype: torch.dtype,
) -> None:
    inputs = make_inputs(
        batch, length, n_groups * per_group, n_groups, d_state, options=options, packed=packed, dtype=dtype
    )
    if not dt_softplus:  # a negative step size would let the state grow
        inputs["dt"] = inputs["dt"].abs()
        inputs.pop("dt_bias", None)
    check_against_reference(inputs, dt_softplus=dt_softplus)


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_gradcheck(backend: str, packed: bool) -> None:
    inputs = make_inputs(2, 4, 2, 1, 2, packed=packed)
    seq_idx = inputs.pop("seq_idx", None)
    names = list(inputs)

    def op(*values: Tensor) -> Any:
        return selective_scan(
            **dict(zip(names, values, strict=True)),
            seq_idx=seq_idx,
            dt_softplus=True,
            return_final_state=True,
            backend=backend,
        )

    leaves = [value.requires_grad_() for value in inputs.values()]
    assert torch.autograd.gradcheck(op, leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_pieces_and_steps_equal_the_whole(packed: bool) -> None:
    inputs = make_inputs(2, 41, 18, 2, 5, packed=packed)
    seq_idx = inputs.pop("seq_idx", None)
    shared = {name: inputs[name] for name in ("A", "D", "dt_bias")}
    rows = {name: inputs[name] for name in ("x", "dt", "B", "C", "z")}
    state = inputs["initial_state"]
    options = {"dt_softplus": True, "dt_limit": (0.2, 1.5)}
    y, final = selective_scan(
        **rows, **shared, initial_state=state, seq_idx=seq_idx, return_final_state=True, **options
    )
    pieces, h = [], state
    for start, stop in ((0, 0), (0, 1), (1, 33), (33, 41)):
        here = None if seq_idx is None else seq_idx[:, start:stop]
        if here is not None and start > 0:
            opens = seq_idx[:, start] != seq_idx[:, start - 1]
            h = h.masked_fill(opens[:, None, None], 0.0)
        piece, h = selective_scan(
            **{name: value[:, start:stop] for name, value in rows.items()},
            **shared,
            initial_state=h,
            seq_idx=here,
            return_final_state=True,
            **options,
        )
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, final, rtol=1e-12, atol=1e-12)
    h = state
    for t in range(41):
        if packed and t > 0:
            h = h.masked_fill((seq_idx[:, t] != seq_idx[:, t - 1])[:, None, None], 0.0)
        y_t, h = selective_scan_step(
            h, **{name: value[:, t] for name, value in rows.items()}, **shared, **options
        )
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (5, 1, 32, 40), (64, 3)], ids=str)
def test_packing_equals_separate_sequences(lengths: tuple[int, ...]) -> None:
    inputs = make_inputs(1, sum(lengths), 18, 2, 5)
    first_state = inputs.pop("initial_state")
    seq_idx = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int()[None]
    options: dict[str, Any] = {"dt_softplus": True, "return_final_state": True}
    y, final = selective_scan(**inputs, initial_state=first_state, seq_idx=seq_idx, **options)
    start = 0
    for i, length in enumerate(lengths):
        own = {
            name: value[:, start : start + length] if name in ("x", "dt", "B", "C", "z") else value
            for name, value in inputs.items()
        }
        y_own, h_own = selective_scan(**own, initial_state=first_state if i == 0 else None, **options)
        torch.testing.assert_close(y[:, start : start + length], y_own, rtol=1e-12, atol=1e-12)
        start += length
    torch.testing.assert_close(final, h_own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("plain_torch", [False, True])
def test_nan_stays_in_its_own_sequence(plain_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "HAS_NUMBA", not plain_torch)
    inputs = make_inputs(1, 50, 18, 1, 5)
    seq_idx = (torch.arange(50) >= 20).int()[None]
    inputs["x"][0, 3] = float("nan")
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    y, final = selective_scan(**leaves, seq_idx=seq_idx, dt_softplus=True, return_final_state=True)
    assert y[0, 3:20].isnan().all()
    assert y[0, :3].isfinite().all()
    assert y[0, 20:].isfinite().all()
    assert final.isfinite().all()
    y[0, 20:].sum().backward()
    assert leaves["x"].grad[0, 20:].isfinite().all()


def test_is_causal() -> None:
    inputs = make_inputs(2, 50, 18, 1, 5)
    y = selective_scan(**inputs, dt_softplus=True)
    for name in ("x", "dt", "B", "C", "z"):
        inputs[name][:, 30:] += 1.0
    changed = selective_scan(**inputs, dt_softplus=True)
    assert torch.equal(y[:, :30], changed[:, :30])
    assert not torch.isclose(y[:, 30:], changed[:, 30:]).any(dim=-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dt_value", [-100.0, 0.0, 100.0, 1e4])
def test_extreme_steps(dt_value: float, dtype: torch.dtype) -> None:
    inputs = make_inputs(1, 40, 18, 1, 5, dtype=dtype)
    inputs["dt"] = torch.full_like(inputs["dt"], dt_value)
    inputs["A"] = inputs["A"] * 100
    y = selective_scan(**inputs, dt_softplus=True)
    assert y.isfinite().all()
    if dtype == torch.float32 and dt_value < 0:
        # the step size is below the smallest normal number, where portable counts it as zero: no gradients
        naive = selective_scan(**inputs, dt_softplus=True, backend="reference")
        exact = selective_scan(**cast(inputs, torch.float64), dt_softplus=True, backend="reference")
        assert_as_accurate("y", y, exact=exact, naive=naive)
    else:
        check_against_reference(inputs, dt_softplus=True)


def test_views_and_inputs_left_alone() -> None:
    whole = torch.randn(2, 40, 18 * 3 + 20, generator=torch.Generator().manual_seed(0))
    x, z, dt, BC = whole.split([18, 18, 18, 20], dim=-1)
    B, C = BC.unflatten(-1, (2, 1, 10)).unbind(2)
    A = -torch.rand(10, 18, generator=torch.Generator().manual_seed(1)).t() - 0.1
    before = whole.clone()
    y = selective_scan(x, dt, A, B, C, z=z, dt_softplus=True)
    copies = [value.contiguous() for value in (x, dt, A, B, C)]
    assert torch.equal(y, selective_scan(*copies, z=z.contiguous(), dt_softplus=True))
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(y, selective_scan(transposed, dt, A, B, C, z=z, dt_softplus=True))
    assert torch.equal(whole, before)


def test_opcheck() -> None:
    for packed in (False, True):
        inputs = make_inputs(2, 5, 3, 1, 2, packed=packed, dtype=torch.float32)
        tensors = {name: v.requires_grad_(v.is_floating_point()) for name, v in inputs.items()}
        names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state", "seq_idx")
        arguments = tuple(tensors.get(name) for name in names)
        torch.library.opcheck(selective_scan_fwd, (*arguments, True, 0.0, float("inf"), True, "portable"))


class _Scan(torch.nn.Module):
    def forward(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(x, dt, A, B, C, dt_softplus=True)


def test_export_and_compile_see_through() -> None:
    inputs = make_inputs(2, 9, 4, 1, 2, options=False, dtype=torch.float32)
    values = tuple(inputs[name] for name in ("x", "dt", "A", "B", "C"))
    expected = _Scan()(*values)
    exported = torch.export.export(_Scan(), values)
    assert torch.equal(exported.module()(*values), expected)
    compiled = torch.compile(_Scan(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(*values), expected)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_step_matches_reference(dtype: torch.dtype, inplace: bool, grad: bool) -> None:
    if grad and inplace:
        pytest.skip("a state that needs gradients is not overwritten")
    inputs = make_inputs(3, 1, 35, 5, 19, dtype=dtype)
    expected, state_expected = selective_scan(
        **inputs, dt_softplus=True, return_final_state=True, backend="reference"
    )
    state = inputs.pop("initial_state").to(torch.float64 if dtype == torch.float64 else torch.float32)
    kept = state.clone()
    token = {name: v[:, 0] if name in ("x", "dt", "B", "C", "z") else v for name, v in inputs.items()}
    if grad:
        state.requires_grad_()
    y, new_state = selective_scan_step(state, **token, dt_softplus=True, inplace=inplace)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected[:, 0])
    torch.testing.assert_close(new_state, state_expected)
    assert (new_state is state) == inplace
    assert torch.equal(state, kept) != inplace
    assert new_state.requires_grad == grad


def test_step_gradients() -> None:
    inputs = make_inputs(2, 1, 3, 1, 2)
    token = {name: v[:, 0] if name in ("x", "dt", "B", "C", "z") else v for name, v in inputs.items()}
    state = token.pop("initial_state")
    names = list(token)

    def op(state: Tensor, *values: Tensor) -> Any:
        return selective_scan_step(state, **dict(zip(names, values, strict=True)), dt_softplus=True)

    assert torch.autograd.gradcheck(op, [v.requires_grad_() for v in (state, *token.values())])


def _run(seed: int = 0) -> Tensor:
    return selective_scan(**make_inputs(4, 128, 64, 1, 16, dtype=torch.float32, seed=seed), dt_softplus=True)


def _run_in_child(queue: Any) -> None:
    queue.put(_run().numpy())


def test_threads_and_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    expected = [_run(seed) for seed in range(4)]
    results: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        for _ in range(5):
            results[seed] = _run(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[seed], expected[seed]) for seed in range(4))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(_run(), expected[0])
    if "fork" in multiprocessing.get_all_start_methods():
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_run_in_child, args=(queue,))
        child.start()
        assert torch.equal(torch.from_numpy(queue.get(timeout=60)), expected[0])
        child.join(timeout=60)
        assert child.exitcode == 0


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("x", lambda v: v[0], ValueError, r"x: expected shape \(batch, length, d_inner\), got \(7, 6\)"),
        ("x", lambda v: v.int(), TypeError, "x: expected a floating dtype .* got int32"),
        ("dt", lambda v: v[:, :3], ValueError, r"dt: expected shape .*length=7.*, got \(2, 3, 6\)"),
        ("A", lambda v: v.tolist(), TypeError, "A: expected a torch.Tensor, got list"),
        ("A", lambda v: v[0], ValueError, "A: expected shape"),
        ("B", lambda v: v.repeat(1, 1, 4, 1), ValueError, "n_groups must divide d_inner=6.* got n_groups=4"),
        ("C", lambda v: v[..., :1], ValueError, "C: expected shape .*d_state=4"),
        ("D", lambda v: v[:2], ValueError, r"D: expected shape \(d_inner=6\), got \(2,\)"),
        ("z", lambda v: v[:1], ValueError, "z: expected shape"),
        ("dt_bias", lambda v: v[:1], ValueError, "dt_bias: expected shape"),
        ("initial_state", lambda v: v[:1], ValueError, "initial_state: expected shape"),
        ("seq_idx", lambda v: v.long(), TypeError, "seq_idx: expected dtype int32, got int64"),
        ("seq_idx", lambda v: v[:, :2], ValueError, "seq_idx: expected shape"),
        ("dt", lambda v: v.to("meta"), ValueError, "dt: expected device cpu .* got meta"),
    ],
)
def test_checks(name: str, change: Any, error: type[Exception], message: str) -> None:
    inputs = make_inputs(2, 7, 6, 1, 4, packed=True)
    inputs[name] = change(inputs[name])
    with pytest.raises(error, match=message):
        selective_scan(**inputs)


def test_backend_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(1, 3, 2, 1, 2)
    with pytest.raises(ValueError, match="dt_limit: expected"):
        selective_scan(**inputs, dt_limit=(2.0, 1.0))
    with pytest.raises(ValueError, match="backend: expected one of reference, portable, triton, got 'fast'"):
        selective_scan(**inputs, backend="fast")
    with pytest.raises(BackendUnavailableError, match=r"triton.*cannot run selective_scan.*portable"):
        selective_scan(**inputs, backend="triton")
    monkeypatch.setenv("MAMBAKIT_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError, match="MAMBAKIT_BACKEND"):
        selective_scan(**inputs)
    monkeypatch.setenv("MAMBAKIT_BACKEND", "reference")
    leaf = inputs["dt"].requires_grad_()
    (grad,) = torch.autograd.grad(selective_scan(**inputs).sum(), leaf, create_graph=True)
    assert grad.requires_grad  # only the reference can be differentiated twice
