"""From utterances of several speakers to a trained separation model, and its Conv-TasNet."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from mambakit.core.errors import UsageError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, seed_everything
from mambakit.domains.speech.enhance.data import Pools
from mambakit.domains.speech.mixtures import (
    SpeechPool,
    TwoSpeakerMixer,
    kept,
    made_anew,
    measuring_loader,
)
from mambakit.domains.speech.separate.baselines import ConvTasNet
from mambakit.domains.speech.separate.config import PairConfig, SeparateConfig
from mambakit.domains.speech.separate.metrics import si_snr_gain
from mambakit.domains.speech.separate.model import Separator
from mambakit.domains.speech.separate.task import SeparateTask

_SEED = 20_240_6
_MEASURED_AT_ONCE = 20


def with_unseen(pools: Pools, unseen: list[str]) -> Pools:
    """The test holds all utterances of two speakers, and the rest none of them; as it was without a name.

    Raises:
        UsageError: If there are no such speakers.
    """
    if not unseen:
        return pools
    everything = [one for pool in pools[1:] for one in pool.spoken]
    speakers = sorted({one.speaker for one in everything})
    if missing := sorted(set(unseen) - set(speakers)):
        raise UsageError(f"unseen: {missing[0]!r} is none of {', '.join(speakers)}")
    rate = pools.train.rate_hz
    train, validation = (
        SpeechPool([one for one in pool.spoken if one.speaker not in unseen], rate)
        for pool in (pools.train, pools.validation)
    )
    test = SpeechPool([one for one in pools.test.spoken if one.speaker in unseen], rate)
    return Pools(pools.name, train, validation, test)


def train_separator(
    pools: Pools,
    run: RunFolder,
    *,
    model_config: SeparateConfig,
    pair_config: PairConfig,
    train_config: TrainConfig,
) -> tuple[Separator, FitResult]:
    """Trains on mixtures of two speakers; the weights kept are the best on those of validation.

    Returns:
        The model in evaluation mode on the CPU, and how the training went.
    """
    seed_everything(train_config.seed)
    model = Separator(dataclasses.replace(model_config, trained_on=pools.name))
    result = _fit(model, pools, run, pair_config, train_config)
    return model.cpu().eval(), result


def train_baseline(
    pools: Pools,
    run: RunFolder,
    *,
    model_config: SeparateConfig,
    pair_config: PairConfig,
    train_config: TrainConfig,
) -> tuple[ConvTasNet, FitResult]:
    """A Conv-TasNet of the size that ``train_separator`` would make, trained in the same way."""
    seed_everything(train_config.seed)
    beside = Separator(model_config)
    net = ConvTasNet(model_config, sum(parameter.numel() for parameter in beside.parameters()))
    result = _fit(net, pools, run, pair_config, train_config)
    return net.cpu().eval(), result


def test_mixtures(pools: Pools, config: PairConfig, count: int) -> list[tuple[Tensor, Tensor]]:
    """Mixtures of test speakers and their sources, the same every time."""
    mixer = TwoSpeakerMixer(pools.test, max(config.segment_s, 3.0), config.level_db)
    return list(zip(*kept(mixer, count, _SEED + 1), strict=True))


@torch.no_grad()
def gains(model: nn.Module, mixtures: list[tuple[Tensor, Tensor]]) -> list[float]:
    """SI-SNRi in dB of each mixture."""
    device = next(model.parameters()).device
    found: list[float] = []
    for at in range(0, len(mixtures), _MEASURED_AT_ONCE):
        mixed, sources = (
            torch.stack(side) for side in zip(*mixtures[at : at + _MEASURED_AT_ONCE], strict=True)
        )
        found += si_snr_gain(model(mixed.to(device)).cpu(), sources, mixed).tolist()
    return found


def _fit(
    model: nn.Module, pools: Pools, run: RunFolder, pair_config: PairConfig, train_config: TrainConfig
) -> FitResult:
    config = pair_config
    training, choosing = (
        TwoSpeakerMixer(pool, config.segment_s, config.level_db) for pool in (pools.train, pools.validation)
    )
    return fit(
        SeparateTask(model, training, train_config),
        made_anew(config.steps_per_epoch, train_config.batch_size),
        measuring_loader(kept(choosing, config.validation_mixtures, _SEED), train_config.batch_size),
        train_config,
        run,
    )
