from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mambakit.core.heads import (
    ClassificationHead,
    CTCHead,
    LanguageModelHead,
    QuantileHead,
    RegressionHead,
    masked_mean,
    pool_tokens,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --- means over what counts


def test_masked_mean():
    values = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    assert masked_mean(values, mask).item() == 2.0
    assert masked_mean(values, torch.tensor([True, False])).item() == 1.5
    assert masked_mean(values, torch.zeros(2, 2, dtype=torch.bool)).item() == 0.0
    assert masked_mean(torch.tensor([1.0, 4.0]), None).item() == 2.5
    assert masked_mean(torch.zeros(0), None).item() == 0.0
    with pytest.raises(ValueError, match=r"mask: expected the leading dimensions of \(2, 2\), got \(3,\)"):
        masked_mean(values, torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask: expected bool, got torch.int64"):
        masked_mean(values, torch.ones(2, dtype=torch.int64))


# --- regression


@pytest.mark.parametrize(
    ("loss", "error", "expected"),
    [
        ("mse", 3.0, 9.0),
        ("mae", -3.0, 3.0),
        ("huber", 0.5, 0.125),
        ("huber", -3.0, 2.0 * (3.0 - 1.0)),
    ],
)
def test_regression_losses(loss, error, expected):
    head = RegressionHead(d_model=4, d_output=2, loss=loss, huber_delta=2.0)
    output = head(torch.randn(3, 5, 4))
    assert output.shape == (3, 5, 2)
    assert head.loss(output, output.detach() + error).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_missing_targets_touch_nothing(loss):
    head = RegressionHead(d_model=4, loss=loss)
    x = torch.randn(2, 3, 4)
    target = torch.randn(2, 3, 1)
    target[1, 2] = torch.nan
    mask = ~target.isnan().squeeze(-1)
    value = head.loss(head(x), target, mask)
    value.backward()
    kept = torch.cat([x[0], x[1, :2]])
    torch.testing.assert_close(value, head.loss(head(kept), torch.cat([target[0], target[1, :2]])))
    assert head.proj.weight.grad.isfinite().all()
    head.zero_grad()
    head.loss(head(x), target, torch.zeros_like(mask)).backward()
    assert not head.proj.weight.grad.any()


def test_regression_refuses():
    with pytest.raises(ValueError, match="expected one of mse, mae, huber, got 'l3'"):
        RegressionHead(d_model=4, loss="l3")
    with pytest.raises(ValueError, match=r"target: expected the output's shape \(2, 1\), got \(2,\)"):
        RegressionHead(d_model=4).loss(torch.zeros(2, 1), torch.zeros(2))


# --- quantiles


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=7, unique=True).map(sorted))
def test_quantiles_never_cross(levels):
    head = QuantileHead(d_model=6, quantiles=levels, d_output=2)
    with torch.no_grad():
        head.proj.weight.mul_(30)
    output = head(torch.randn(50, 6))
    assert output.shape == (50, 2, len(levels))
    assert (output.diff(dim=-1) >= 0).all()


def test_the_middle_quantile_is_linear():
    head = QuantileHead(d_model=6, quantiles=(0.05, 0.25, 0.5, 0.9))
    x = torch.randn(5, 6)
    raw = head.proj(x)
    output = head(x)[:, 0]
    step = F.softplus(raw)
    expected = torch.stack(
        [
            raw[:, 2] - step[:, 1] - step[:, 0],
            raw[:, 2] - step[:, 1],
            raw[:, 2],
            raw[:, 2] + step[:, 3],
        ],
        dim=-1,
    )
    torch.testing.assert_close(output, expected)


def test_pinball_loss_by_hand():
    head = QuantileHead(d_model=4, quantiles=(0.1, 0.5, 0.9))
    output = torch.tensor([[[0.0, 1.0, 2.0]]])  # one row, one number
    # target 1.5: errors 1.5, 0.5, -0.5 -> 0.1*1.5, 0.5*0.5, 0.1*0.5
    expected = (0.15 + 0.25 + 0.05) / 3
    assert head.loss(output, torch.tensor([[1.5]])).item() == pytest.approx(expected)
    both = torch.cat([output, output])
    target = torch.tensor([[1.5], [torch.nan]])
    assert head.loss(both, target, torch.tensor([True, False])).item() == pytest.approx(expected)


def test_quantiles_are_learnt():
    head = QuantileHead(d_model=1, quantiles=(0.1, 0.5, 0.9))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    target = torch.randn(4000, 1)
    x = torch.ones(4000, 1)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(head(x), target).backward()
        optimizer.step()
    covered = (target <= head(x)[:, 0]).float().mean(0)
    torch.testing.assert_close(covered, torch.tensor([0.1, 0.5, 0.9]), atol=0.03, rtol=0)


@pytest.mark.parametrize("levels", [[], [0.5, 0.1], [0.0, 0.5], [0.5, 0.5], [0.5, 1.0]])
def test_quantiles_refuse(levels):
    with pytest.raises(ValueError, match=r"increasing levels inside \(0, 1\)"):
        QuantileHead(d_model=4, quantiles=levels)


def test_quantile_loss_refuses_other_shapes():
    head = QuantileHead(d_model=4)
    with pytest.raises(ValueError, match=r"target: expected shape \(2, 1\), got \(2, 1, 3\)"):
        head.loss(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))


# --- classification


@pytest.mark.parametrize("pool", ["last", "mean", "max"])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_pools_see_real_tokens_only(pool, padding):
    x = torch.randn(4, 6, 3)
    lengths = [6, 1, 0, 4]
    padded = torch.full_like(x, torch.nan)
    for row, n in enumerate(lengths):
        where = slice(0, n) if padding == "right" else slice(6 - n, 6)
        padded[row, where] = x[row, :n]
    pooled = pool_tokens(padded, pool, torch.tensor(lengths), padding)
    for row, n in enumerate(lengths):
        alone = pool_tokens(x[row : row + 1, :n], pool)[0]
        torch.testing.assert_close(pooled[row], alone)
    assert not pooled[2].any()
    expected = {"last": x[0, -1], "mean": x[0].mean(0), "max": x[0].max(0).values}[pool]
    torch.testing.assert_close(pooled[0], expected)


def test_classification():
    head = ClassificationHead(d_model=3, n_classes=4, pool="last", label_smoothing=0.1)
    x = torch.randn(2, 5, 3)
    logits = head(x, torch.tensor([5, 2]))
    torch.testing.assert_close(logits, head.proj(torch.stack([x[0, 4], x[1, 1]])))
    target = torch.tensor([0, 3])
    logp = logits.log_softmax(-1)
    expected = -(0.9 * logp[[0, 1], target] + 0.1 * logp.mean(-1)).mean()
    torch.testing.assert_close(head.loss(logits, target), expected)


def test_classification_refuses():
    with pytest.raises(ValueError, match="expected one of last, mean, max, got 'sum'"):
        ClassificationHead(d_model=3, n_classes=2, pool="sum")
    head = ClassificationHead(d_model=3, n_classes=2)
    with pytest.raises(ValueError, match=r"values must be in 0..5"):
        head(torch.zeros(1, 5, 3), torch.tensor([6]))
    with pytest.raises(ValueError, match="'right' or 'left', got 'up'"):
        head(torch.zeros(1, 5, 3), padding="up")


# --- language model


def test_language_model():
    head = LanguageModelHead(d_model=8, vocab_size=11, ignore_index=-1)
    logits = head(torch.randn(2, 5, 8))
    target = torch.randint(11, (2, 5))
    target[1, 3:] = -1
    logp = logits.log_softmax(-1)
    kept = [-logp[b, t, target[b, t]] for b in range(2) for t in range(5) if target[b, t] >= 0]
    torch.testing.assert_close(head.loss(logits, target), torch.stack(kept).mean())
    nothing = head.loss(logits, torch.full((2, 5), -1))
    assert nothing.item() == 0.0
    nothing.backward()
    assert not head.proj.weight.grad.any()


def test_tied_embedding_is_one_weight():
    embedding = nn.Embedding(11, 8)
    head = LanguageModelHead(d_model=8, vocab_size=11, embedding=embedding)
    assert head.proj.weight is embedding.weight
    torch.testing.assert_close(head(torch.eye(8)), embedding.weight.T)
    with pytest.raises(ValueError, match=r"weight of shape \(vocab_size=12, d_model=8\), got \(11, 8\)"):
        LanguageModelHead(d_model=8, vocab_size=12, embedding=embedding)
    with pytest.raises(ValueError, match=r"target: expected shape \(2, 5\), got \(2, 4\)"):
        head.loss(torch.zeros(2, 5, 11), torch.zeros(2, 4, dtype=torch.int64))


# --- CTC


def ctc_by_enumeration(logp: torch.Tensor, label: list[int], blank: int) -> float:
    """-log of the summed probability of every path that reads as ``label``."""
    frames, classes = logp.shape
    total = 0.0
    for code in range(classes**frames):
        path = [code // classes**t % classes for t in range(frames)]
        merged = [s for t, s in enumerate(path) if t == 0 or path[t - 1] != s]
        if [s for s in merged if s != blank] == label:
            total += math.exp(sum(logp[t, s].item() for t, s in enumerate(path)))
    return -math.log(total)


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc_sums_over_all_paths(blank):
    head = CTCHead(d_model=4, n_classes=3, blank=blank).double()
    output = head(torch.randn(3, 5, 4, dtype=torch.float64))
    a, b = [s for s in range(3) if s != blank]
    labels, lengths = [[a, b], [b, b], [a]], [5, 4, 1]
    padded = torch.tensor([[a, b, 77], [b, b, 77], [a, 77, 77]])
    loss = head.loss(output, padded, torch.tensor(lengths), torch.tensor([2, 2, 1]))
    alone = [
        ctc_by_enumeration(output[row, : lengths[row]], label, blank) / len(label)
        for row, label in enumerate(labels)
    ]
    assert loss.item() == pytest.approx(sum(alone) / 3, rel=1e-9)


def test_ctc_refuses_labels_that_do_not_fit():
    head = CTCHead(d_model=4, n_classes=3)
    output = head(torch.randn(2, 3, 4))
    frames = torch.tensor([3, 3])
    with pytest.raises(ValueError, match=r"label of row 1 needs 4 frames .* 1 repeats.*it has 3"):
        head.loss(output, torch.tensor([[1, 2, 1], [1, 1, 2]]), frames, torch.tensor([3, 3]))
    with pytest.raises(ValueError, match=r"label of row 0 needs 2 frames .* it has 1"):
        head.loss(output, torch.tensor([[1, 2], [1, 2]]), torch.tensor([1, 3]), torch.tensor([2, 2]))
    with pytest.raises(ValueError, match=r"symbols must be in 0..2 and not the blank \(0\)"):
        head.loss(output, torch.tensor([[1, 0], [1, 2]]), frames, torch.tensor([2, 2]))
    with pytest.raises(ValueError, match=r"target_lengths: values must be in 0..2, got \[2, 3\]"):
        head.loss(output, torch.tensor([[1, 2], [1, 2]]), frames, torch.tensor([2, 3]))
    with pytest.raises(ValueError, match=r"lengths: values must be in 0..3"):
        head.loss(output, torch.tensor([[1, 2], [1, 2]]), torch.tensor([4, 3]), torch.tensor([2, 2]))
    with pytest.raises(ValueError, match=r"blank: expected an index in 0..2, got 3"):
        CTCHead(d_model=4, n_classes=3, blank=3)


def test_ctc_best_path():
    head = CTCHead(d_model=4, n_classes=3)
    frames = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 0, 2, 1, 1, 0]])
    output = F.one_hot(frames, 3).float()
    assert head.best_path(output) == [[1, 1, 2], [2, 1]]
    assert head.best_path(output, torch.tensor([2, 0])) == [[1], []]
