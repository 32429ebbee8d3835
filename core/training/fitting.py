"""One training run with Lightning: early stopping, the best checkpoint, and resume after a kill."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import logging
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader

from mambakit.core.adaptation.config import AdaptConfig
from mambakit.core.adaptation.of_training import begin_adapting
from mambakit.core.errors import UserError
from mambakit.core.training.config import TrainConfig, parse_duration
from mambakit.core.training.devices import choose_precision, resolve_device, seed_everything
from mambakit.core.training.result import FitResult
from mambakit.core.training.run_folder import RunFolder

if TYPE_CHECKING:  # Lightning takes seconds to import, and not everybody who imports ``fit`` calls it
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    from mambakit.core.trust.private import PrivateTraining

_AVERAGED = "averaged.ckpt"


def fit(
    task: pl.LightningModule,
    train_loader: DataLoader[Any],
    val_loader: DataLoader[Any] | Sequence[DataLoader[Any]],
    config: TrainConfig,
    run: RunFolder,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
) -> FitResult:
    """Trains ``task`` and loads the best checkpoint's weights back into it.

    With ``config.adapt`` its model begins as the base, few of its parameters learn, and it is plain again at
    the end. With ``config.continual`` it begins as the base, all of them learn, and earlier data are replayed
    or earlier weights held; a run that is to be gone on from leaves a folder ``memory``.

    A run that was killed continues from its folder's last checkpoint; one that had finished is not
    trained again: its best weights are loaded and its result is returned.

    Args:
        task: Logs ``monitor`` in its validation step. Call ``seed_everything`` before building it, for
            reproducible weights. Hyper-parameters that it saves must be plain
            numbers, strings, lists and dictionaries, because checkpoints are read with weights_only.
        train_loader: Batches to train on.
        val_loader: Batches to validate on; of several, the first gives ``monitor``.
        config: The training options.
        run: The run's folder; started with ``config`` if the caller has not started it with more.
        monitor: The logged metric that decides which weights are best.
        mode: Whether less or more of it is better.

    Raises:
        UserError: If the loss is no longer a number, the device is not there, there is nothing to train
            on, the folder holds another run, or there is no base to adapt or it does not fit.
        UsageError: If the model has no place for what is to be adapted.
    """
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    from mambakit.core.training.averaging import KeptCheckpoints
    from mambakit.core.training.callbacks import (
        AveragedWeights,
        EpochSeed,
        MetricsFile,
        Progress,
        StopOnNaN,
    )
    from mambakit.core.training.continuing import begin_continuing, remember

    if not run.started:
        run.start(config, seed=config.seed)
    _refuse_empty(train_loader, val_loader)
    if config.adapt.kind != "none":
        learning, make_plain = begin_adapting(task, config.adapt)
        print(f"adapting {config.adapt.base}: {learning}", file=sys.stderr)
        whole = dataclasses.replace(config, adapt=AdaptConfig())
        result = fit(task, train_loader, val_loader, whole, run, monitor, mode)
        make_plain()
        return result
    if run.result is not None:
        return _take_up_finished(task, run)
    private: PrivateTraining | None = None
    if config.private.noise_multiplier:
        from mambakit.core.trust.private import PrivateTraining

        private = PrivateTraining(task, train_loader, config.private)
        train_loader = private.loader
    further = []
    if config.continual.kind != "none":
        further = begin_continuing(task, config.continual, config.seed)
        print(f"going on from {config.continual.base}: {config.continual.kind}", file=sys.stderr)
    seed_everything(config.seed)
    device = resolve_device(config.device)
    best = ModelCheckpoint(
        dirpath=run.checkpoints, filename="best", monitor=monitor, mode=mode, save_last=True,
        enable_version_counter=False, save_on_train_epoch_end=False,
    )  # fmt: skip
    stopping = EarlyStopping(
        monitor,
        mode=mode,
        patience=config.patience or 2**31,
        check_finite=False,
        check_on_train_epoch_end=False,
    )
    kept = [KeptCheckpoints(config, run, monitor, mode)] if config.average > 1 else []
    averaging = [AveragedWeights(config.ema_decay, device)] if config.ema_decay else []
    resume_from = run.last_checkpoint
    with _quiet():
        trainer = pl.Trainer(
            accelerator=device.type,
            devices=1 if device.index is None else [device.index],
            precision=choose_precision(config.precision, device),  # type: ignore[arg-type]
            max_epochs=config.max_epochs,
            max_steps=config.max_steps,
            max_time=datetime.timedelta(seconds=parse_duration(config.max_time)) if config.max_time else None,
            gradient_clip_val=config.gradient_clip or None,
            callbacks=[
                *further,
                *averaging,
                EpochSeed(config.seed),
                StopOnNaN(monitor),
                MetricsFile(run.metrics_path),
                Progress(monitor),
                stopping,
                *kept,
                best,
            ],
            val_check_interval=config.validate_every,
            check_val_every_n_epoch=None if config.validate_every else 1,
            num_sanity_val_steps=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=run.path,
        )
        if resume_from is not None:
            print(f"continuing from {resume_from}", file=sys.stderr)
        began = time.monotonic()
        with _interruptible(), private or contextlib.nullcontext():
            trainer.fit(task, train_loader, val_loader, ckpt_path=resume_from, weights_only=True)
        seconds = time.monotonic() - began
        score, checkpoint = _keep_best(task, trainer, best, val_loader, monitor, run)
        if kept and len(kept[0].paths) > 1:
            of_average = _try_average(task, trainer, kept[0].paths, val_loader, monitor, run)
            better = of_average < score if mode == "min" else of_average > score
            said = "kept" if better else "not better, and not kept"
            print(
                f"average of {len(kept[0].paths)} checkpoints: {monitor} {of_average:.4g}, "
                f"of the best alone {score:.4g}: {said}",
                file=sys.stderr,
            )
            if better:
                score, checkpoint = of_average, f"checkpoints/{_AVERAGED}"
            else:
                load_weights(task, run.path / checkpoint)
    if config.continual.keep:
        remember(
            task,
            train_loader,
            config.continual,
            run.path,
            batch_size=config.batch_size,
            device=device,
            seed=config.seed,
        )
    task.eval()
    to_best = _way_to_best(run.metrics_path, monitor, mode) or (trainer.global_step, seconds)
    result = FitResult(
        best_score=score,
        best_checkpoint=checkpoint,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=seconds,
        stopped=_why_stopped(trainer, stopping, config),
        steps_to_best=to_best[0],
        seconds_to_best=to_best[1],
        monitor=monitor,
        privacy=private.spent(trainer.global_step) if private is not None else None,
    )
    run.finish(asdict(result))
    for path in kept[0].paths if kept else ():
        path.unlink(missing_ok=True)  # only now, as a run that is killed before averages them again
    return result


def load_weights(task: pl.LightningModule, checkpoint: Path, adapt: AdaptConfig | None = None) -> None:
    """Loads a checkpoint's weights (the averaged ones, if it has them) without unpickling anything else.

    Args:
        task: As it was before training.
        checkpoint: Of a run.
        adapt: What the run adapted, if anything; the task's model is plain in the end.
    """
    if adapt is not None and adapt.kind != "none":
        _, make_plain = begin_adapting(task, adapt)
        load_weights(task, checkpoint)
        make_plain()
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    task.load_state_dict(state)


def _keep_best(
    task: pl.LightningModule,
    trainer: pl.Trainer,
    best: ModelCheckpoint,
    val_loader: DataLoader[Any] | Sequence[DataLoader[Any]],
    monitor: str,
    run: RunFolder,
) -> tuple[float, str]:
    if best.best_model_path and best.best_model_score is not None:
        path = Path(best.best_model_path)
        load_weights(task, path)
        return float(best.best_model_score), f"checkpoints/{path.name}"
    # Stopped before the first validation (max_time): keep the weights as they are, and say what they score.
    metrics = trainer.validate(task, val_loader, verbose=False)[0]
    trainer.save_checkpoint(run.checkpoints / "best.ckpt")
    return float(metrics[monitor]), "checkpoints/best.ckpt"


def _try_average(
    task: pl.LightningModule,
    trainer: pl.Trainer,
    checkpoints: Sequence[Path],
    val_loader: DataLoader[Any] | Sequence[DataLoader[Any]],
    monitor: str,
    run: RunFolder,
) -> float:
    """Load the average of checkpoints, and what it scores."""
    from mambakit.core.training.averaging import averaged_weights

    weights = averaged_weights(checkpoints)
    torch.save({"state_dict": weights}, run.checkpoints / _AVERAGED)
    task.load_state_dict(weights)
    return float(trainer.validate(task, val_loader, verbose=False)[0][monitor])


def _way_to_best(metrics_csv: Path, monitor: str, mode: Literal["min", "max"]) -> tuple[int, float] | None:
    """Steps and training seconds until the first best validation, if there was any."""
    with metrics_csv.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get(monitor)]
    if not rows:
        return None
    choose = min if mode == "min" else max
    best = choose(rows, key=lambda row: float(row[monitor]))
    return int(best["step"]), float(best["training_seconds"] or best["seconds"])


def _take_up_finished(task: pl.LightningModule, run: RunFolder) -> FitResult:
    result = FitResult(**(run.result or {}))
    if not (run.path / result.best_checkpoint).exists():
        raise UserError(f"{run.path} holds a finished run without {result.best_checkpoint}; overwrite it")
    print(f"{run.path} holds this run, finished: its best weights are loaded", file=sys.stderr)
    load_weights(task, run.path / result.best_checkpoint)
    task.eval()
    return result


def _why_stopped(
    trainer: pl.Trainer, stopping: EarlyStopping, config: TrainConfig
) -> Literal["epochs", "steps", "patience", "time"]:
    if trainer.global_step == config.max_steps:
        return "steps"
    if stopping.stopped_epoch or (config.patience and stopping.wait_count >= config.patience):
        return "patience"
    return "epochs" if trainer.current_epoch >= config.max_epochs else "time"


def _refuse_empty(
    train_loader: DataLoader[Any], val_loader: DataLoader[Any] | Sequence[DataLoader[Any]]
) -> None:
    several = val_loader if isinstance(val_loader, Sequence) else [val_loader]
    for name, loader in (("training", train_loader), *(("validation", one) for one in several)):
        with contextlib.suppress(TypeError):  # an iterable data set has no length
            if len(loader) == 0:
                raise UserError(
                    f"there is not one batch in the {name} split; use more data or a smaller batch"
                )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning exits the process on Ctrl-C and ignores the next ones; a library must not."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Lightning's advice and advertisements off a user's terminal; its errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*The number of training batches.*",
                ".*Checkpoint directory.*exists and is not empty.*",
                ".*GPU available but not used.*",
                ".*LeafSpec.*",
                ".*trainer.fit.*ckpt_path.*",
                ".*resuming from a checkpoint that ended before the epoch ended.*",
                ".*You're resuming from a checkpoint.*",
                ".*The dirpath has changed.*",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
