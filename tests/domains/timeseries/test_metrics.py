"""Errors against torchmetrics and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torchmetrics.functional as tm

from mambakit.core.scoring import pinball
from mambakit.domains.timeseries.metrics import Errors, coverage, mase_scale, weighted_quantile_loss

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
