"""What a fit does beside training: averaged weights, metrics on disk, progress, and a stop on NaN."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from mambakit.core.errors import UserError

_CUDA_CHECK_EVERY = 20  # steps; reading a loss from a GPU waits for it


class DivergedError(UserError):
    """The loss is no longer a number."""


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights, which is what is validated, saved and kept.

    The decay rises with the number of updates n as ``min(decay, (1 + n) / (10 + n))``: the first
    averages would otherwise be little more than the random start. Buffers are copied, not averaged.

    Args:
        decay: Its highest value.
        device: Where the averages live: the device that trains, else every step waits for it.
    """

    def __init__(self, decay: float, device: torch.device | None = None) -> None:
        def average(averaged: Any, current: Any, n_averaged: Tensor | int) -> None:
            n = int(n_averaged if self._average_model is None else self._average_model.n_averaged)
            current = [new.to(old.dtype) for old, new in zip(averaged, current, strict=True)]
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(device=device, use_buffers=False, multi_avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # a count on a GPU would make every step wait for it
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()


class EpochSeed(Callback):
    """Seeds every epoch by its number, so that a resumed run shuffles as one that never stopped."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.manual_seed(self.seed + 1_000_003 * (trainer.current_epoch + 1))


class StopOnNaN(Callback):
    """Ends the run with a clear error as soon as a loss is NaN or infinite, before it is saved."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        if loss.device.type == "cpu" or trainer.global_step % _CUDA_CHECK_EVERY == 0:
            self._check("the training loss", loss.item(), trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise UserError(f"the task logs no {self.monitor!r} in validation; it logs {logged}")
        self._check(self.monitor, float(value), trainer)

    def _check(self, name: str, value: float, trainer: pl.Trainer) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"{name} became {value} in epoch {trainer.current_epoch}, step {trainer.global_step}; "
                "try a lower lr, a smaller gradient_clip, precision 32-true, or look for NaN or huge values "
                "in the data"
            )


class MetricsFile(Callback):
    """Writes ``metrics.csv``: one row a validation, with everything the task logged.

    ``seconds`` is all the time since the run began, ``training_seconds`` that without validation. A resumed
    run drops the rows after the checkpoint it resumes from. The file is written anew each time, by one
    rename, because a later row may have columns that the first had not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self.validating = self.validation_began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.monotonic()
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as stream:
                self.rows = [row for row in csv.DictReader(stream) if int(row["step"]) <= trainer.global_step]
        if self.rows:
            seconds = float(self.rows[-1]["seconds"])
            self.began -= seconds
            self.validating = seconds - float(self.rows[-1].get("training_seconds") or seconds)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._add(trainer)  # after validation: only now are the epoch's training means known

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda":  # steps not yet computed are training's
            torch.cuda.synchronize(pl_module.device)
        self.validation_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self.validating += time.monotonic() - self.validation_began
            self._add(trainer)

    def _add(self, trainer: pl.Trainer) -> None:
        seconds = time.monotonic() - self.began
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": f"{seconds:.2f}",
            "training_seconds": f"{seconds - self.validating:.2f}",
            "lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.6g}",
        }
        row.update({name: f"{float(value):.8g}" for name, value in sorted(trainer.callback_metrics.items())})
        if self.rows and int(self.rows[-1]["step"]) == row["step"]:
            row = {**self.rows.pop(), **row}
        self.rows.append(row)
        columns = list(dict.fromkeys(name for known in self.rows for name in known))
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self.path)


class Progress(Callback):
    """A bar over the epoch's batches on a terminal, and a line an epoch, both on stderr."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.bar: Any = None
        self.began = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        from tqdm import tqdm

        self.began = time.monotonic()
        total = trainer.num_training_batches
        self.bar = tqdm(
            total=int(total) if math.isfinite(total) else None,
            desc=f"epoch {trainer.current_epoch + 1}",
            file=sys.stderr,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bar.update(1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is None:  # resumed from a checkpoint at this epoch's end: the line was printed then
            return
        self.bar.close()
        shown = {
            name: float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if name == self.monitor or ("loss" in name and not name.endswith("_step"))
        }
        values = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        seconds = time.monotonic() - self.began
        print(
            f"epoch {trainer.current_epoch + 1:>3}  step {trainer.global_step:>6}  {values}  {seconds:.1f} s",
            file=sys.stderr,
        )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self.bar is not None:
            self.bar.close()
