"""Errors against torchmetrics and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torchmetrics.functional as tm

from mambakit.core.scoring import pinball
from mambakit.domains.timeseries.metrics import (
    Errors,
    central_pairs,
    coverage,
    mase,
    mase_scale,
    msis,
    owa,
    smape,
    weighted_quantile_loss,
)

LEVELS = (0.1, 0.5, 0.9)


def drawn(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    target = torch.randn(n, 4, 3) + 3
    quantiles = (target[..., None] + torch.randn(n, 4, 3, 3)).sort(-1).values
    return quantiles, target


def test_totals_equal_torchmetrics_whatever_the_batches():
    quantiles, target = drawn()
    point = quantiles.mean(-1)
    errors = Errors(LEVELS)
    for part in ([0, 1], [2], [3, 4, 5]):
        errors.add(point[part], target[part], quantiles[part])
    found = errors.result()
    flat, truth = point.flatten(), target.flatten()
    assert found["mse"] == pytest.approx(float(tm.mean_squared_error(flat, truth)), rel=1e-5)
    assert found["mae"] == pytest.approx(float(tm.mean_absolute_error(flat, truth)), rel=1e-5)
    smape = 100 * float(tm.symmetric_mean_absolute_percentage_error(flat, truth))
    assert found["smape"] == pytest.approx(smape, rel=1e-4)
    assert found["wql"] == pytest.approx(float(weighted_quantile_loss(quantiles, target, LEVELS)), rel=1e-5)
    inside = float(coverage(quantiles[..., 0], quantiles[..., -1], target))
    assert found["coverage"] == pytest.approx(inside)
    assert sum(errors.mse_by_step()) / 4 == pytest.approx(found["mse"])


def test_pinball_by_hand():
    loss = pinball(torch.tensor([1.0, 3.0]), torch.tensor(2.0), [0.1, 0.9])
    torch.testing.assert_close(loss, torch.tensor([0.1, 0.1]))


def test_mase_by_hand():
    history = torch.tensor([[1.0], [5.0], [2.0], [7.0]])
    assert mase_scale(history, 2).tolist() == [1.5]
    assert mase_scale(history, 9).tolist() == [4.0]  # shorter than a season: steps of one
    errors = Errors(scale=torch.tensor([1.5, 0.0]))
    errors.add(torch.tensor([[[4.0, 0.0]]]), torch.tensor([[[1.0, 9.0]]]))
    assert errors.result()["mase"] == 2.0  # the constant series has no scale and stays out


def test_scores_of_intervals_by_hand():
    low, high = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([2.0, 2.0, 2.0])
    target = torch.tensor([1.0, 3.0, float("nan")])
    # widths of 2, and one miss by 1 that costs 2 / 0.05
    assert float(msis(low, high, target, torch.tensor(4.0))) == (2 + 2 + 40) / 2 / 4
    assert float(coverage(low, high, target)) == 0.5
    assert central_pairs([0.025, 0.1, 0.3, 0.9, 0.975]) == {95: (0, 4), 80: (1, 3)}
    # M4's figures for hourly series: seasonal naive over Naive 2
    assert owa(13.912, 1.193, 18.383, 2.395) == pytest.approx(0.627, abs=1e-3)


def test_a_point_as_every_quantile_has_the_normalised_deviation():
    _, target = drawn()
    point = target + 1
    found = weighted_quantile_loss(point[..., None].expand(*point.shape, 3), target, LEVELS)
    assert float(found) == pytest.approx(float((point - target).abs().sum() / target.abs().sum()), rel=1e-5)


def test_missing_targets_never_count_and_a_missing_forecast_is_seen():
    quantiles, target = drawn()
    point = quantiles.mean(-1)
    keep = torch.rand(target.shape) > 0.3
    errors, expected = Errors(LEVELS, torch.ones(3)), Errors(LEVELS, torch.ones(1))
    errors.add(point, torch.where(keep, target, torch.nan), quantiles)
    expected.add(point[keep][:, None, None], target[keep][:, None, None], quantiles[keep][:, None, None])
    assert errors.result() == pytest.approx(expected.result(), rel=1e-6)
    assert errors.ranks() == expected.ranks()
    assert sum(errors.ranks()) == int(keep.sum()) == errors.count
    broken = point.clone()
    broken[0, 0, 0] = torch.nan
    errors.add(broken, target, quantiles)
    assert errors.result()["mse"] != errors.result()["mse"]
    history = torch.tensor([[1.0], [torch.nan], [2.0], [7.0], [5.0]])
    assert mase_scale(history, 2).tolist() == [2.0]  # of 1 -> 2 and 2 -> 5; the pair with a gap stays out
    assert float(mase(torch.tensor([3.0, 9.0]), torch.tensor([1.0, torch.nan]), torch.tensor(2.0))) == 1.0
    assert float(smape(torch.tensor([0.0, 2.0]), torch.tensor([0.0, torch.nan]))) == 0.0
