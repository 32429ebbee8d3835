"""What a classifier of short recordings is made of, and the preset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mambakit.core.config_checks import check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.augment import AugmentConfig
from mambakit.domains.speech.encoder import EncoderConfig
from mambakit.domains.speech.frontend import FrontEndConfig, StripesConfig, check_bands

Network = Literal["mamba", "cnn"]


@dataclass(frozen=True)
class ClassifyModelConfig:
    """The shape of the network; the defaults are the preset."""

    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    """How samples become frames."""
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(
            d_model=64, channels=16, subsampling=2, n_layers=2, d_state=16, head_dim=16, dropout=0.1
        )
    )
    """Frames to vectors."""
    network: Network = "mamba"
    """cnn is the baseline: one-dimensional convolutions over the same frames instead of the encoder."""
    head_dropout: float = 0.2
    """Share of the pooled vector that is dropped while training."""

    def __post_init__(self) -> None:
        if self.network not in get_args(Network):
            raise UsageError(f"network: expected {', '.join(get_args(Network))}, got {self.network!r}")
        check_shares(self, "head_dropout", below_one=True)
        check_bands(self.front_end, self.encoder.n_mels)


@dataclass(frozen=True)
class ClassifyConfig:
    """A network and the classes it is for: what ``config.json`` holds."""

    classes: list[str]
    """Their names, in the order of the outputs."""
    trained_on: str = ""
    """Name of the data."""
    model: ClassifyModelConfig = field(default_factory=ClassifyModelConfig)
    """The shape of the network."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UsageError(f"classes: expected two or more, got {', '.join(self.classes) or 'none'}")


@dataclass(frozen=True)
class ClassifyLossConfig(StripesConfig):
    """What training minimises, and what is done to frames; see each field."""

    label_smoothing: float = 0.1
    """Probability that the loss spreads over all classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "label_smoothing", below_one=True)


# Chosen by validation on takes 5 to 49 of fsdd, a speaker held out: means by the training set, as taking off
# each recording's own mean cost 11 points (words are short, and their mean says much of which they are).
PRESET_MODEL = ClassifyModelConfig()
PRESET_LOSS = ClassifyLossConfig()
PRESET_AUGMENT = AugmentConfig()
PRESET_TRAIN = TrainConfig(
    max_epochs=40,
    lr=3e-3,
    weight_decay=0.05,
    warmup_fraction=0.1,
    ema_decay=0.99,
    patience=0,
    precision="32-true",
)
