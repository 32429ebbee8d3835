"""From speech and noise to a trained enhancement model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch.utils.data import DataLoader

from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, seed_everything
from mambakit.domains.speech.enhance.config import EnhanceConfig, EnhanceLoss, MixConfig
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.enhance.task import EnhanceTask
from mambakit.domains.speech.mixtures import Mixed, NoisyMixer, SpeechPool
from mambakit.domains.speech.noises import Signal

_VALIDATION_SEED = 20_240_5


def train_enhancer(
    speech: SpeechPool,
    held: SpeechPool,
    noises: Sequence[Signal],
    run: RunFolder,
    *,
    model_config: EnhanceConfig,
    mix_config: MixConfig,
    loss_config: EnhanceLoss,
    train_config: TrainConfig,
    name: str = "",
) -> tuple[Enhancer, FitResult]:
    """Trains on mixtures of ``speech`` with noise; the weights kept are the best on mixtures of ``held``.

    Args:
        speech: Clean speech to learn from.
        held: Clean speech that chooses.
        noises: Recordings of noise at the model's rate; noise made by chance comes beside them.
        run: Where the run is kept; one that was killed goes on.
        model_config, mix_config, loss_config, train_config: What to train and how.
        name: Of the speech.

    Returns:
        The model in evaluation mode on the CPU, and how the training went.
    """
    seed_everything(train_config.seed)
    model = Enhancer(dataclasses.replace(model_config, trained_on=name))
    batch = train_config.batch_size
    training = Mixed(NoisyMixer(speech, noises, mix_config), mix_config.steps_per_epoch * batch)
    validation = Mixed(
        NoisyMixer(held, noises, dataclasses.replace(mix_config, gain_db=0.0)),
        mix_config.validation_mixtures,
        seed=_VALIDATION_SEED,
    )
    result = fit(
        EnhanceTask(model, train_config, loss_config),
        DataLoader(training, batch, num_workers=train_config.num_workers or 0),
        DataLoader(list(validation), batch),  # type: ignore[arg-type]
        train_config,
        run,
    )
    return model.cpu().eval(), result


def test_mixtures(
    speech: SpeechPool, noises: Sequence[Signal], mix_config: MixConfig, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noisy and clean speech that are the same every time, at the speech's rate."""
    config = dataclasses.replace(mix_config, gain_db=0.0, segment_s=max(mix_config.segment_s, 3.0))
    mixed = Mixed(NoisyMixer(speech, noises, config), count, seed=_VALIDATION_SEED + 1)
    return [(noisy.numpy(), clean.numpy()) for noisy, clean in mixed]
