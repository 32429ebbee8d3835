"""Training runs: averaging, early stopping, resume, clear errors."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mambakit.core.errors import UserError
from mambakit.core.training import (
    DivergedError,
    RunFolder,
    TrainConfig,
    choose_precision,
    fit,
    resolve_device,
    seed_everything,
)

TASK = textwrap.dedent(
    """
    import lightning.pytorch as pl
    import torch
    from mambakit.core.training import configure_optimizer, seed_everything
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Line(pl.LightningModule):
        def __init__(self, config, dropout=0.0):
            super().__init__()
            self.config = config
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

        def training_step(self, batch, index):
            x, y = batch
            loss = (self.net(x) - y).square().mean()
            self.log("train/loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, index):
            x, y = batch
            self.log("val/loss", (self.net(x) - y).square().mean())

        def configure_optimizers(self):
            return configure_optimizer(self, self.config, self.trainer.estimated_stepping_batches)

    def loaders(batch_size=16, n=128):
        x = torch.randn(n, 3, generator=torch.Generator().manual_seed(7))
        y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
        data = TensorDataset(x, y)
        return DataLoader(data, batch_size, shuffle=True), DataLoader(data, batch_size)
    """
)
NAMESPACE: dict[str, Any] = {"__name__": "line"}
exec(TASK, NAMESPACE)  # the same text runs in the process that a test kills
Line, loaders = NAMESPACE["Line"], NAMESPACE["loaders"]

CONFIG = TrainConfig(max_epochs=6, batch_size=16, lr=0.02, device="cpu")


def run_fit(
    path: Path, config: TrainConfig = CONFIG, dropout: float = 0.0, **options: Any
) -> tuple[Any, Any]:
    seed_everything(config.seed)
    task = Line(config, dropout)
    return task, fit(task, *loaders(config.batch_size), config, RunFolder(path), **options)


def metrics_of(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


class TestFit:
    def test_learns_and_leaves_a_run_folder(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        config = dataclasses.replace(CONFIG, max_epochs=10)
        task, result = run_fit(tmp_path / "run", config)
        rows = metrics_of(tmp_path / "run")
        losses = [float(row["val/loss"]) for row in rows]
        assert len(rows) == 10
        assert losses[-1] < losses[0] / 4
        assert result.best_score == pytest.approx(min(losses), rel=1e-5)
        assert (result.epochs, result.steps, result.stopped) == (10, 80, "epochs")
        assert [int(row["step"]) for row in rows] == list(range(8, 88, 8))
        assert all(float(row["train/loss"]) > 0 for row in rows)
        assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["max_epochs"] == 10
        environment = json.loads((tmp_path / "run/environment.json").read_text())
        assert environment["versions"]["torch"]
        assert environment["seed"] == 0
        out, err = capfd.readouterr()
        assert out == ""
        assert "epoch  10" in err
        assert "num_workers" not in err
        assert "Warning" not in err
        assert not task.training

    def test_keeps_the_best_weights_and_stops_early(self, tmp_path: Path) -> None:
        class Worsening(Line):  # type: ignore[misc, valid-type]
            def validation_step(self, batch: Any, index: int) -> None:
                time.sleep(0.02)
                self.log("val/loss", float(abs(self.current_epoch - 2)))
                self.log("net", self.net[0].weight.detach().sum())

        seed_everything(0)
        config = dataclasses.replace(CONFIG, max_epochs=50, patience=3)
        task = Worsening(config)
        result = fit(task, *loaders(), config, RunFolder(tmp_path))
        assert (result.best_score, result.epochs, result.stopped) == (0.0, 6, "patience")
        at_best = metrics_of(tmp_path)[2]
        assert task.net[0].weight.sum().item() == pytest.approx(float(at_best["net"]), rel=1e-5)
        assert result.steps_to_best == int(at_best["step"]) == 24
        assert result.seconds_to_best == float(at_best["training_seconds"])
        validated = 3 * 8 * 0.02  # epochs, batches
        assert 0 < result.seconds_to_best < float(at_best["seconds"]) - validated + 0.02

    def test_same_seed_same_run(self, tmp_path: Path) -> None:
        first, _ = run_fit(tmp_path / "a", dropout=0.2)
        second, _ = run_fit(tmp_path / "b", dropout=0.2)
        other, _ = run_fit(tmp_path / "c", dataclasses.replace(CONFIG, seed=1), dropout=0.2)
        assert torch.equal(first.net[0].weight, second.net[0].weight)
        assert not torch.equal(first.net[0].weight, other.net[0].weight)

    def test_averaged_weights_are_validated_and_kept(self, tmp_path: Path) -> None:
        config = dataclasses.replace(CONFIG, ema_decay=0.9, patience=0)
        task, result = run_fit(tmp_path, config)
        raw, _ = run_fit(tmp_path / "raw", dataclasses.replace(config, ema_decay=0.0))
        assert not torch.equal(task.net[0].weight, raw.net[0].weight)
        x, y = loaders()[1].dataset.tensors
        with torch.no_grad():
            loss = (task.net(x) - y).square().mean().item()
        assert loss == pytest.approx(result.best_score, rel=1e-4)

    def test_average_follows_its_formula(self) -> None:
        from mambakit.core.training.callbacks import AveragedWeights

        averaging = AveragedWeights(0.9)._kwargs["multi_avg_fn"]
        average = torch.zeros(1, dtype=torch.float64)
        expected = 0.0
        for n in range(1, 200):
            decay = min(0.9, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * n
            averaging([average], [torch.tensor([float(n)], dtype=torch.float64)], torch.tensor(n))
        assert average.item() == pytest.approx(expected)

    def test_stops_after_max_steps(self, tmp_path: Path) -> None:
        _, result = run_fit(tmp_path, dataclasses.replace(CONFIG, max_steps=11))
        assert (result.steps, result.stopped) == (11, "steps")
        assert result.steps_to_best == 8  # the only validation was after the first epoch
        assert result.best_checkpoint == "checkpoints/best.ckpt"

    def test_stops_after_max_time_in_the_first_epoch(self, tmp_path: Path) -> None:
        class Slow(Line):  # type: ignore[misc, valid-type]
            def training_step(self, batch: Any, index: int) -> Tensor:
                time.sleep(0.2)
                return super().training_step(batch, index)

        config = dataclasses.replace(CONFIG, max_time="0.5s")
        result = fit(Slow(config), *loaders(), config, RunFolder(tmp_path))
        assert result.stopped == "time"
        assert result.steps < 8
        assert result.best_score > 0
        assert (tmp_path / result.best_checkpoint).exists()

    def test_validates_every_few_steps(self, tmp_path: Path) -> None:
        config = dataclasses.replace(CONFIG, max_epochs=2, validate_every=4)
        run_fit(tmp_path, config)
        assert [int(row["step"]) for row in metrics_of(tmp_path)] == [4, 8, 12, 16]

    def test_nan_is_an_error_that_names_the_place(self, tmp_path: Path) -> None:
        class Diverging(Line):  # type: ignore[misc, valid-type]
            def training_step(self, batch: Any, index: int) -> Tensor:
                loss: Tensor = super().training_step(batch, index)
                return loss * float("nan") if self.global_step == 10 else loss

        with pytest.raises(DivergedError, match=r"training loss became nan in epoch 1, step 11; try"):
            fit(Diverging(CONFIG), *loaders(), CONFIG, RunFolder(tmp_path))

    def test_empty_split_is_an_error(self, tmp_path: Path) -> None:
        empty: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0, 1)))
        with pytest.raises(UserError, match="not one batch in the validation split"):
            fit(Line(CONFIG), loaders()[0], empty, CONFIG, RunFolder(tmp_path))

    def test_unknown_monitor_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"logs no 'val/mse'.*val/loss"):
            run_fit(tmp_path, monitor="val/mse")

    def test_finished_run_is_not_trained_again(self, tmp_path: Path) -> None:
        first, result = run_fit(tmp_path)
        stamp = (tmp_path / "metrics.csv").stat().st_mtime_ns
        second, again = run_fit(tmp_path)
        assert again == result
        assert (tmp_path / "metrics.csv").stat().st_mtime_ns == stamp
        assert torch.equal(first.net[0].weight, second.net[0].weight)

    @pytest.mark.gpu
    @pytest.mark.parametrize("ema_decay", [0.0, 0.9])
    def test_on_a_gpu_in_bf16(self, tmp_path: Path, ema_decay: float) -> None:
        config = dataclasses.replace(CONFIG, device="cuda", max_epochs=10, ema_decay=ema_decay)
        assert choose_precision("auto", resolve_device("cuda")) == "bf16-mixed"
        task, result = run_fit(tmp_path, config)
        losses = [float(row["val/loss"]) for row in metrics_of(tmp_path)]
        assert losses[-1] < losses[0] / 2
        x, y = loaders()[1].dataset.tensors
        with torch.no_grad():
            loss = (task.cpu().net(x) - y).square().mean().item()
        assert loss == pytest.approx(result.best_score, rel=0.05)

    def test_interruption_is_not_a_result(self, tmp_path: Path) -> None:
        class Interrupted(Line):  # type: ignore[misc, valid-type]
            def training_step(self, batch: Any, index: int) -> Tensor:
                if self.global_step == 10:
                    raise KeyboardInterrupt
                return super().training_step(batch, index)

        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            fit(Interrupted(CONFIG), *loaders(), CONFIG, RunFolder(tmp_path))
        assert RunFolder(tmp_path).result is None
        assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [0.0, 0.95])
def test_killed_run_continues_as_if_nothing_had_happened(tmp_path: Path, ema_decay: float) -> None:
    config = dataclasses.replace(CONFIG, max_epochs=8, ema_decay=ema_decay)
    script = tmp_path / "train.py"
    script.write_text(
        TASK
        + textwrap.dedent(
            f"""
            import os, signal, sys
            from mambakit.core.from_json import from_json
            from mambakit.core.training import RunFolder, TrainConfig, fit

            class Killed(Line):
                def on_train_batch_start(self, batch, index):
                    if self.current_epoch == 4 and index == 3:
                        os.kill(os.getpid(), signal.SIGKILL)

            config = from_json(TrainConfig, {dataclasses.asdict(config)!r})
            seed_everything(0)
            fit(Killed(config, 0.2), *loaders(), config, RunFolder(sys.argv[1]))
            """
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(metrics_of(tmp_path / "run")) == 4

    torch.manual_seed(99)  # nothing may depend on the state of the process that takes over
    task = Line(config, 0.2)
    result = fit(task, *loaders(), config, RunFolder(tmp_path / "run"))
    whole, expected = run_fit(tmp_path / "whole", config, dropout=0.2)
    assert (result.steps, result.epochs) == (expected.steps, expected.epochs) == (64, 8)
    assert result.best_score == pytest.approx(expected.best_score, rel=1e-5)
    for mine, other in zip(metrics_of(tmp_path / "run"), metrics_of(tmp_path / "whole"), strict=True):
        assert mine["step"] == other["step"]
        for name in ("train/loss", "val/loss", "lr"):
            assert float(mine[name]) == pytest.approx(float(other[name]), rel=1e-5), name
    torch.testing.assert_close(task.net[0].weight, whole.net[0].weight, rtol=1e-5, atol=1e-6)
