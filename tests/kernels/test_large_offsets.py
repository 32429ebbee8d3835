"""Tensors of more than 2**31 elements: a 32-bit offset would wrap, and silently read another place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mambakit.kernels import causal_conv1d, gated_rms_norm, selective_scan, ssd
from mambakit.kernels.testing import relative_error

LENGTH, CHANNELS = 270_001, 4096  # two rows of them: 2.2e9 elements
TAIL = 600

Run = Callable[..., Tensor]


def _needs_memory(gib: int) -> None:
    if torch.cuda.get_device_properties(0).total_memory < gib << 30:
        pytest.skip(f"needs a GPU with {gib} GiB")


def _ssd(x: Tensor, gate: Tensor, small: dict[str, Tensor], rows: slice) -> Tensor:
    heads = x.unflatten(-1, (64, 64))
    return ssd(heads, small["dt"][rows], small["A"], small["B"][rows], small["C"][rows]).flatten(2)


def _scan(x: Tensor, gate: Tensor, small: dict[str, Tensor], rows: slice) -> Tensor:
    decay = small["A"][:1, None].expand(CHANNELS, 16)
    return selective_scan(x, gate, decay, small["B"][rows], small["C"][rows], dt_softplus=True)


def _conv(x: Tensor, gate: Tensor, small: dict[str, Tensor], rows: slice) -> Tensor:
    return causal_conv1d(x, small["weight"], activation="silu")


def _norm(x: Tensor, gate: Tensor, small: dict[str, Tensor], rows: slice) -> Tensor:
    return gated_rms_norm(x, small["weight"][:, 0], z=gate)


@pytest.mark.gpu
@pytest.mark.parametrize("run", [_ssd, _scan, _conv, _norm], ids=["ssd", "scan", "conv", "norm"])
def test_offsets_beyond_two_to_the_31(run: Run) -> None:
    _needs_memory(70)
    made: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.empty(2, LENGTH, CHANNELS, **made).normal_(generator=generator)
    gate = torch.empty_like(x).normal_(generator=generator) if run in (_scan, _norm) else x[:, :1]
    small = {
        "dt": torch.rand(2, LENGTH, 64, **made),
        "A": -1 - torch.rand(64, device="cuda"),
        "B": torch.randn(2, LENGTH, 1, 16, **made),
        "C": torch.randn(2, LENGTH, 1, 16, **made),
        "weight": torch.rand(CHANNELS, 4, **made),
    }
    assert x.numel() > 2**31
    # the end of the last row, from a tensor of its own
    with torch.no_grad():
        whole = run(x, gate, small, slice(None))[1, -TAIL:].clone()
        alone = run(x[1:].clone(), gate[1:].clone(), small, slice(1, 2))[0, -TAIL:]
    assert relative_error(whole, alone) < 0.01
    del whole, alone
    if run is _scan:
        return  # its states of a backward pass would fill the memory
    grad = torch.zeros_like(x)
    grad[1, -TAIL:].normal_(generator=generator)
    leaf = x.requires_grad_()
    (dx,) = torch.autograd.grad(run(leaf, gate, small, slice(None)), leaf, grad)
    tail = dx[1, -TAIL:].clone()
    del dx
    row = x[1:].detach().clone().requires_grad_()
    (drow,) = torch.autograd.grad(run(row, gate[1:], small, slice(1, 2)), row, grad[1:])
    assert relative_error(tail, drow[0, -TAIL:]) < 0.01
