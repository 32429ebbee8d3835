"""Inputs for the tests of ``ssd``, and the comparison of a backend with the reference."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mambakit.kernels.ssd.op import ssd
from mambakit.kernels.testing import assert_as_accurate, cast, forward_backward, relative_error

Inputs = dict[str, Tensor | None]
OPTIONS: dict[str, Any] = {"dt_softplus": True, "return_final_state": True}


def make_inputs(
    batch: int,
    length: int,
    n_heads: int,
    head_dim: int,
    d_state: int,
    n_groups: int = 1,
    *,
    packed: float = 0.0,
    optional: bool = True,
    seed: int = 0,
) -> tuple[Inputs, list[Tensor]]:
    """Float64 arguments of ssd, and cotangents of y and the state. ``packed``: chance of a new sequence."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw, dtype=torch.float64)

    inputs: Inputs = {
        "x": randn(batch, length, n_heads, head_dim),
        "dt": randn(batch, length, n_heads) - 1,
        "A": -4 * rand(n_heads) - 0.1,
        "B": randn(batch, length, n_groups, d_state),
        "C": randn(batch, length, n_groups, d_state),
    }
    if optional:
        inputs["D"] = randn(n_heads, head_dim) if seed % 2 else randn(n_heads)
        inputs["z"] = randn(batch, length, n_heads, head_dim)
        inputs["dt_bias"] = randn(n_heads)
        inputs["initial_state"] = randn(batch, n_heads, head_dim, d_state)
    if packed:
        inputs["seq_idx"] = (rand(batch, length) < packed).int().cumsum(1).int()
    return inputs, [randn(batch, length, n_heads, head_dim), randn(batch, n_heads, head_dim, d_state)]


def check(
    inputs: Inputs,
    cotangents: list[Tensor],
    dtype: torch.dtype,
    *,
    backend: str = "portable",
    device: str = "cpu",
    **options: Any,
) -> None:
    """Outputs and every gradient of ``backend`` are as near to float64 as the reference's in ``dtype``.

    Triton's products take operands in half precision, where the reference takes them in float32: there
    everything is judged by the precision of the inputs, float32 results too.
    """
    inputs = {name: None if v is None else v.to(device) for name, v in cast(inputs, dtype).items()}
    cotangents = [v.to(device) for v in cotangents]
    actual = forward_backward(partial(ssd, backend=backend), inputs, cotangents, **OPTIONS | options)
    options.pop("chunk_size", None)
    reference = partial(ssd, backend="reference", **OPTIONS | options)
    exact = forward_backward(reference, cast(inputs, torch.float64), cotangents)
    naive = exact if dtype == torch.float64 else forward_backward(reference, inputs, cotangents)
    assert actual["out0"].dtype == dtype
    assert actual["out1"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name in exact:
        if dtype == torch.float64:
            assert relative_error(actual[name], exact[name]) < 1e-11, name
            continue
        got, plain = actual[name], naive[name]
        if backend == "triton":
            got, plain = got.to(dtype), plain.to(dtype)
        # three tf32 products make a float32 one, less a digit
        slack = 4.0 if got.is_cuda and backend == "triton" and dtype == torch.float32 else 2.0
        assert_as_accurate(name, got, exact=exact[name], naive=plain, slack=slack)
