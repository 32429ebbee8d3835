"""One run of training as the tasks of speech that split recordings make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mambakit.core.hub import HubModel
from mambakit.core.training import RunFolder, TrainConfig
from mambakit.domains.speech.augment import AugmentConfig
from mambakit.domains.speech.saved import DataSpec, save_spec

if TYPE_CHECKING:
    from mambakit.core.training import FitResult

Model = TypeVar("Model", bound=HubModel)


def trained(
    learn: Callable[..., tuple[Model, FitResult]],
    shape: object,
    folder: Path,
    *,
    settings: Mapping[str, object],
    loss: object,
    augment: AugmentConfig,
    train: TrainConfig,
    spec: DataSpec,
    overwrite: bool,
) -> tuple[Model, FitResult, RunFolder]:
    """Trains a network and saves it in its run's folder, with the data that it is of.

    Args:
        learn: Trains in the run that it is called with, with ``model_config`` and the others.
        shape: Of the network.
        folder: The run's.
        settings: What else shaped the run.
        loss, augment, train: As the command line's.
        spec: The data and their split.
        overwrite: Remove another run there first.
    """
    run = RunFolder(folder, overwrite=overwrite)
    options = {"model": shape, "loss": loss, "augment": augment, "train": train}
    run.start({**settings, **options}, seed=train.seed)
    made, result = learn(run, **{f"{name}_config": value for name, value in options.items()})
    run.save(made)
    save_spec(run.path, spec)
    return made, result, run
