"""What networks over time and frequency are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mambakit.core.config_checks import check_least
from mambakit.core.errors import UsageError
from mambakit.domains.speech.blocks import check_block


@dataclass(frozen=True)
class SpectralConfig:
    """A ``SpectralNetwork``."""

    rate_hz: int = 16_000
    """Sampling rate that is read and written."""
    n_fft: int = 512
    """Samples of a window; even. The delay of a stream is n_fft samples."""
    hop: int = 256
    """Samples from one window to the next; n_fft is a multiple of at least 2."""
    compression: float = 0.3
    """Magnitudes are raised to this power, for the network and for the loss."""
    d_model: int = 48
    """Width of the blocks."""
    n_layers: int = 3
    """Pairs of a block over time and one over frequency; in a U of each level, down and up again."""
    levels: int = 1
    """Resolutions: 1 is a straight stack; in a U patches are twice as many bins from a level to the next."""
    time_factor: int = 1
    """Frames that become one from a level of a U to the next."""
    block: str = "mamba2"
    """Kind of the blocks."""
    block_options: dict[str, Any] = field(default_factory=lambda: {"head_dim": 24, "d_state": 16})
    """Their keyword arguments."""
    patch: int = 8
    """Neighbouring frequency bins that become one token."""
    causal: bool = True
    """Whether time is read forwards only, so that the model can stream; otherwise both ways."""

    def __post_init__(self) -> None:
        check_least(self, 1, "rate_hz", "hop", "d_model", "n_layers", "patch", "levels", "time_factor")
        if self.n_fft % self.hop or self.n_fft // self.hop < 2:
            raise UsageError(
                f"n_fft: expected a multiple of the hop {self.hop}, at least twice it, got {self.n_fft}"
            )
        if self.n_fft % 2:
            raise UsageError(f"n_fft: expected an even number, got {self.n_fft}")
        if not 0 < self.compression <= 1:
            raise UsageError(f"compression: expected a power in (0, 1], got {self.compression}")
        patches = -(-self.n_bins // self.patch)
        if 2 ** (self.levels - 1) > patches:
            raise UsageError(
                f"levels: {patches} patches of {self.patch} bins cannot be halved {self.levels - 1} times"
            )
        if self.levels == 1 and self.time_factor > 1:
            raise UsageError("time_factor: a straight stack has no coarser level; set levels to 2 or more")
        check_block(self.block, self.block_options)

    @property
    def n_bins(self) -> int:
        """Frequencies of the spectrum."""
        return self.n_fft // 2 + 1
