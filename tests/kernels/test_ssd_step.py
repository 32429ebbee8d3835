"""ssd_step: what it writes, its gradients and dtypes. test_ssd.py compares a stream of it with the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mambakit.kernels import ssd_step
from mambakit.kernels.ssd.testing import make_inputs
from mambakit.kernels.testing import cast


def _step_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    inputs, _ = make_inputs(3, 1, 4, 5, 6, 2)
    inputs = cast(inputs, dtype)
    token = {k: v[:, 0] if k in ("x", "dt", "B", "C", "z") else v for k, v in inputs.items()}
    return token.pop("initial_state"), token


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_step_updates_in_place_only_if_asked(inplace: bool, dtype: torch.dtype) -> None:
    state, token = _step_inputs(dtype)
    before = state.clone()
    _, new = ssd_step(state, **token, dt_softplus=True, inplace=inplace)
    assert (new is state) == inplace
    assert torch.equal(state, before) != inplace
    _, expected = ssd_step(before, **token, dt_softplus=True, backend="reference")
    torch.testing.assert_close(new, expected)


def test_step_is_differentiable() -> None:
    state, token = _step_inputs(torch.float64)
    leaves = {"state": state, **token}
    for value in leaves.values():
        value.requires_grad_()

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return ssd_step(**dict(zip(leaves, values, strict=True)), dt_softplus=True)

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


def test_step_keeps_the_dtypes() -> None:
    state, token = _step_inputs()
    y, new = ssd_step(state, **{k: v.bfloat16() for k, v in token.items()}, dt_softplus=True)
    assert y.dtype == torch.bfloat16
    assert new.dtype == torch.float32


def test_step_refuses_a_wrong_shape() -> None:
    state, token = _step_inputs()
    with pytest.raises(ValueError, match=r"dt: expected shape \(batch=3, n_heads=4\), got \(3, 2\)"):
        ssd_step(state, **token | {"dt": torch.zeros(3, 2)})
