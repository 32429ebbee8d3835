"""Integrated gradients: exact where theory says so, complete where the function is smooth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.core.attribution import gradient_times_input, integrated_gradients
from mambakit.core.blocks import build_block


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@given(steps=st.integers(1, 40), rows=st.integers(1, 7), batch=st.integers(1, 4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_of_a_linear_function_it_is_gradient_times_input(steps, rows, batch, seed):
    torch.manual_seed(seed)
    weight, inputs, baseline = double(5, 3), double(batch, 5, 3), double(5, 3)

    def function(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2)) + 2.0

    found = integrated_gradients(function, inputs, baseline, steps=steps, rows_per_call=rows)
    expected = weight * (inputs - baseline)
    torch.testing.assert_close(found.scores, expected, rtol=1e-13, atol=1e-13)
    simple = gradient_times_input(function, inputs, baseline, rows_per_call=rows)
    torch.testing.assert_close(simple, expected, rtol=1e-13, atol=1e-13)
    assert found.gap.max() < 1e-12


def test_of_a_polynomial_few_steps_are_exact():
    """``x y^2`` from zero: the integral of ``t^2 x y^2`` to x, of ``2 t^2 x y^2`` to y."""
    inputs = double(3, 2)
    found = integrated_gradients(lambda x: x[:, 0] * x[:, 1] ** 2, inputs, steps=2)
    product = inputs[:, 0] * inputs[:, 1] ** 2
    torch.testing.assert_close(found.scores, torch.stack([product / 3, 2 * product / 3], 1))
    torch.testing.assert_close(found.value, product)
    assert not found.baseline_value.any()


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_of_a_block_it_is_complete_and_more_steps_close_the_gap(kind):
    torch.manual_seed(0)
    block = build_block(kind, 8, {"d_state": 4} | ({"head_dim": 4} if kind == "mamba2" else {})).double()
    readout, inputs, baseline = double(8), double(2, 6, 8), 0.3 * double(2, 6, 8)

    def function(x: Tensor) -> Tensor:
        return block(x)[0][:, -1] @ readout

    few, many = (integrated_gradients(function, inputs, baseline, steps=n) for n in (2, 48))
    assert few.gap.max() > 1e-6
    assert many.gap.max() < 1e-9
    total = many.value - many.baseline_value
    torch.testing.assert_close(many.scores.sum((1, 2)), total, rtol=0, atol=1e-9)
    # a row by itself, in other pieces
    alone = integrated_gradients(function, inputs[1:], baseline[1:], steps=48, rows_per_call=5)
    torch.testing.assert_close(alone.scores, many.scores[1:])
    assert all(parameter.grad is None for parameter in block.parameters())
    with torch.no_grad():
        again = integrated_gradients(function, inputs, baseline, steps=48)
    torch.testing.assert_close(again.scores, many.scores)


def test_bad_input_is_named():
    inputs = double(2, 3)
    with pytest.raises(TypeError, match=r"got torch\.int64; ids have no gradient, give their embeddings"):
        integrated_gradients(lambda x: x.sum(1), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        integrated_gradients(lambda x: x.sum(1), inputs, steps=0)
    with pytest.raises(ValueError, match="rows_per_call: expected at least 1, got 0"):
        gradient_times_input(lambda x: x.sum(1), inputs, rows_per_call=0)
    with pytest.raises(ValueError, match=r"baseline: .* broadcasts to \(2, 3\), got \(2,\)"):
        integrated_gradients(lambda x: x.sum(1), inputs, double(2))
    with pytest.raises(ValueError, match=r"function: expected one number a row, shape \(2,\), got \(2, 3\)"):
        gradient_times_input(lambda x: x, inputs)
    with pytest.raises(ValueError, match="does not depend on the inputs"):
        integrated_gradients(lambda x: x.detach().sum(1), inputs)
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on the inputs"):
        gradient_times_input(lambda x: weight[: len(x)], inputs)


@pytest.mark.peer
def test_equals_captum():
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    torch.manual_seed(0)
    block = build_block("mamba2", 8, {"d_state": 4, "head_dim": 4}).double()
    inputs, baseline = double(2, 6, 8), double(2, 6, 8)

    def function(x: Tensor) -> Tensor:
        return block(x)[0].square().sum((1, 2))

    expected = attr.IntegratedGradients(function).attribute(inputs, baseline, n_steps=20)
    found = integrated_gradients(function, inputs, baseline, steps=20)
    # captum rounds its nodes and weights to float32
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(found.scores, expected, rtol=4 * eps, atol=4 * eps * float(found.value.max()))
