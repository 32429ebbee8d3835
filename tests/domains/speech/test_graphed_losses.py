"""The losses of training as CUDA graphs: recorded, and the same as without."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from mambakit.core.training import GraphedLoss, seed_everything
from mambakit.domains.speech.classify.config import (
    ClassifyConfig,
    ClassifyLossConfig,
    ClassifyModelConfig,
    Network,
)
from mambakit.domains.speech.classify.model import Classifier
from mambakit.domains.speech.classify.task import ClassifyLoss
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.enhance.config import EnhanceConfig, EnhanceLoss
from mambakit.domains.speech.enhance.model import Enhancer
from mambakit.domains.speech.enhance.task import SpectralLoss
from mambakit.domains.speech.separate.baselines import ConvTasNet
from mambakit.domains.speech.separate.config import SeparateConfig
from mambakit.domains.speech.separate.model import Separator
from mambakit.domains.speech.separate.task import SeparateLoss

N = 4000
BLOCK = {"head_dim": 16, "d_state": 16}
Case = tuple[nn.Module, tuple[torch.Tensor, ...]]


def classifying(network: Network) -> Case:
    encoder = EncoderConfig(d_model=32, channels=8, n_layers=1, d_state=16, head_dim=16, dropout=0.0)
    shape = ClassifyModelConfig(encoder=encoder, network=network, head_dropout=0.0)
    still = ClassifyLossConfig(n_bands=0, n_times=0, tilt_db=0.0)
    inputs = (torch.randn(4, N), torch.tensor([N, 3000, 2500, 800]), torch.tensor([0, 1, 2, 0]))
    return ClassifyLoss(Classifier(ClassifyConfig(["a", "b", "c"], model=shape)), still), inputs


def enhancing(causal: bool) -> Case:
    config = EnhanceConfig(
        d_model=16, n_layers=1, block_options={"head_dim": 16, "d_state": 16}, causal=causal
    )
    return SpectralLoss(Enhancer(config), EnhanceLoss()), (torch.randn(2, N), torch.randn(2, N))


def separating(network: str) -> Case:
    config = SeparateConfig(
        n_filters=32, d_model=16, n_layers=1, block_options={"head_dim": 16, "d_state": 16}
    )
    if network == "conv":
        model: nn.Module = ConvTasNet(config, 20_000)
    else:
        model = Separator(dataclasses.replace(config, domain=network))
    return SeparateLoss(model), (torch.randn(2, N), torch.randn(2, 2, N))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (classifying, "mamba"),
        (classifying, "cnn"),
        (enhancing, True),
        (enhancing, False),
        (separating, "conv"),
        (separating, "time"),
        (separating, "time-frequency"),
    ],
)
def test_a_recorded_loss_and_its_gradients_are_those_of_the_loss(make, argument) -> None:  # type: ignore[no-untyped-def]
    seed_everything(0)
    loss, inputs = make(argument)
    loss = loss.cuda().train()
    plain, graphed = copy.deepcopy(loss), GraphedLoss(loss)
    for _ in range(5):
        inputs = tuple(one.cuda() * (1.1 if one.is_floating_point() else 1) for one in inputs)
        values = []
        for call, module in ((graphed, loss), (plain, plain)):
            module.zero_grad()
            value = call(*inputs)
            value.backward()
            values.append(
                (value.detach(), [p.grad.clone() for p in module.parameters() if p.grad is not None])
            )
        torch.testing.assert_close(values[0][0], values[1][0], rtol=1e-4, atol=1e-4)
        norm = torch.cat([one.flatten() for one in values[1][1]]).norm()
        for mine, theirs in zip(values[0][1], values[1][1], strict=True):
            assert (mine - theirs).norm() < 1e-3 * norm
    assert list(graphed._graphs.values()) != [None]
    assert len(graphed._graphs) == 1
