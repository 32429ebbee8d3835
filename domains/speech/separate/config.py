"""What a separation model is made of, what it is trained on, and the preset for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mambakit.core.config_checks import check_least
from mambakit.core.errors import UsageError
from mambakit.core.training import TrainConfig
from mambakit.domains.speech.spectral.config import SpectralConfig

Domain = Literal["time", "time-frequency"]


@dataclass(frozen=True)
class SeparateConfig(SpectralConfig):
    """A network that takes speakers apart: what ``config.json`` holds."""

    domain: Domain = "time"
    """What it looks at: samples, by learned filters (n_filters, kernel), or spectra (n_fft, hop, compression,
    patch, levels, time_factor)."""
    rate_hz: int = 8_000
    """Sampling rate that is read and written."""
    n_sources: int = 2
    """Speakers of a mixture."""
    n_filters: int = 128
    """Learned filters that a frame is described by, in the time domain."""
    kernel: int = 16
    """Samples of a filter, in the time domain; even. Frames are half of it apart."""
    n_fft: int = 256
    """Samples of a spectrum's window; even."""
    hop: int = 128
    """Samples from one spectrum to the next; n_fft is a multiple of at least 2."""
    d_model: int = 64
    """Width of the blocks."""
    n_layers: int = 4
    """Blocks over time; with one over frequency beside each, where spectra are looked at."""
    block_options: dict[str, Any] = field(default_factory=lambda: {"head_dim": 32, "d_state": 16})
    """Their keyword arguments."""
    causal: bool = False
    """Whether time is read forwards only, so that the model can stream; otherwise both ways."""
    trained_on: str = ""
    """Name of the speech it learned from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "n_filters", "kernel")
        check_least(self, 2, "n_sources")
        if self.kernel % 2:
            raise UsageError(f"kernel: expected an even number, got {self.kernel}")
        if self.domain not in get_args(Domain):
            raise UsageError(f"domain: expected {' or '.join(get_args(Domain))}, got {self.domain!r}")


@dataclass(frozen=True)
class PairConfig:
    """How mixtures of two speakers are made, new ones every time."""

    segment_s: float = 2.0
    """Seconds of a training mixture."""
    level_db: float = 2.5
    """One speaker is louder than the other by up to so much."""
    speeds: list[float] = field(default_factory=list)
    """Training utterances are heard so many times as fast, too, in twentieths: each speed makes another
    speaker of one, of whom few data sets have enough."""
    piece_s: float = 0.0
    """Training utterances are heard in pieces of about so many seconds with pauses between, so that who is
    who must be kept over them; 0 cuts none."""
    steps_per_epoch: int = 50
    """Batches until the next validation."""
    validation_mixtures: int = 24
    """Mixtures of validation utterances, the same ones every time."""
    test_mixtures: int = 40
    """Mixtures of test utterances that are measured at the end, the same ones every time."""
    unseen: list[str] = field(default_factory=list)
    """Two speakers that are heard in the test alone; by default the test mixes all speakers' test part."""

    def __post_init__(self) -> None:
        if not self.segment_s > 0:
            raise UsageError(f"segment_s: expected more than 0, got {self.segment_s}")
        check_least(self, 0, "level_db")
        if self.piece_s and not self.piece_s >= 0.05:
            raise UsageError(f"piece_s: expected 0 or at least 0.05, got {self.piece_s}")
        for speed in self.speeds:
            twentieths = 20 * speed
            if not 10 <= twentieths <= 40 or abs(twentieths - round(twentieths)) > 1e-6 or speed == 1:
                raise UsageError(f"speeds: expected .5, .55, ... 2 without 1, got {speed:g}")
        if len(set(self.speeds)) < len(self.speeds):
            raise UsageError("speeds: one is there twice")
        check_least(self, 1, "steps_per_epoch", "validation_mixtures", "test_mixtures")
        if self.unseen and len(set(self.unseen)) != 2:
            raise UsageError(f"unseen: expected two speakers, got {', '.join(self.unseen)}")


PRESET_SEPARATE = SeparateConfig()
PRESET_PAIRS = PairConfig()
PRESET_SEPARATE_TRAIN = TrainConfig(
    max_epochs=40, batch_size=4, lr=2e-3, patience=10, gradient_clip=5.0, precision="32-true"
)
