"""State-space duality (Mamba-2's recurrence)."""

from mambakit.kernels.ssd.op import ssd, ssd_core
from mambakit.kernels.ssd.step import ssd_step

__all__ = ["ssd", "ssd_core", "ssd_step"]
