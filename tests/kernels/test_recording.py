"""Recorded launches: later calls of a make equal the first, whatever the numbers and where they lie."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from mambakit.kernels import causal_conv1d, gated_rms_norm, recording, selective_scan, ssd, ssd_core
from mambakit.kernels.recording import forget_recordings

Inputs = dict[str, Tensor]
PACKAGES = ("ssd", "selective_scan", "causal_conv1d", "gated_rms_norm")
GPU = {name: importlib.import_module(f"mambakit.kernels.{name}.gpu") for name in PACKAGES}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """An op, the shapes of its arguments, those among them that may be left out, and options."""

    op: Callable[..., Any]
    package: str
    shapes: dict[str, tuple[int, ...]]
    optional: tuple[str, ...]
    options: dict[str, Any]
    split: tuple[str, ...]

    def inputs(self, seed: int, device: str) -> Inputs:
        draw = torch.Generator().manual_seed(seed)
        made = {}
        for name, shape in self.shapes.items():
            v = torch.randn(shape, generator=draw)
            v = -0.1 - v.abs() if name in ("A", "log_decay") else v.abs() if name == "scale" else v
            if name == "seq_idx":
                v = (torch.rand(shape, generator=draw) < 0.2).int().cumsum(1).int()
            made[name] = v.to(device)
        return made

    def run(self, inputs: Inputs, *, backend: str = "triton", **options: Any) -> list[Tensor]:
        """The outputs, and the gradient of every argument."""
        leaves = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in inputs.items()}
        out = self.op(**leaves, **self.options | options, backend=backend)
        outs = out if isinstance(out, tuple) else (out,)
        wanted = [v for v in leaves.values() if v.requires_grad]
        weights = [torch.linspace(-1, 1, v.numel(), device=v.device).view(v.shape) for v in outs]
        grads = torch.autograd.grad(outs, wanted, weights)
        return [*(v.detach() for v in outs), *grads]

    def forward(self, inputs: Inputs, *, backend: str = "triton", **options: Any) -> list[Tensor]:
        out = self.op(**inputs, **self.options | options, backend=backend)
        return list(out) if isinstance(out, tuple) else [out]


# two chunks of a head; in CORE, whose launchers are the same, one chunk of two heads
HEADS = {"x": (1, 17, 1, 3), "dt": (1, 17, 1), "A": (1,), "B": (1, 17, 1, 5), "C": (1, 17, 1, 5)}
HEAD_OPTIONS = {"D": (1,), "z": (1, 17, 1, 3), "dt_bias": (1,), "initial_state": (1, 1, 3, 5)}
CORE = {"x": (1, 9, 2, 3), "log_decay": (1, 9, 2), "scale": (1, 9, 2), "B": (1, 9, 1, 5), "C": (1, 9, 1, 5)}
SCAN = {"x": (1, 6, 3), "dt": (1, 6, 3), "A": (3, 2), "B": (1, 6, 1, 2), "C": (1, 6, 1, 2)}
SCAN_OPTIONS = {"D": (3,), "z": (1, 6, 3), "dt_bias": (3,), "initial_state": (1, 3, 2)}
CONV = {"x": (1, 9, 6), "weight": (6, 3)}
CASES = {
    "ssd": Case(
        ssd, "ssd", HEADS | HEAD_OPTIONS | {"seq_idx": (1, 17)}, (*HEAD_OPTIONS, "seq_idx"),
        {"dt_softplus": True, "return_final_state": True, "chunk_size": 16}, ("x", "B", "C", "z"),
    ),
    "ssd_core": Case(
        ssd_core, "ssd", CORE | {"initial_state": (1, 2, 3, 5)}, ("initial_state",),
        {"return_final_state": True, "chunk_size": 16}, ("x", "B", "C"),
    ),
    "selective_scan": Case(
        selective_scan, "selective_scan", SCAN | SCAN_OPTIONS | {"seq_idx": (1, 6)},
        (*SCAN_OPTIONS, "seq_idx"), {"dt_softplus": True, "return_final_state": True}, ("x", "B", "C", "z"),
    ),
    "causal_conv1d": Case(
        causal_conv1d, "causal_conv1d",
        CONV | {"bias": (6,), "initial_state": (1, 6, 2), "seq_idx": (1, 9)},
        ("bias", "initial_state", "seq_idx"), {"activation": "silu", "return_final_state": True}, ("x",),
    ),
    "gated_rms_norm": Case(
        gated_rms_norm, "gated_rms_norm", {"x": (2, 5, 8), "weight": (8,), "z": (2, 5, 8)}, ("z",),
        {"group_size": 4}, ("x", "z"),
    ),
}  # fmt: skip
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# what no op adds to is shown on those that the interpreter is quick with
QUICK = pytest.mark.parametrize(
    "case", [CASES[name] for name in ("causal_conv1d", "gated_rms_norm")], ids=("conv", "norm")
)


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def fresh(run: Callable[..., list[Tensor]], *args: Any, **options: Any) -> list[Tensor]:
    forget_recordings()
    return run(*args, **options)


@functools.cache
def launched(case: Case, seed: int, device: str) -> list[Tensor]:
    """What the launchers themselves make of ``case.inputs(seed)``; nothing is recorded."""
    results = fresh(case.run, case.inputs(seed, device))
    forget_recordings()
    return results


@pytest.fixture
def launchers_rest(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Called, it forbids the launchers of a package."""

    def forbid(package: str) -> None:
        def launcher(*_: Any) -> None:
            raise AssertionError("launched anew")

        for which in ("_forward", "_backward"):
            monkeypatch.setattr(getattr(GPU[package], which), "_launcher", launcher)

    return forbid


def variants(case: Case) -> Iterator[Inputs]:
    """All optional arguments, none, and every other one, with other numbers each time."""
    left_out = dict.fromkeys([(), case.optional, case.optional[::2]])
    for seed, without in enumerate(left_out):
        yield {k: v for k, v in case.inputs(seed, "cpu").items() if k not in without}


@ALL
def test_later_calls_equal_the_first(
    case: Case, triton_device: str, launchers_rest: Callable[[str], None]
) -> None:
    runs = [{k: v.to(triton_device) for k, v in inputs.items()} for inputs in variants(case)]
    expected = [(case.forward(inputs), case.run(inputs)) for inputs in runs]
    for inputs in runs:  # recorded with other numbers than later
        others = {k: v if k == "seq_idx" else v * 0.5 for k, v in inputs.items()}
        case.forward(others)
        case.run(others)
    launchers_rest(case.package)
    for inputs, (plain, with_gradients) in zip(runs, expected, strict=True):
        same(case.forward(inputs), plain)
        same(case.run(inputs), with_gradients)


@ALL
def test_an_object_twice_is_two_arguments(case: Case, triton_device: str) -> None:
    """First B is C, say, later each is its own."""
    if case.package == "causal_conv1d":
        pytest.skip("no two arguments of one shape")
    inputs = case.inputs(0, triton_device)
    names = ("x", "z") if case.package == "gated_rms_norm" else ("B", "C")
    expected = fresh(case.forward, inputs)
    twice = fresh(case.forward, inputs | {names[1]: inputs[names[0]]})
    same(case.forward(inputs | {names[1]: inputs[names[0]]}), twice)
    same(case.forward(inputs), expected)
    same(case.forward(inputs | {names[1]: inputs[names[0]]}), twice)


def views_of_one_storage(case: Case, seed: int, start: int, device: str) -> Inputs:
    """Parts of a projection's output, ``start`` numbers into each row: strides are alike for all, up to 8."""
    inputs = case.inputs(seed, device)
    parts = [inputs[name].flatten(2) for name in case.split]
    rows = parts[0].shape[:2]
    before, after = (torch.full((*rows, n), float("nan"), device=device) for n in (start, 8 - start))
    whole = torch.cat([before, *parts, after], -1)
    views = whole.split([start, *(p.shape[-1] for p in parts), 8 - start], -1)[1:-1]
    for name, v in zip(case.split, views, strict=True):
        inputs[name] = v.unflatten(-1, inputs[name].shape[2:])
    return inputs


@ALL
def test_views_between_contiguous_arguments(case: Case, triton_device: str) -> None:
    """At aligned and unaligned addresses: makes of their own, none taken for another."""
    expected = [launched(case, seed, triton_device) for seed in range(2)]
    for seed in (0, 1, 0):
        for start in (None, 3, 8):
            if start is None:
                inputs = case.inputs(seed, triton_device)
            else:
                inputs = views_of_one_storage(case, seed, start, triton_device)
            same(case.run(inputs), expected[seed])
    for which in ("_forward", "_backward"):  # none was given up
        assert recording._NEVER not in getattr(GPU[case.package], which)._kept.values()


@ALL
def test_layouts_that_are_copied(case: Case, triton_device: str) -> None:
    inputs = case.inputs(0, triton_device)
    expected = launched(case, 0, triton_device)
    for _ in range(3):
        strided = {k: torch.stack([v, v], -1)[..., 0] for k, v in inputs.items()}
        same(case.run(strided), expected)


@ALL
def test_gradients_in_other_layouts(case: Case, triton_device: str) -> None:
    leaves = {k: v.requires_grad_(v.is_floating_point()) for k, v in case.inputs(0, triton_device).items()}
    wanted = [v for v in leaves.values() if v.requires_grad]
    results = []
    for _ in range(2):
        for weigh in (torch.ones_like, lambda v: torch.ones((), device=v.device).expand(v.shape)):
            out = case.op(**leaves, **case.options, backend="triton")
            outs = out if isinstance(out, tuple) else (out,)
            results.append(list(torch.autograd.grad(outs, wanted, [weigh(v) for v in outs])))
    for other in results[1:]:
        same(other, results[0])


@ALL
def test_a_make_that_another_backend_saw_first(case: Case, triton_device: str) -> None:
    inputs = case.inputs(0, triton_device)
    reference = case.forward(inputs, backend="reference")
    for _ in range(3):
        for a, e in zip(case.forward(inputs), reference, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)
    same(case.forward(inputs, backend="reference"), reference)


@ALL
def test_a_known_make_excuses_nothing(case: Case, triton_device: str) -> None:
    inputs = case.inputs(0, triton_device)
    case.forward(inputs)
    case.forward(inputs)
    with pytest.raises(ValueError, match="expected"):
        case.op(**inputs, **case.options, backend="tritium")
    with pytest.raises((TypeError, ValueError), match="x: expected"):
        case.op(**inputs | {"x": [1.0]}, **case.options, backend="triton")
    with pytest.raises(ValueError, match=r"expected (the )?shape"):
        case.op(**inputs | {"x": inputs["x"][0]}, **case.options, backend="triton")
    wrong = {
        "ssd": {"dt_limit": (2, 1)},
        "selective_scan": {"dt_limit": (2, 1)},
        "causal_conv1d": {"activation": "gelu"},
        "gated_rms_norm": {"group_size": 3},
    }[case.package]
    if case.op is not ssd_core:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            case.op(**inputs, **case.options | wrong, backend="triton")


@pytest.mark.parametrize("limit", [(0, 1), [0.0, 1.0]], ids=str)
def test_options_of_other_types(limit: Any, triton_device: str) -> None:
    case = CASES["ssd"]
    inputs = case.inputs(0, triton_device)
    expected = case.run(inputs, dt_limit=(0.0, 1.0))
    outputs = expected[:2]
    for _ in range(3):
        same(case.forward(inputs, dt_limit=limit), outputs)
    same(case.run(inputs, dt_limit=limit), expected)
    same(fresh(case.forward, inputs, dt_limit=limit), outputs)


@pytest.mark.parametrize(("name", "known", "equal"), [("ssd", 1, True), ("ssd_core", 16, 16.0)])
def test_an_option_that_equals_a_known_one_is_checked(
    name: str, known: int, equal: object, triton_device: str
) -> None:
    case = CASES[name]
    inputs = case.inputs(0, triton_device)
    for _ in range(2):  # the second is recorded
        case.forward(inputs, chunk_size=known)
    with pytest.raises(TypeError, match="chunk_size: expected an int or None"):
        case.forward(inputs, chunk_size=equal)


@QUICK
def test_recordings_are_bounded(case: Case, triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_RECORDINGS", 2)
    inputs = case.inputs(0, triton_device)
    per_token = [k for k, v in inputs.items() if v.shape[:2] == inputs["x"].shape[:2]]
    lengths = [3, 3, 3, 2, 2, 1, 3, 3, 3]
    short = {n: inputs | {k: inputs[k][:, :n] for k in per_token} for n in lengths}
    expected = {n: fresh(case.run, v) for n, v in short.items()}
    forget_recordings()
    for length in lengths:
        same(case.run(short[length]), expected[length])
        assert len(GPU[case.package]._forward) <= 2
        assert len(GPU[case.package]._backward) <= 2


@ALL
def test_compile_beside_eager(case: Case, triton_device: str) -> None:
    inputs = case.inputs(0, triton_device)
    expected = case.forward(inputs)
    compiled = torch.compile(
        lambda given: case.op(**given, **case.options, backend="triton"), backend="eager", fullgraph=True
    )
    for _ in range(3):
        out = compiled(inputs)
        same(list(out) if isinstance(out, tuple) else [out], expected)


@pytest.mark.gpu
@ALL
def test_runs_in_a_cuda_graph(case: Case) -> None:
    inputs = case.inputs(0, "cuda")
    expected = case.forward(inputs)
    case.forward(inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = case.forward(inputs)
    for out in outs:
        out.fill_(float("nan"))
    graph.replay()
    same(outs, expected)


@pytest.mark.gpu
@ALL
def test_runs_on_the_current_stream(case: Case) -> None:
    inputs = case.inputs(0, "cuda")
    for _ in range(2):
        expected = case.run(inputs)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        late = {k: v if k == "seq_idx" else v + 0 for k, v in inputs.items()}
        got = case.run(late)
    torch.cuda.synchronize()
    same(got, expected)
