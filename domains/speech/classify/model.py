"""The network that names what a recording is: front end, encoder, and one linear layer over the mean."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import padding_mask
from mambakit.core.heads import ClassificationHead
from mambakit.core.hub import HubModel
from mambakit.domains.speech.about import CLASSIFIER
from mambakit.domains.speech.classify.config import ClassifyConfig, ClassifyModelConfig
from mambakit.domains.speech.encoder import Encoder
from mambakit.domains.speech.frontend import FrontEnd

# Of the convolutions of the baseline, whose width is chosen for as many parameters as our network has.
_CNN_LAYERS, _CNN_WIDTH = 3, 5


class Classifier(nn.Module, HubModel):
    """Recordings to logits.

    Args:
        config: The network and its classes.
    """

    about = CLASSIFIER

    def __init__(self, config: ClassifyConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.model
        self.front_end = FrontEnd(shape.front_end)
        self.encoder: nn.Module
        if shape.network == "cnn":
            self.encoder = Convolutions(shape.front_end.n_mels, cnn_width(shape), shape.encoder.dropout)
            d_model = self.encoder.channels
        else:
            self.encoder = Encoder(shape.encoder)
            d_model = shape.encoder.d_model
        self.dropout = nn.Dropout(shape.head_dropout)
        self.head = ClassificationHead(d_model=d_model, n_classes=len(config.classes))

    def forward(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``(batch, n_classes)`` of recordings ``(batch, n_samples)`` with ``lengths`` samples."""
        return self.of_frames(*self.front_end(samples, lengths))

    def of_frames(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits of normalised frames ``(batch, n_frames, n_mels)``."""
        x, lengths = self.encoder(frames, lengths)
        return self.head(self.dropout(x), lengths)

    @property
    def least_samples(self) -> int:
        """Shorter recordings make no vector at all."""
        return self.config.model.front_end.hop * self.config.model.encoder.subsampling


class Convolutions(nn.Module):
    """Three one-dimensional convolutions over frames, each halving their number: the baseline.

    Args:
        n_mels: Bands of a frame.
        channels: Width.
        dropout: Share of activations that is dropped while training.
    """

    def __init__(self, n_mels: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.channels = channels
        widths = [n_mels, *[channels] * _CNN_LAYERS]
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, _CNN_WIDTH, padding=_CNN_WIDTH // 2) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(PaddedBatchNorm(channels) for _ in self.layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_frames, n_mels)`` to ``(batch, n, channels)`` and lengths, as an ``Encoder`` does."""
        x = frames.transpose(1, 2)
        for i, (conv, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            there = ~padding_mask(lengths, x.shape[2])[:, None]
            x = F.relu(norm(conv(x), there)) * there  # padding stays zero, as a longer batch would have it
            if i < _CNN_LAYERS - 1 and x.shape[2] > 1:
                x, lengths = F.max_pool1d(x, 2, ceil_mode=True), (lengths + 1) // 2
            x = self.dropout(x)
        return x.transpose(1, 2), lengths


class PaddedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) over what is no padding.

    Padding would else be part of the means that recordings are measured with later.

    Args:
        channels: How many.
        momentum: Weight of a batch in the running means.
    """

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """``(batch, channels, n)``; ``there`` ``(batch, 1, n)`` is false at padding."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            share = there / there.sum().clamp(min=1)
            mean = (x * share).sum((0, 2))
            variance = ((x - mean[:, None]).square() * share).sum((0, 2))
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
        scale = self.weight * (variance + 1e-5).rsqrt()
        return (x - mean[:, None]) * scale[:, None] + self.bias[:, None]


def cnn_width(shape: ClassifyModelConfig) -> int:
    """The width that gives the baseline's convolutions about as many parameters as our encoder has."""
    wanted = sum(parameter.numel() for parameter in Encoder(shape.encoder).parameters())
    # (layers - 1) * k * w^2 + k * n_mels * w = wanted
    a, b = (_CNN_LAYERS - 1) * _CNN_WIDTH, _CNN_WIDTH * shape.front_end.n_mels
    return max(8, round((-b + math.sqrt(b * b + 4 * a * wanted)) / (2 * a)))
