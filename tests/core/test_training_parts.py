"""What training is made of: parameter groups, schedule, config, run folder."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mambakit.core.errors import UsageError, UserError
from mambakit.core.training import (
    RunFolder,
    TrainConfig,
    choose_precision,
    configure_optimizer,
    parameter_groups,
    parse_duration,
    resolve_device,
    warmup_cosine,
)

CONFIG = TrainConfig(max_epochs=6, batch_size=16, lr=0.02, device="cpu")


class TestParameterGroups:
    def test_spares_the_recurrence_norms_and_biases(self) -> None:
        class Mixer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.A_log = nn.Parameter(torch.ones(4, 8))
                self.D = nn.Parameter(torch.ones(4, 8))
                self.dt_bias = nn.Parameter(torch.ones(4))
                self.norm = nn.LayerNorm(4)
                self.proj = nn.Linear(4, 4)
                self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)
                self.marked = nn.Parameter(torch.ones(4, 4))
                self.marked._no_weight_decay = True  # type: ignore[attr-defined]
                self.tied = self.proj.weight

        module = Mixer()
        decayed, kept = parameter_groups(module, 0.1)
        assert decayed["weight_decay"] == 0.1
        assert kept["weight_decay"] == 0.0
        assert [id(p) for p in decayed["params"]] == [id(module.proj.weight)]
        assert len(kept["params"]) == 7

    def test_decay_moves_only_the_decayed(self) -> None:
        module = nn.Linear(4, 4)
        before = {name: value.clone() for name, value in module.named_parameters()}
        optimizer = torch.optim.AdamW(parameter_groups(module, 0.5), lr=0.1)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        torch.testing.assert_close(module.weight, before["weight"] * (1 - 0.1 * 0.5))
        torch.testing.assert_close(module.bias, before["bias"])


class TestSchedule:
    def test_rises_then_falls_to_its_floor(self) -> None:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = warmup_cosine(optimizer, total_steps=110, warmup=10, final_fraction=0.1)
        rates = []
        for _ in range(120):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert 0 < rates[0] < 0.2
        assert rates[10] == pytest.approx(2.0)
        assert rates[60] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
        assert rates[110:] == pytest.approx([0.2] * 10)
        assert all(a < b for a, b in pairwise(rates[:11]))
        assert all(a > b for a, b in pairwise(rates[10:111]))

    def test_constant(self) -> None:
        config = dataclasses.replace(CONFIG, schedule="constant", warmup_fraction=0.0)
        module = nn.Linear(2, 2)
        configured = configure_optimizer(module, config, total_steps=10)
        for _ in range(10):
            configured["optimizer"].step()
            configured["lr_scheduler"]["scheduler"].step()
        assert configured["optimizer"].param_groups[0]["lr"] == pytest.approx(config.lr)


class TestConfig:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("0.5h", 1800), ("00:10:05", 605)],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize("text", ["", "0", "ten", "-5", "5d", "0s"])
    def test_bad_durations(self, text: str) -> None:
        with pytest.raises(UsageError, match="expected a duration"):
            parse_duration(text)

    @pytest.mark.parametrize(
        "bad",
        [{"max_epochs": 0}, {"max_steps": 0}, {"lr": -1.0}, {"lr": float("nan")}, {"warmup_fraction": 1.5},
         {"ema_decay": 1.0}, {"batch_size": 0}, {"max_time": "soon"}, {"validate_every": 0}],
    )  # fmt: skip
    def test_refuses_what_can_never_work(self, bad: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=next(iter(bad))):
            TrainConfig(**bad)

    def test_devices(self) -> None:
        assert resolve_device("cpu") == torch.device("cpu")
        for bad in ("tpu", "cpu:1", "cuda:x", "cuda:"):
            with pytest.raises(UsageError, match="expected auto, cpu, cuda"):
                resolve_device(bad)
        if not torch.cuda.is_available():
            with pytest.raises(UsageError, match="cuda is not available here"):
                resolve_device("cuda")

    def test_precision(self) -> None:
        assert choose_precision("auto", torch.device("cpu")) == "32-true"
        assert choose_precision("64-true", torch.device("cpu")) == "64-true"


class TestRunFolder:
    def test_refuses_another_config(self, tmp_path: Path) -> None:
        RunFolder(tmp_path / "run").start({"train": CONFIG, "horizon": 96})
        RunFolder(tmp_path / "run").start({"train": CONFIG, "horizon": 96})
        changed = {"train": dataclasses.replace(CONFIG, lr=0.5), "horizon": 96}
        with pytest.raises(UserError, match=r"unfinished run .* \(train\.lr: 0\.02, now 0\.5\)"):
            RunFolder(tmp_path / "run").start(changed)

    def test_overwrites_only_what_a_run_wrote(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "run")
        run.start(CONFIG)
        run.finish({"best_score": 1.0})
        (run.checkpoints / "last.ckpt").write_bytes(b"old")
        (run.path / "notes.txt").write_text("mine")
        again = RunFolder(tmp_path / "run", overwrite=True)
        again.start({"other": 1})
        assert again.result is None
        assert again.last_checkpoint is None
        assert (run.path / "notes.txt").read_text() == "mine"

    def test_refuses_a_file_and_a_run_without_config(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="is a file"):
            RunFolder(tmp_path / "file").start(CONFIG)
        (tmp_path / "half").mkdir()
        (tmp_path / "half/metrics.csv").write_text("")
        with pytest.raises(UserError, match=r"without config\.yaml"):
            RunFolder(tmp_path / "half").start(CONFIG)
