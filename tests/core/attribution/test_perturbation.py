"""Perturbation: it finds what a function looks at, and the curves tell a good order from a random one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambakit.core.attribution import deletion_insertion, perturbation


def reads_one(token: int):
    return lambda x: x[:, token].float().flatten(1).sum(1) if x.dim() > 2 else x[:, token].float()


@pytest.mark.parametrize("token", [0, 3, 6])
def test_it_finds_the_one_token_that_is_read(token):
    torch.manual_seed(0)
    inputs = torch.randn(2, 7, 3)
    found = perturbation(reads_one(token), inputs, rows_per_call=3)
    expected = torch.zeros(2, 7)
    expected[:, token] = inputs[:, token].sum(1)
    torch.testing.assert_close(found, expected)


def test_ids_are_replaced_by_an_id():
    found = perturbation(reads_one(1), torch.tensor([[5, 9, 5]]), 4)
    torch.testing.assert_close(found, torch.tensor([[0.0, 5.0, 0.0]]))


@given(
    length=st.integers(2, 9),
    window=st.integers(1, 9),
    stride=st.integers(1, 9),
    rows=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_of_a_sum_windows_share_out_what_they_hold(length, window, stride, rows, seed):
    """A linear function: a window's fall is its tokens' sum, and a token has the mean over its windows."""
    window, stride = min(window, length), min(stride, window, length)
    torch.manual_seed(seed)
    inputs = torch.randn(2, length, dtype=torch.float64)
    options = {"window": window, "stride": stride, "rows_per_call": rows}
    found = perturbation(lambda x: x.sum(1), inputs, **options)
    starts = sorted({min(s, length - window) for s in range(0, length - window + stride, stride)})
    for token in range(length):
        falls = [inputs[:, s : s + window].sum(1) for s in starts if s <= token < s + window]
        torch.testing.assert_close(found[:, token], torch.stack(falls).mean(0))
    if window < length:  # to drop is to set to zero, for a sum
        torch.testing.assert_close(perturbation(lambda x: x.sum(1), inputs, mode="drop", **options), found)


def test_dropping_shortens_the_rows():
    seen = set()

    def function(x: Tensor) -> Tensor:
        seen.add(tuple(x.shape[1:]))
        return x[:, 0].sum(1)

    inputs = torch.tensor([[[1.0, 1.0], [5.0, 5.0], [7.0, 7.0], [0.0, 0.0]]])
    found = perturbation(function, inputs, mode="drop", window=2, stride=2)
    assert seen == {(4, 2), (2, 2)}
    torch.testing.assert_close(found, torch.tensor([[-12.0, -12.0, 0.0, 0.0]]))


def test_curves_of_the_true_order_beat_random_ones_and_of_the_reverse_lose():
    torch.manual_seed(0)
    inputs = torch.rand(3, 12, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return (x**3).sum(1)

    found = deletion_insertion(function, inputs, perturbation(function, inputs), points=13, rows_per_call=7)
    areas = found.areas()
    assert (areas["deletion"] < areas["random_deletion"]).all()
    assert (areas["insertion"] > areas["random_insertion"]).all()
    reverse = deletion_insertion(function, inputs, -perturbation(function, inputs), points=13).areas()
    assert (reverse["deletion"] > areas["random_deletion"]).all()
    # the curves themselves: what is left of the sorted tokens
    left = inputs.sort(1).values ** 3
    expected = torch.cat([torch.zeros(3, 1, dtype=torch.float64), left.cumsum(1)], 1).flip(1)
    torch.testing.assert_close(found.deletion, expected)
    torch.testing.assert_close(found.insertion, expected[:, :1] - expected)
    again = deletion_insertion(function, inputs, perturbation(function, inputs), points=13)
    assert torch.equal(again.random_deletion, found.random_deletion)


def test_bad_input_is_named():
    inputs = torch.randn(2, 5)

    def total(x: Tensor) -> Tensor:
        return x.sum(1)

    with pytest.raises(ValueError, match=r"inputs: expected shape \(batch, length, \.\.\.\)"):
        perturbation(total, inputs[0])
    with pytest.raises(ValueError, match=r"window: expected 1\.\.4 for 5 tokens to drop, got 5"):
        perturbation(total, inputs, mode="drop", window=5)
    with pytest.raises(ValueError, match=r"stride: expected 1\.\.2 \(the window\)"):
        perturbation(total, inputs, window=2, stride=3)
    with pytest.raises(ValueError, match="mode: expected 'replace' or 'drop', got 'blur'"):
        perturbation(total, inputs, mode="blur")
    with pytest.raises(ValueError, match="function: expected one number a row"):
        perturbation(lambda x: x, inputs)
    with pytest.raises(ValueError, match=r"scores: expected shape \(batch=2, length=5\)"):
        deletion_insertion(total, inputs, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="points, n_random: expected at least 2 and 0, got 1 and 10"):
        deletion_insertion(total, inputs, inputs, points=1)
