"""Inputs for the tests of the selective scan, and the comparison of a backend with the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.selective_scan.op import selective_scan
from mambakit.kernels.testing import assert_as_accurate, cast, forward_backward


def make_inputs(
    batch: int = 2,
    length: int = 37,
    d_inner: int = 18,
    n_groups: int = 1,
    d_state: int = 5,
    *,
    options: bool = True,
    packed: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor | None]:
    """Random arguments by name; drawn on the CPU in float64, so every dtype and device gets the same ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs: dict[str, Tensor | None] = {
        "x": normal(batch, length, d_inner),
        "dt": normal(batch, length, d_inner),
        "A": -0.1 - 4 * torch.rand(d_inner, d_state, generator=generator, dtype=torch.float64),
        "B": normal(batch, length, n_groups, d_state),
        "C": normal(batch, length, n_groups, d_state),
    }
    if options:
        inputs |= {
            "D": normal(d_inner),
            "z": normal(batch, length, d_inner),
            "dt_bias": normal(d_inner),
            "initial_state": normal(batch, d_inner, d_state),
        }
    if packed:
        opens = torch.rand(batch, length, generator=generator) < 0.4
        inputs["seq_idx"] = opens.cumsum(1).int()
    return {name: None if v is None else v.to(device) for name, v in cast(inputs, dtype).items()}


def check_against_reference(inputs: dict[str, Any], backend: str = "portable", **options: Any) -> None:
    """Outputs and gradients of ``backend``: as near the float64 reference as the reference in their dtype."""
    batch, length, d_inner = inputs["x"].shape
    d_state = inputs["A"].shape[1]
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(inputs["x"].device)
        for shape in ((batch, length, d_inner), (batch, d_inner, d_state))
    ]

    def run(values: dict[str, Tensor | None], chosen: str) -> dict[str, Tensor]:
        return forward_backward(
            selective_scan, values, cotangents, return_final_state=True, backend=chosen, **options
        )

    actual = run(inputs, backend)
    naive = run(inputs, "reference")
    exact = run(cast(inputs, torch.float64), "reference")
    for name, value in exact.items():
        assert actual[name].dtype == naive[name].dtype
        assert_as_accurate(name, actual[name], exact=value, naive=naive[name])
