"""Padded and packed rows give what each sequence gives alone; so do none, and strided inputs."""

from __future__ import annotations

import pytest
import torch

from mambakit.core.testing import assert_states_close, check_packing, check_packs, check_padding

D_MODEL = 16
LENGTH = 11
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


@pytest.mark.parametrize(
    ("lengths", "dtype"), [([11, 0, 1, 2, 7, 10], torch.float64), ([4, 0, 11], torch.float32)], ids=str
)
def test_padded_rows_equal_each_alone(any_name, lengths, dtype, build, sample):
    x = sample(batch=len(lengths), dtype=dtype)
    check_padding(build(any_name, dtype), x, lengths, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("lengths", "dtype"),
    [
        ([3, 8], torch.float32),
        ([1, 1, 7, 2], torch.float64),
        ([1] * 11, torch.float64),
    ],
    ids=str,
)
def test_packed_rows_equal_each_alone(any_name, lengths, dtype, build, sample):
    check_packing(build(any_name, dtype), sample(batch=2, dtype=dtype), lengths, atol=TOLERANCE[dtype])


def test_rows_packed_differently(any_name, build, sample):
    module, x = build(any_name), sample(batch=3)
    before = module(x[:, :5])[1] if module.causal else None
    check_packs(module, x, before, [[4, 7], [11], [2, 2, 7]], atol=1e-10)


def test_padded_pieces_continue_row_by_row(streaming_name, build, sample):
    """Three ragged pieces in a row, one of them empty for some rows, then steps."""
    module, x = build(streaming_name), sample(batch=3, length=12)
    pieces = [torch.tensor([4, 0, 3]), torch.tensor([0, 2, 4]), torch.tensor([1, 4, 0])]
    state, got = None, [[], [], []]
    taken = torch.zeros(3, dtype=torch.long)
    for lengths in pieces:
        piece = torch.full((3, 4, D_MODEL), torch.nan, dtype=x.dtype)
        for row in range(3):
            piece[row, : lengths[row]] = x[row, taken[row] : taken[row] + lengths[row]]
        y, state = module(piece, state, lengths=lengths)
        for row in range(3):
            got[row].append(y[row, : lengths[row]])
        taken += lengths
    for _ in range(3):
        token = x[torch.arange(3), taken]
        y, state = module.step(token, state)
        for row in range(3):
            got[row].append(y[row : row + 1])
        taken += 1
    for row in range(3):
        alone, _ = module(x[row : row + 1, : taken[row]])
        torch.testing.assert_close(torch.cat(got[row])[None], alone, atol=1e-10, rtol=0)


def test_gradients_of_padded_rows_equal_each_alone(any_name, build, sample):
    module, x = build(any_name), sample(batch=3)
    lengths = [11, 4, 0]
    padded = x.clone()
    for row, n in enumerate(lengths):
        padded[row, n:] = torch.nan
    padded.requires_grad_()
    y, _ = module(padded, lengths=torch.tensor(lengths))
    actual = torch.autograd.grad(y.square().sum(), [padded, *module.parameters()])
    x.requires_grad_()
    total = sum(module(x[row : row + 1, :n])[0].square().sum() for row, n in enumerate(lengths))
    expected = torch.autograd.grad(total, [x, *module.parameters()])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-9, rtol=1e-9)


def test_nothing_at_all(any_name, build, sample):
    module = build(any_name)
    y, state = module(sample(length=0))
    assert y.shape == (3, 0, D_MODEL)
    y, _ = module(sample(batch=0))
    assert y.shape == (0, LENGTH, D_MODEL)
    if not module.causal:
        return
    expected, _ = module(sample())
    torch.testing.assert_close(module(sample(), state)[0], expected, atol=1e-12, rtol=0)
    _, carried = module(sample())
    _, after = module(sample(length=0), carried)
    assert_states_close(after, carried, atol=0)
    _, after = module(sample(), carried, lengths=torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(module(sample(), after)[0], module(sample(), carried)[0], atol=1e-12, rtol=0)


def test_strided_inputs(any_name, build, sample):
    module, x = build(any_name), sample()
    expected, _ = module(x)
    strided = torch.empty(D_MODEL, LENGTH, 3, dtype=x.dtype).permute(2, 1, 0).copy_(x)
    assert not strided.is_contiguous()
    torch.testing.assert_close(module(strided)[0], expected, atol=1e-12, rtol=0)
    everyone = x[:1].expand(3, -1, -1)
    torch.testing.assert_close(module(everyone)[0][2], module(x[:1])[0][0], atol=1e-12, rtol=0)
