"""The four ops and their one-token steps; everything above is built on them."""

from mambakit.kernels.gated_rms_norm import gated_rms_norm
from mambakit.kernels.ssd import ssd, ssd_core, ssd_step

__all__ = ["gated_rms_norm", "ssd", "ssd_core", "ssd_step"]
