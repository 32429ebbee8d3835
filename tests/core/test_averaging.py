"""Averages of checkpoints: which are taken, when they are kept, and that a killed run takes the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mambakit.core.errors import UsageError
from mambakit.core.training import RunFolder, TrainConfig, fit, seed_everything
from mambakit.core.training.averaging import averaged_weights

CONFIG = TrainConfig(
    max_epochs=7,
    batch_size=4,
    lr=0.3,
    schedule="constant",
    patience=0,
    device="cpu",
    average=3,
    average_of="last",
)


class Noisy(pl.LightningModule):
    """A line through noise at a learning rate at which the weights keep jumping around the best ones."""

    def __init__(self, config: TrainConfig, fails_in: int | None = None) -> None:
        super().__init__()
        self.config, self.fails_in = config, fails_in
        self.net = nn.Linear(3, 1)
        self.seen: list[dict[str, Tensor]] = []
        self.scores: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.current_epoch == self.fails_in:
            raise RuntimeError("killed")
        x, y = batch
        return (self.net(x) - y).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.log("val/loss", loss)
        self.seen.append({name: tensor.clone() for name, tensor in self.state_dict().items()})
        self.scores.append(float(loss))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.config.lr)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(96, 3, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + torch.randn(96, 1, generator=generator)
    data = TensorDataset(x, y)
    return DataLoader(data, 4, shuffle=True), DataLoader(data, 96)


def run_fit(path: Path, config: TrainConfig = CONFIG, **options: Any) -> tuple[Noisy, Any]:
    seed_everything(config.seed)
    task = Noisy(config, **options)
    return task, fit(task, *loaders(), config, RunFolder(path))


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_average_of_three_is_kept_as_it_is_better(tmp_path, which, capfd):
    task, result = run_fit(tmp_path, dataclasses.replace(CONFIG, average_of=which))
    places = range(7)
    chosen = [4, 5, 6] if which == "last" else sorted(places, key=lambda i: task.scores[i])[:3]
    mean = torch.stack([task.seen[i]["net.weight"] for i in chosen]).mean(0)
    torch.testing.assert_close(task.net.weight.detach(), mean)
    assert result.best_checkpoint == "checkpoints/averaged.ckpt"
    assert result.best_score == pytest.approx(task.scores[7])
    assert result.best_score < min(task.scores[:7])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "averaged.ckpt", "best.ckpt", "last.ckpt",
    ]  # fmt: skip
    assert "average of 3 checkpoints: val/loss" in capfd.readouterr().err
    again, _ = run_fit(tmp_path, dataclasses.replace(CONFIG, average_of=which))
    assert torch.equal(again.net.weight, task.net.weight)


def test_an_average_that_is_worse_is_not_kept(tmp_path, capfd):
    config = dataclasses.replace(CONFIG, lr=0.02, average=7)  # from the random start on
    task, result = run_fit(tmp_path, config)
    assert result.best_checkpoint == "checkpoints/best.ckpt"
    best = min(range(7), key=lambda i: task.scores[i])
    assert torch.equal(task.net.weight, task.seen[best]["net.weight"])
    assert "not better, and not kept" in capfd.readouterr().err


def test_a_killed_run_averages_the_same(tmp_path):
    whole, _ = run_fit(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        run_fit(tmp_path / "killed", fails_in=6)
    resumed, _ = run_fit(tmp_path / "killed")
    assert torch.equal(resumed.net.weight, whole.net.weight)


def test_averages_are_exact_and_options_checked(tmp_path):
    for i, value in enumerate([1.0, 2.0, 6.0]):
        weights = {"w": torch.tensor([value, 0.1]), "n": torch.tensor(i)}
        torch.save({"state_dict": weights}, tmp_path / f"{i}.ckpt")
    found = averaged_weights([tmp_path / f"{i}.ckpt" for i in range(3)])
    assert found["w"].tolist() == torch.tensor([3.0, 0.1]).tolist()
    assert int(found["n"]) == 2
    with pytest.raises(ValueError, match="at least one to average"):
        averaged_weights([])
    with pytest.raises(UsageError, match="average, ema_decay: both average weights"):
        TrainConfig(average=2, ema_decay=0.9)
    with pytest.raises(UsageError, match="average: expected at least 1, got 0"):
        TrainConfig(average=0)
