"""The portable ops on the CPU: the same results with any number of threads, however many the machine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mambakit.kernels import causal_conv1d, gated_rms_norm, selective_scan, ssd
from mambakit.kernels.testing import forward_backward

pytest.importorskip("numba")

# beyond the sizes up to which one thread does it all
SHAPES: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "ssd": (
        ssd,
        {"x": (2, 100, 4, 8), "dt": (2, 100, 4), "A": (4,), "B": (2, 100, 2, 8), "C": (2, 100, 2, 8)},
    ),
    "selective_scan": (
        selective_scan,
        {"x": (2, 130, 70), "dt": (2, 130, 70), "A": (70, 8), "B": (2, 130, 1, 8), "C": (2, 130, 1, 8)},
    ),
    "causal_conv1d": (causal_conv1d, {"x": (2, 400, 70), "weight": (70, 4)}),
    "gated_rms_norm": (gated_rms_norm, {"x": (70, 500), "weight": (500,), "z": (70, 500)}),
}


@pytest.mark.parametrize(("op", "shapes"), SHAPES.values(), ids=SHAPES)
def test_three_threads_do_what_one_does(
    op: Callable[..., Any], shapes: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for name, sign in (("A", -1), ("dt", 1)):
        if name in inputs:
            inputs[name] = sign * inputs[name].abs()
    cotangent = torch.randn(shapes["x"], generator=draw)
    asked = []
    results = []
    for n_threads in (1, 3):

        def threads(n: int = n_threads) -> int:
            asked.append(n)
            return n

        monkeypatch.setattr(torch, "get_num_threads", threads)
        results.append(forward_backward(op, inputs, [cotangent], backend="portable"))
    assert asked.count(3) >= 2, "too little work for threads, forward or backward"
    for name, one in results[0].items():
        assert torch.equal(one, results[1][name]), name


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_norm_without_gradients(gated: bool, n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shorter way, on any number of threads, gives what the way that can be differentiated does."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    draw = torch.Generator().manual_seed(0)
    x, z = (torch.randn(130, 300, generator=draw) for _ in range(2))
    weight = torch.randn(300, generator=draw)
    options = {"z": z if gated else None, "group_size": 100}
    plain = gated_rms_norm(x, weight, **options)
    assert torch.equal(plain, gated_rms_norm(x.requires_grad_(), weight, **options).detach())
