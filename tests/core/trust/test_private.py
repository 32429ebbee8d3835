"""DP-SGD: clipped gradients beside a plain loop, the noise's scale, Poisson batches, and what is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mambakit.core.backbone import Backbone, BackboneConfig
from mambakit.core.continual.config import ContinualConfig
from mambakit.core.errors import UsageError
from mambakit.core.hub import HubModel
from mambakit.core.training import RunFolder, TrainConfig, fit, seed_everything
from mambakit.core.trust.private import PoissonBatches, epsilon_of, private_loss
from mambakit.core.trust.private_config import PrivateConfig

STACKS = {
    "mamba1": {"d_state": 3},
    "mamba2": {"head_dim": 4, "d_state": 4},
    "mamba3": {"head_dim": 4, "d_state": 4},
    "attention": {"n_heads": 2},
}


@pytest.mark.parametrize("kind", STACKS)
def test_the_gradient_is_the_sum_of_clipped_ones_of_a_plain_loop(kind):
    torch.manual_seed(0)
    model = Backbone(BackboneConfig(d_model=8, layers=[kind], block_options={kind: STACKS[kind]})).double()
    x = torch.randn(5, 6, 8).double() * torch.tensor([0.1, 1.0, 3.0, 1.0, 0.3]).double()[:, None, None]
    parameters = list(model.parameters())

    def losses():
        return (one.square().mean() * 10 for one in (model(case[None])[0] for case in x))

    each = [torch.autograd.grad(loss, parameters) for loss in losses()]
    norms = [math.sqrt(sum(float(one.square().sum()) for one in gradient)) for gradient in each]
    bound = sorted(norms)[2]  # two are above it, two below
    wanted = [
        sum(gradient[i] * min(1.0, bound / norm) for gradient, norm in zip(each, norms, strict=True)) / 4
        for i in range(len(parameters))
    ]
    config = PrivateConfig(noise_multiplier=0.0, max_grad_norm=bound)
    loss = private_loss(losses(), parameters, config, batch_size=4, generator=torch.Generator())
    loss.backward()
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
    assert loss.item() == pytest.approx(sum(loss.item() for loss in losses()) / 5)


def test_noise_has_the_deviation_that_it_says_also_without_a_case():
    weight = nn.Parameter(torch.zeros(200, 500))
    config = PrivateConfig(noise_multiplier=1.5, max_grad_norm=2.0)
    loss = private_loss(iter(()), [weight], config, batch_size=10, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.std() == pytest.approx(1.5 * 2 / 10, rel=0.01)  # 4.5 deviations of 100,000 draws
    assert abs(float(weight.grad.mean())) < 4.5 * 0.3 / math.sqrt(100_000)


def test_batches_are_poisson_draws():
    batches = PoissonBatches(50, 5, torch.Generator().manual_seed(0))
    assert len(batches) == 10
    drawn = [batch for _ in range(400) for batch in batches]
    sizes = np.array([len(batch) for batch in drawn])
    assert sizes.mean() == pytest.approx(5, abs=0.15)
    assert sizes.var() == pytest.approx(50 * 0.1 * 0.9, rel=0.12)
    assert sizes.min() == 0
    assert all(len(set(batch)) == len(batch) for batch in drawn)
    counts = np.bincount(np.concatenate(drawn).astype(int), minlength=50)
    assert counts.min() > 400 - 5 * math.sqrt(360)


def plain_epsilon(steps: int, sigma: float, q: float, delta: float) -> float:
    """Mironov et al. 2019, section 3.3, at whole orders; to epsilon by Balle et al. 2020, theorem 21."""
    found = []
    for order in range(2, 64):
        k = np.arange(order + 1)
        log_binomial = [math.lgamma(order + 1) - math.lgamma(i + 1) - math.lgamma(order - i + 1) for i in k]
        terms = (
            np.array(log_binomial)
            + k * math.log(q)
            + (order - k) * math.log1p(-q)
            + k * (k - 1) / (2 * sigma**2)
        )
        rdp = steps * float(logsumexp(terms)) / (order - 1)
        found.append(rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return min(found)


@pytest.mark.parametrize(
    ("steps", "sigma", "q", "delta"), [(14062, 1.1, 256 / 60000, 1e-5), (200, 2.0, 0.1, 1e-6)]
)
def test_epsilon_is_that_of_the_sampled_gaussian_mechanism(steps, sigma, q, delta):
    pytest.importorskip("opacus")
    assert epsilon_of(steps, sigma, q, delta) == pytest.approx(
        plain_epsilon(steps, sigma, q, delta), rel=0.03
    )
    assert epsilon_of(0, sigma, q, delta) == 0


class Line(nn.Module, HubModel):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)


class Task(pl.LightningModule):
    private_unit = "a point"

    def __init__(self) -> None:
        super().__init__()
        self.model = Line()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = (self.model.linear(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/loss", (self.model.linear(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.3)


def loader(n: int = 200, **options: Any) -> DataLoader[Any]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(
        TensorDataset(x, x.sum(1, keepdim=True)), **{"batch_size": 20, "shuffle": True, **options}
    )


def test_a_private_run_learns_and_its_folder_says_what_it_spent(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    private = PrivateConfig(noise_multiplier=0.5, max_grad_norm=1.0, delta=1e-4)
    config = TrainConfig(max_epochs=6, device="cpu", patience=0, private=private)
    run, task = RunFolder(tmp_path), Task()
    seed_everything(0)
    result = fit(task, loader(), loader(shuffle=False), config, run)
    assert result.best_score < 0.5  # 3 before: the variance of a sum of three
    assert result.privacy is not None
    assert result.privacy["epsilon"] == epsilon_of(60, 0.5, 0.1, 1e-4)
    assert result.privacy["steps"] == 60
    run.save(task.model)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["privacy"] == result.privacy
    text = (tmp_path / "README.md").read_text()
    assert f"epsilon {result.privacy['epsilon']:.4g} at delta 0.0001 for a point" in text
    assert "training_step" not in task.__dict__


def test_what_is_not_private_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("opacus")

    def refused(task: pl.LightningModule, data: DataLoader[Any], message: str, **private: Any) -> None:
        config = TrainConfig(device="cpu", private=PrivateConfig(noise_multiplier=1.0, **private))
        with pytest.raises(UsageError, match=message):
            fit(task, data, loader(), config, RunFolder(tmp_path, overwrite=True))

    refused(Task(), loader(), "expected less than 1/200", delta=0.01)
    refused(Task(), loader(batch_size=None, shuffle=False), "not drawn from single cases")
    task = Task()
    task.private_unit = None  # type: ignore[assignment]
    refused(task, loader(), "Task has no single cases")
    task = Task()
    task.normal = nn.BatchNorm1d(3)
    refused(task, loader(), "mixes the cases")
    with pytest.raises(UsageError, match="max_grad_norm: expected more than 0"):
        PrivateConfig(max_grad_norm=0.0)
    with pytest.raises(UsageError, match="private, continual: batches that are kept"):
        TrainConfig(private=PrivateConfig(noise_multiplier=1.0), continual=ContinualConfig(keep=8))
