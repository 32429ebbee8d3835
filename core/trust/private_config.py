"""How training is kept from telling of its single cases."""

from __future__ import annotations

from dataclasses import dataclass

from mambakit.core.errors import UsageError


@dataclass(frozen=True)
class PrivateConfig:
    """Differential privacy of the gradient steps (DP-SGD)."""

    noise_multiplier: float = 0.0
    """Deviation of the noise on summed gradients, over max_grad_norm; 0 trains without privacy."""
    max_grad_norm: float = 1.0
    """Gradients of single cases are clipped to this norm."""
    delta: float = 1e-5
    """The epsilon that is spent is told at this delta; it has to be below one over the number of cases."""

    def __post_init__(self) -> None:
        if not self.noise_multiplier >= 0:
            raise UsageError(f"private.noise_multiplier: expected 0 or more, got {self.noise_multiplier}")
        if not self.max_grad_norm > 0:
            raise UsageError(f"private.max_grad_norm: expected more than 0, got {self.max_grad_norm}")
        if not 0 < self.delta < 1:
            raise UsageError(f"private.delta: expected a number between 0 and 1, got {self.delta}")
