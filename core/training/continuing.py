"""Training further within a run: the base before it, what is mixed in and held in it, the memory after."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mambakit.core.adaptation.of_training import load_base
from mambakit.core.continual.config import ContinualConfig
from mambakit.core.continual.fisher import (
    Tensors,
    add_elastic_gradient,
    elastic_penalty,
    fisher_information,
    load_fisher,
    save_fisher,
    summed,
)
from mambakit.core.continual.memory import Memory
from mambakit.core.errors import DataError, UsageError
from mambakit.core.folders import replaced
from mambakit.core.hub import HubModel
from mambakit.core.training.graphs import GraphedLoss

FOLDER = "memory"
_BATCHES, _FISHER = "batches.pt", "fisher.safetensors"


def begin_continuing(task: pl.LightningModule, config: ContinualConfig, seed: int) -> list[Callback]:
    """Give the model of a task the weights of its base; what then works on its training.

    Args:
        task: Holds one model that is saved as a folder. To replay, it says what a batch is apart from its
            data: ``remembered(batch)`` gives one that ``training_step`` takes in any later run.
        config: With a kind other than none.
        seed: Of the draws from the memory.

    Raises:
        UsageError: If the task has no model, or can't replay.
        DataError: If there is no base, it doesn't fit, or it kept nothing.
    """
    assert config.base is not None
    model = load_base(task, config.base, "continual.base")
    memory, callbacks = Path(config.base) / FOLDER, list[Callback]()
    try:
        if config.holds:
            fisher = load_fisher(memory / _FISHER, model)
            callbacks.append(ElasticWeights(model, fisher, config.strength))
        if config.replays:
            _check_remembers(task)
            package = type(task).__module__.partition(".")[0]
            callbacks.append(Replay(Memory.load(memory / _BATCHES, seed=seed, package=package), config.share))
    except DataError as error:
        raise DataError(
            f"continual.base: {error}; train the base with --train.continual.keep 32 or more"
        ) from error
    return callbacks


class Replay(Callback):
    """Mixes an earlier batch into every step: loss = (1 - share) * new + share * earlier.

    Experience replay (Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning",
    arXiv:1902.10486), with the mean over each batch apart, as their shapes differ.

    Args:
        memory: With a batch at least.
        share: Of the earlier batch.
    """

    def __init__(self, memory: Memory, share: float) -> None:
        if not len(memory):
            raise DataError("the memory is empty")
        self.memory, self.share = memory, share

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = type(pl_module).training_step.__get__(pl_module)

        def mixed(batch: Any, batch_idx: int) -> Tensor:
            earlier = self.memory.at_step(trainer.global_step)
            earlier = pl_module.transfer_batch_to_device(earlier, pl_module.device, 0)
            return (1 - self.share) * own(batch, batch_idx) + self.share * own(earlier, batch_idx)

        pl_module.training_step = mixed  # type: ignore[method-assign]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.__dict__.pop("training_step", None)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)


class ElasticWeights(Callback):
    """Holds weights where they are now, by their importance; see ``core.continual.fisher``.

    The penalty's gradient is added after those of the loss are unscaled and before they are clipped.

    Args:
        model: With the earlier weights.
        fisher: Their importance, by name.
        strength: The lambda of the penalty.
    """

    def __init__(self, model: nn.Module, fisher: Tensors, strength: float) -> None:
        self.model, self.fisher, self.strength = model, fisher, strength
        self.anchor = {name: one.detach().clone() for name, one in model.named_parameters()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for tensors in (self.fisher, self.anchor):
            tensors.update({name: one.to(pl_module.device) for name, one in tensors.items()})

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        add_elastic_gradient(self.model, self.fisher, self.anchor, self.strength)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            value = elastic_penalty(self.model, self.fisher, self.anchor, self.strength)
        pl_module.log("train/elastic", value)


def remember(
    task: pl.LightningModule,
    loader: DataLoader[Any],
    config: ContinualConfig,
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
) -> None:
    """Write what later runs need of this one: batches, and how much each weight matters.

    With a base, both go on from what is there. A task whose batches mean nothing outside of its data leaves
    the weights' importance alone, and says so.

    Args:
        task: Trained, with its best weights.
        loader: The batches it was trained on; they are gone through once.
        config: With ``keep`` above zero.
        folder: The run's.
        batch_size: Samples in a batch.
        device: Where it was trained.
        seed: Of the draws.

    Raises:
        UsageError: If the task has no model.
        DataError: If the base's files are damaged.
    """
    model = _model_of(task)
    memory, earlier_fisher = Memory(config.keep, seed), None
    package = type(task).__module__.partition(".")[0]
    if config.base is not None:
        before = Path(config.base) / FOLDER
        if (before / _BATCHES).exists():
            memory.go_on(Memory.load(before / _BATCHES, package=package))
        if (before / _FISHER).exists():
            earlier_fisher = load_fisher(before / _FISHER, model)
    for held in vars(task).values():  # the weights have moved since its graphs were recorded
        for one in held if isinstance(held, list) else [held]:
            if isinstance(one, GraphedLoss):
                one.forget()
    task.to(device).eval()
    with _unlogged(task):
        task.on_fit_start()
        task.on_train_epoch_start()
        fisher = fisher_information(model, _losses(task, loader, config, memory, batch_size))
    task.cpu()
    fisher = {name: one.cpu() for name, one in fisher.items()}
    with replaced(folder / FOLDER, {}) as staging:
        save_fisher(summed(earlier_fisher, fisher, config.decay), staging / _FISHER)
        if len(memory):
            memory.save(staging / _BATCHES)
    if not len(memory):
        print(
            f"note: {type(task).__name__}'s batches mean nothing without its data, so none are kept to "
            "replay; later runs can hold weights (--train.continual.kind ewc)",
            file=sys.stderr,
        )


def _losses(
    task: pl.LightningModule,
    loader: DataLoader[Any],
    config: ContinualConfig,
    memory: Memory,
    batch_size: int,
) -> Iterator[tuple[Callable[[], Tensor], int]]:
    """The losses of the first batches; on the way all go past the memory."""
    remembers = _remembers(task)
    for number, batch in enumerate(itertools.islice(loader, _length(loader))):
        moved = task.transfer_batch_to_device(batch, task.device, 0)
        if remembers:
            moved = task.remembered(moved)  # type: ignore[operator]
            memory.offer(task.transfer_batch_to_device(moved, torch.device("cpu"), 0))
        if number < config.fisher_batches:
            yield partial(task.training_step, moved, number), batch_size  # type: ignore[misc]


def _length(loader: DataLoader[Any]) -> int | None:
    """Batches in an epoch; a stream without end has none, and gives so many as importance needs."""
    try:
        return len(loader)
    except TypeError:
        return 1000


def _remembers(task: pl.LightningModule) -> bool:
    return callable(getattr(task, "remembered", None))


def _check_remembers(task: pl.LightningModule) -> None:
    if not _remembers(task):
        raise UsageError(
            f"continual.kind: {type(task).__name__}'s batches mean nothing without its data, so they can't "
            "be replayed; choose ewc or finetune"
        )


def _model_of(task: nn.Module) -> nn.Module:
    model = next((module for module in task.modules() if isinstance(module, HubModel)), None)
    if model is None:
        raise UsageError(
            f"continual.keep: {type(task).__name__} trains no model that could be trained further"
        )
    assert isinstance(model, nn.Module)
    return model


@contextlib.contextmanager
def _unlogged(task: pl.LightningModule) -> Iterator[None]:
    """A task whose steps are called outside of a fit, where there is nothing to log to."""
    task.log = task.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del task.log, task.log_dict
