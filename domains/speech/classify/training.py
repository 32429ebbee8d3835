"""From labelled recordings and a split to a trained classifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, seed_everything
from mambakit.domains.speech.augment import AugmentConfig, Augmenter
from mambakit.domains.speech.classify.config import ClassifyConfig, ClassifyLossConfig, ClassifyModelConfig
from mambakit.domains.speech.classify.data import (
    Clips,
    classes_of,
    measuring_loader,
    places_in,
    read_clips,
    training_loader,
)
from mambakit.domains.speech.classify.model import Classifier
from mambakit.domains.speech.utterances import Split, Utterances


@dataclass(frozen=True)
class ClipParts:
    """The recordings of a split, read."""

    classes: list[str]
    train: Clips
    validation: Clips
    test: Clips
    left_out: list[tuple[str, str]]
    """Files that can't be used, and why."""


def read_parts(utterances: Utterances, split: Split, model: ClassifyModelConfig) -> ClipParts:
    """Reads all recordings at the model's rate; bad ones are left out and listed.

    Raises:
        DataError: If a part to train on or to choose by has none left, or labels don't serve.
    """
    classes = classes_of(utterances, split)
    least = model.front_end.hop * model.encoder.subsampling
    clips, kept, bad = read_clips(utterances, classes, model.front_end.rate_hz, least)
    train, validation, test = (
        clips.take(places_in(kept, part)) for part in (split.train, split.validation, split.test)
    )
    if not len(train) or not len(validation):
        raise DataError(f"{utterances.name}: no recording of training or validation can be read: {bad[0][1]}")
    return ClipParts(classes, train, validation, test, [*utterances.left_out, *bad])


def train_classifier(
    parts: ClipParts,
    run: RunFolder,
    *,
    name: str,
    model_config: ClassifyModelConfig,
    loss_config: ClassifyLossConfig,
    augment_config: AugmentConfig,
    train_config: TrainConfig,
    noises: list[Tensor] | None = None,
) -> tuple[Classifier, FitResult]:
    """Trains; the weights of the least validation loss are kept.

    Args:
        parts: The recordings.
        run: Where the run is kept; one that was killed goes on.
        name: Of the data.
        model_config, loss_config, augment_config, train_config: What to train and how.
        noises: Recordings of noise at the model's rate to mix in, beside coloured noise.

    Returns:
        The model in evaluation mode on the CPU, and how training went.
    """
    from mambakit.domains.speech.classify.task import ClassifyTask

    seed_everything(train_config.seed)
    model = Classifier(ClassifyConfig(parts.classes, name, model_config))
    model.front_end.fit(parts.train.samples)
    loader = training_loader(parts.train, train_config.batch_size)
    augmenter = Augmenter(augment_config, model_config.front_end.rate_hz, noises or [])
    task = ClassifyTask(model, train_config, loss_config, augmenter)
    result = fit(task, loader, measuring_loader(parts.validation), train_config, run)
    return model.cpu().eval(), result


def noise_of(data: str) -> str | None:
    """The card of noise that a recorded card is trained with; data of the user's own, with coloured noise."""
    return "noise" if data.lower() == "fsdd" else None
