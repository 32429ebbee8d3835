"""What an enhancement model is made of, what it is trained on, and the preset for a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.spectral.config import SpectralConfig


@dataclass(frozen=True)
class EnhanceConfig(SpectralConfig):
    """A network in the time-frequency domain: what ``config.json`` holds."""

    contrast: float = 0.0
    """Strength of perceptual contrast stretching of what is said, 0.4 as in its paper: it is heard as better
    (PESQ), and is less like the clean samples (SI-SDR). Training does not see it."""
    trained_on: str = ""
    """Name of the speech it learned from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, "contrast")


@dataclass(frozen=True)
class MixConfig:
    """How noisy speech is made of clean speech, a new mixture every time."""

    segment_s: float = 2.0
    """Seconds of a training mixture."""
    snr_low_db: float = -2.5
    """Least ratio of speech to noise."""
    snr_high_db: float = 17.5
    """Greatest ratio of speech to noise."""
    rooms: float = 0.3
    """Share of mixtures whose speech stands in a synthetic room; its reverberation is kept, not removed."""
    real_noise: float = 0.4
    """Share of noises that are cut from recordings, where there are any."""
    babble: float = 0.2
    """Share of noises that are several other utterances at once."""
    gain_db: float = 12.0
    """Level of a mixture is changed at random by up to so much either way."""
    steps_per_epoch: int = 50
    """Batches until the next validation; mixtures never repeat."""
    validation_mixtures: int = 24
    """Mixtures of validation utterances, the same ones every time."""
    test_mixtures: int = 20
    """Mixtures of test utterances that are measured at the end, the same ones every time."""

    def __post_init__(self) -> None:
        if not self.segment_s > 0:
            raise UsageError(f"segment_s: expected more than 0, got {self.segment_s}")
        if self.snr_low_db > self.snr_high_db:
            raise UsageError(
                f"snr_low_db: expected at most snr_high_db ({self.snr_high_db}), got {self.snr_low_db}"
            )
        check_shares(self, "rooms", "real_noise", "babble")
        if self.real_noise + self.babble > 1:
            raise UsageError("real_noise, babble: expected shares that are at most 1 together")
        check_least(self, 0, "gain_db")
        check_least(self, 1, "steps_per_epoch", "validation_mixtures", "test_mixtures")


@dataclass(frozen=True)
class EnhanceLoss:
    """Weights of what training minimises."""

    magnitude: float = 1.0
    """Squared error of compressed magnitudes."""
    complex: float = 0.5
    """Squared error of compressed complex spectra."""
    si_sdr: float = 0.01
    """Of the negative SI-SDR in dB."""

    def __post_init__(self) -> None:
        check_least(self, 0, "magnitude", "complex", "si_sdr")


PRESET_ENHANCE = EnhanceConfig()
PRESET_MIX = MixConfig()
PRESET_ENHANCE_LOSS = EnhanceLoss()
PRESET_ENHANCE_TRAIN = TrainConfig(
    max_epochs=40, batch_size=4, lr=2e-3, ema_decay=0.99, patience=10, precision="32-true"
)
