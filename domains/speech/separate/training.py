"""From utterances of several speakers to a trained separation model, and its Conv-TasNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mambakit.core.errors import DataError, UsageError
from mambakit.core.training import FitResult, RunFolder, TrainConfig, fit, seed_everything
from mambakit.domains.speech.audio import read_audio
from mambakit.domains.speech.enhance.data import Pools
from mambakit.domains.speech.layouts import Mixture
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

_SEED = 20_240_6
_MEASURED_AT_ONCE = 20


def with_unseen(pools: Pools, unseen: list[str]) -> Pools:
    """The test holds all utterances of two speakers, of whatever part, and the rest none of them; without a
    name all stays as it was.

    Raises:
        UsageError: If there are no such speakers.
    """
    if not unseen:
        return pools
    if pools.given:
        raise UsageError(f"unseen: {pools.name} holds mixtures of its own for the test; leave it out")
    everything = [one for pool in (pools.train, pools.validation, pools.test) for one in pool.spoken]
    speakers = sorted({one.speaker for one in everything})
    if missing := sorted(set(unseen) - set(speakers)):
        raise UsageError(f"unseen: {missing[0]!r} is none of {', '.join(speakers)}")
    rate = pools.train.rate_hz
    train, validation = (
        SpeechPool([one for one in pool.spoken if one.speaker not in unseen], rate)
        for pool in (pools.train, pools.validation)
    )
    test = SpeechPool([one for one in everything if one.speaker in unseen], rate)
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


def test_mixtures(pools: Pools, config: PairConfig, count: int) -> Sequence[tuple[Tensor, Tensor]]:
    """Mixtures of test speakers and their sources, the same every time; those that the data hold, if any."""
    if pools.given and pools.given.get("test"):
        return Given(pools.given["test"], pools.test.rate_hz, count)
    mixer = TwoSpeakerMixer(pools.test, max(config.segment_s, 3.0), config.level_db)
    return list(zip(*kept(mixer, count, _SEED + 1), strict=True))


@torch.no_grad()
def gains(model: nn.Module, mixtures: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """SI-SNRi in dB of each mixture, ``(n,)`` and its sources ``(n_sources, n)``."""
    device = next(model.parameters()).device
    found: list[float] = []
    waiting: list[tuple[Tensor, Tensor]] = []
    for i in range(len(mixtures)):
        waiting.append(mixtures[i])
        following = mixtures[i + 1] if i + 1 < len(mixtures) else None
        alike = following is not None and len(following[0]) == len(waiting[0][0])
        if not alike or len(waiting) == _MEASURED_AT_ONCE:
            mixed, sources = (torch.stack(side) for side in zip(*waiting, strict=True))
            found += si_snr_gain(model(mixed.to(device)).cpu(), sources, mixed).tolist()
            waiting = []
    return found


class Given(Dataset[tuple[Tensor, Tensor]], Sequence[tuple[Tensor, Tensor]]):
    """Mixtures that the data hold, read when they are asked for: ``(n,)`` and the sources ``(2, n)``.

    Args:
        mixtures: All of them.
        rate_hz: To read at.
        count: How many at most, evenly over the list.
    """

    def __init__(self, mixtures: Sequence[Mixture], rate_hz: int, count: int) -> None:
        n = min(count, len(mixtures))
        self.mixtures = [mixtures[i * len(mixtures) // n] for i in range(n)]
        self.rate_hz = rate_hz

    def __len__(self) -> int:
        return len(self.mixtures)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Raises a DataError if a file can't be read, or a source is not as long as the mixture."""
        one = self.mixtures[place]
        mixed = read_audio(one.path, rate_hz=self.rate_hz).samples
        sources = [read_audio(path, rate_hz=self.rate_hz).samples for path in one.sources]
        for path, source in zip(one.sources, sources, strict=True):
            if len(source) != len(mixed):
                raise DataError(f"{path}: has {len(source):,} samples, its mixture {len(mixed):,}")
        return mixed, torch.stack(sources)


def _fit(
    model: nn.Module, pools: Pools, run: RunFolder, pair_config: PairConfig, train_config: TrainConfig
) -> FitResult:
    from mambakit.domains.speech.separate.task import SeparateTask

    config, batch, rate = pair_config, train_config.batch_size, pools.train.rate_hz
    voices = pools.train.in_pieces(config.piece_s).at_speeds(config.speeds)
    training = TwoSpeakerMixer(voices, config.segment_s, config.level_db)
    if pools.given and pools.given.get("validation"):
        given = Given(pools.given["validation"], rate, config.validation_mixtures)
        choosing: DataLoader[Any] = DataLoader(given, 1)  # of any length
    else:
        made = TwoSpeakerMixer(pools.validation, config.segment_s, config.level_db)
        choosing = measuring_loader(kept(made, config.validation_mixtures, _SEED), batch)
    task = SeparateTask(model, training, train_config)
    return fit(task, made_anew(config.steps_per_epoch, batch), choosing, train_config, run)
