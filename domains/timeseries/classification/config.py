"""What a classifier of series is made of, and the frozen preset that every data set is trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig

Pool = Literal["mean", "max", "last"]


@dataclass(frozen=True)
class ClassifierModelConfig:
    """The shape of the network; the defaults are the frozen preset."""

    members: int = 5
    """Networks, begun and trained apart, whose probabilities are averaged; each costs as much as another."""
    d_model: int = 64
    """Width of the stack."""
    blocks: list[str] = field(default_factory=lambda: ["mamba2", "mamba2"])
    """Kinds of its layers."""
    bidirectional: bool = True
    """Read both directions."""
    d_state: int = 16
    """State size of the Mamba blocks."""
    head_dim: int = 16
    """Channels a head of the Mamba blocks."""
    pool: Pool = "mean"
    """How the rows become one vector: mean, max or last."""
    changes: bool = True
    """Read each channel's change since the row before, too."""
    dropout: float = 0.1
    """Share of activations that is dropped while training."""
    label_smoothing: float = 0.1
    """Probability that the loss spreads over all classes."""

    def __post_init__(self) -> None:
        check_least(self, 1, "members", "d_model", "d_state", "head_dim")
        if self.pool not in get_args(Pool):
            raise UsageError(f"pool: expected one of {', '.join(get_args(Pool))}, got {self.pool!r}")
        check_shares(self, "dropout", "label_smoothing", below_one=True)


@dataclass(frozen=True)
class ClassifierConfig:
    """A network and the series it is for: what ``config.json`` holds."""

    channels: list[str]
    """Names of the channels, in order."""
    classes: list[str]
    """Names of the classes, in order."""
    mean: list[float]
    """Each channel's mean over the training series."""
    deviation: list[float]
    """Each channel's standard deviation over the training series; 1 for one that is constant."""
    model: ClassifierModelConfig = field(default_factory=ClassifierModelConfig)
    """The shape of the network."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise UsageError(f"classes: expected two or more, got {self.classes}")
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) != len(self.channels):
                raise UsageError(
                    f"{name}: expected one for each of {len(self.channels)} channels, "
                    f"got {len(getattr(self, name))}"
                )


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to the training series, anew each time; in standard deviations of the training series."""

    jitter: float = 0.3
    """Deviation of the noise on every value."""
    scale: float = 0.2
    """Deviation of the logarithm of a channel's factor."""
    shift: float = 0.2
    """Deviation of what is added to a whole channel."""
    speed: float = 0.0
    """A series is stretched or pressed in time by up to this share."""
    crop: float = 0.0
    """Up to this share of a series is cut off its ends."""
    missing: float = 0.0
    """Share of the values that are taken away."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that pairs of series are mixed by; 0 for no mixing."""

    def __post_init__(self) -> None:
        for name, most in (("speed", 0.9), ("crop", 0.9), ("missing", 0.9)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{name}: expected 0 to {most}, got {getattr(self, name)}")
        check_least(self, 0, "jitter", "scale", "shift", "mixup")


@dataclass(frozen=True)
class SelectionConfig:
    """How epochs are chosen and probabilities calibrated."""

    folds: int = 5
    """Parts that the training series are cut into; member i holds part i out, which it is validated on."""
    refit: bool = True
    """Train anew on all training series, for as many epochs as validation chose."""
    least_steps: int = 120
    """Small sets get more epochs than the training options say, for so many steps in all."""
    alpha: float = 0.1
    """The sets of classes may miss the right one so often."""

    def __post_init__(self) -> None:
        check_least(self, 2, "folds")
        check_least(self, 0, "least_steps")
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha: expected a share inside (0, 1), got {self.alpha}")


# Chosen by the log-loss of held-out training series alone, on JapaneseVowels and ItalyPowerDemand. Stretching
# and cropping in time cost on both.
PRESET_CLASSIFIER = ClassifierModelConfig()
PRESET_AUGMENT = AugmentConfig()
PRESET_SELECTION = SelectionConfig()
PRESET_CLASSIFIER_TRAIN = TrainConfig(
    max_epochs=24,
    lr=3e-3,
    weight_decay=0.05,
    warmup_fraction=0.1,
    final_lr_fraction=0.0,
    ema_decay=0.98,
    patience=0,
    precision="32-true",
)
