"""The four ops and their one-token steps; everything above is built on them."""

from mambakit.kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from mambakit.kernels.gated_rms_norm import gated_rms_norm
from mambakit.kernels.selective_scan import selective_scan, selective_scan_step
from mambakit.kernels.ssd import ssd, ssd_core, ssd_step

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "gated_rms_norm",
    "selective_scan",
    "selective_scan_step",
    "ssd",
    "ssd_core",
    "ssd_step",
]
