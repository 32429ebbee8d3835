"""From speech and noise to a trained enhancement model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, seed_everything
from mambakit.domains.speech.enhance.config import EnhanceConfig, EnhanceLoss, MixConfig
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.mixtures import NoisyMixer, SpeechPool, kept, made_anew, measuring_loader
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
    from mambakit.domains.speech.enhance.task import EnhanceTask

    seed_everything(train_config.seed)
    model = Enhancer(dataclasses.replace(model_config, trained_on=name))
    batch = train_config.batch_size
    choosing = NoisyMixer(held, noises, dataclasses.replace(mix_config, gain_db=0.0))
    pairs = kept(choosing, mix_config.validation_mixtures, _VALIDATION_SEED)
    result = fit(
        EnhanceTask(model, NoisyMixer(speech, noises, mix_config), train_config, loss_config),
        made_anew(mix_config.steps_per_epoch, batch),
        measuring_loader(pairs, batch),
        train_config,
        run,
    )
    return model.cpu().eval(), result


def test_mixtures(
    speech: SpeechPool, noises: Sequence[Signal], mix_config: MixConfig, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noisy and clean speech that are the same every time, at the speech's rate."""
    config = dataclasses.replace(mix_config, gain_db=0.0, segment_s=max(mix_config.segment_s, 3.0))
    mixed = kept(NoisyMixer(speech, noises, config), count, _VALIDATION_SEED + 1)
    return [(noisy.numpy(), clean.numpy()) for noisy, clean in zip(*mixed, strict=True)]
