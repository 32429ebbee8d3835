"""One run of benchmarks/known_tasks.py: tasks and networks, training with validation, the test at the end."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mambakit.core.backbone import BackboneConfig
from mambakit.core.known_tasks import (
    NOTHING,
    AssociativeRecall,
    Drawn,
    Induction,
    KnownTask,
    ModularArithmetic,
    Needle,
    Parity,
    PermutedPixels,
    SelectiveCopying,
    share_right,
)
from mambakit.core.language_model import LanguageModel, LanguageModelConfig
from mambakit.core.training import GraphedLoss, RunFolder, TrainConfig, fit, seed_everything
from mambakit.core.training.optim import configure_optimizer

Job = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A task as it is trained and tested."""

    stages: tuple[tuple[KnownTask, int], ...]
    """What is trained on, and at which length: in turn over the first three quarters of the steps, each as
    long. The last is the task that is validated and tested."""
    test_lengths: tuple[int, ...]
    """The first is that of the last stage."""
    steps: int
    """Optimizer steps."""

    @property
    def task(self) -> KnownTask:
        """The task itself."""
        return self.stages[-1][0]

    @property
    def trained_length(self) -> int:
        """Of the last stage."""
        return self.stages[-1][1]

    @property
    def measured(self) -> KnownTask:
        """The task as it is validated and tested: a count that is asked for all along, at the end alone."""
        if hasattr(self.task, "every"):
            return dataclasses.replace(self.task, every=False)  # type: ignore[type-var]
        return self.task


def _of(task: KnownTask, *lengths: int) -> tuple[tuple[KnownTask, int], ...]:
    return tuple((task, length) for length in lengths)


PLANS = {
    "selective-copying": Plan(
        tuple((SelectiveCopying(n_copied=n), 16 * n) for n in (1, 2, 4, 8)), (128, 512), 10000
    ),
    "induction": Plan(
        _of(Induction(), 32, 64, 128, 256), (256, *(1 << bits for bits in range(10, 21, 2))), 3000
    ),
    "recall": Plan(tuple((AssociativeRecall(n), 8 * n) for n in (2, 4, 8, 16)), (128, 256), 10000),
    "parity": Plan(_of(Parity(), 8, 16, 32, 64), (64, 256, 1024), 2000),
    "arithmetic": Plan(_of(ModularArithmetic(), 8, 16, 32, 64), (64, 256, 1024), 8000),
    "pixels": Plan(_of(PermutedPixels(jitter=1), 256), (256,), 3000),
    "needle": Plan(tuple((Needle(n_needles=n), 64 * n) for n in (1, 2, 4)), (256, 4096, 16384, 65536), 3000),
}

# Two layers that mix tokens, 64 channels wide, and about 65,000 parameters beside embedding and logits.
NETWORKS: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {
    "mamba1": (["mamba1"] * 2, {"mamba1": {"d_state": 16}}),
    "mamba2": (["mamba2"] * 2, {"mamba2": {"d_state": 48, "head_dim": 16}}),
    "mamba3": (["mamba3"] * 2, {"mamba3": {"d_state": 32, "head_dim": 16, "rope_fraction": 1.0}}),
    "hybrid": (
        ["mamba2", "attention", "mlp"],
        {
            "mamba2": {"d_state": 48, "head_dim": 16},
            "attention": {"n_heads": 4},
            "mlp": {"d_hidden": 85},
        },
    ),
    "attention": (["attention", "mlp"] * 2, {"attention": {"n_heads": 4}, "mlp": {"d_hidden": 85}}),
    "lstm": (["lstm"] * 2, {"lstm": {"d_hidden": 58}}),  # torch.nn.LSTM and a projection
}
_WIDTH = 64
# A cache of keys and values grows with the stream: these read it at once, and not beyond so many tokens.
_CACHING = ("hybrid", "attention")
_LONGEST_CACHE = 16384
_TOKENS_AT_ONCE = 1 << 18  # of a test


def build(network: str, task: KnownTask) -> LanguageModel:
    """A network for a task's vocabulary."""
    layers, options = NETWORKS[network]
    backbone = BackboneConfig(d_model=_WIDTH, layers=layers, block_options=options)
    return LanguageModel(LanguageModelConfig(task.n_ids, backbone, tie_embeddings=False))


class AnswerLoss(nn.Module):
    """Mean nats of an answer."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Of rows ``(n, length)``, a scalar."""
        return nats(self.model(ids)[0], targets)


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats of an answer, of logits ``(n, length, n_ids)``."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOTHING)


class Answers(pl.LightningModule):
    """Trains a model on what is drawn."""

    def __init__(self, model: LanguageModel, config: TrainConfig, graphed: bool) -> None:
        super().__init__()
        self.loss = AnswerLoss(model)
        # cuDNN's LSTM is a few launches anyway
        self._loss = GraphedLoss(self.loss) if graphed else self.loss.forward
        self.config = config

    def training_step(self, batch: Drawn, batch_idx: int) -> Tensor:
        return self._loss(batch.ids, batch.targets)

    def validation_step(self, batch: Drawn, batch_idx: int) -> None:
        logits, _ = self.loss.model(batch.ids)
        right = (logits.argmax(-1) == batch.targets).sum() / (batch.targets != NOTHING).sum()
        found = {"val/loss": nats(logits, batch.targets), "val/accuracy": right}
        self.log_dict(found, batch_size=len(batch.ids))

    def configure_optimizers(self) -> Any:
        return configure_optimizer(self, self.config, int(self.trainer.estimated_stepping_batches))


class Training(Dataset[Drawn]):
    """New rows for every step, of the plan's stages in turn."""

    def __init__(self, plan: Plan, steps: int, rows: int, seed: int) -> None:
        self.plan, self.steps, self.rows, self.seed = plan, steps, rows, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Drawn:
        n_stages = len(self.plan.stages)
        turn = min(n_stages - 1, n_stages * 4 * step // (3 * self.steps))
        task, length = self.plan.stages[turn]
        # of no validation or test, whose seeds are small; torch's generator reads the lower 32 bits alone
        generator = torch.Generator().manual_seed((1 << 31) + (self.seed << 20) + step)
        return task.draw(self.rows, length, generator)


class Validation(Dataset[Drawn]):
    """The same rows every time, in batches."""

    def __init__(self, plan: Plan, rows: int, seed: int) -> None:
        drawn = plan.measured.draw(rows, plan.trained_length, torch.Generator().manual_seed(seed))
        self.batches = [Drawn(*pair) for pair in zip(*(one.split(128) for one in drawn), strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Drawn:
        return self.batches[i]


def run_job(job: Job) -> Job:
    """Trains at each of the job's learning rates, and tests what validates best.

    Args:
        job: ``task``, ``network``, ``seed``, ``lrs``, ``steps`` (None for the plan's), ``rows`` (of a step)
            and ``longest`` (tokens of a test at most, None for all).

    Returns:
        The job with ``lr``, ``validation`` (accuracy), ``curve`` (steps and accuracies), ``test`` (accuracy
        by length), ``parameters``, ``seconds``, ``machine`` and ``date``.
    """
    from rows import machine

    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    plan = PLANS[job["task"]]
    tried = [_train(job, plan, lr, device) for lr in job["lrs"]]
    best = max(tried, key=lambda one: (one["validation"], -one["loss"]))
    model = best.pop("model").to(device)
    return {
        **job,
        **best,
        "tried": {str(one["lr"]): [one["validation"], one["loss"]] for one in tried},
        "test": _test(job, plan, model, device),
        "parameters": sum(one.numel() for one in model.backbone.parameters()),
        "seconds": round(time.monotonic() - began, 1),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }


def _train(job: Job, plan: Plan, lr: float, device: str) -> Job:
    steps = job["steps"] or plan.steps
    config = TrainConfig(
        max_epochs=1, batch_size=job["rows"], lr=lr, patience=0, validate_every=max(1, steps // 20),
        seed=job["seed"], device=device, precision="32-true",
    )  # fmt: skip
    seed_everything(job["seed"])
    task = Answers(build(job["network"], plan.task), config, graphed=job["network"] != "lstm")
    train = Training(plan, steps, job["rows"], seed=job["seed"])
    validation = Validation(plan, 512, seed=2 * job["seed"])
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        fit(task, DataLoader(train, batch_size=None), DataLoader(validation, batch_size=None), config, run)
        with run.metrics_path.open(newline="", encoding="utf-8") as file:
            rows = [one for one in csv.DictReader(file) if one["val/loss"]]
    losses = [float(one["val/loss"]) for one in rows]
    curve = [[int(one["step"]), round(float(one["val/accuracy"]), 4)] for one in rows]
    kept = losses.index(min(losses))
    chosen = {"validation": curve[kept][1], "loss": losses[kept]}
    return {"lr": lr, "curve": curve, **chosen, "model": task.loss.model}


def _test(job: Job, plan: Plan, model: LanguageModel, device: str) -> dict[str, float]:
    """Accuracy by length, of 1,024 rows, of long ones fewer: 2^20 tokens, but 64 rows at least."""
    model.eval()
    found: dict[str, float] = {}
    for length in plan.test_lengths:
        caching = job["network"] in _CACHING
        if (caching and length > _LONGEST_CACHE) or length > (job["longest"] or length):
            continue
        rows = min(1024, max(64, (1 << 20) // length))
        generator = torch.Generator(device).manual_seed(2 * job["seed"] + 1)
        drawn = plan.measured.draw(rows, length, generator)
        if caching:
            some = zip(*(one.split(max(1, _TOKENS_AT_ONCE // length)) for one in drawn), strict=True)
            # every row asks as often
            right = sum(len(ids) * share_right(model, Drawn(ids, targets)) for ids, targets in some)
            found[str(length)] = round(right / rows, 4)
        else:
            found[str(length)] = round(share_right(model, drawn, piece=_TOKENS_AT_ONCE // rows), 4)
    return found
