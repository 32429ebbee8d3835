"""The ops and their one-token steps; everything above is built on them."""

from mambakit.kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from mambakit.kernels.gated_rms_norm import gated_rms_norm
from mambakit.kernels.mamba3_scan import Mamba3State, mamba3_scan, mamba3_step
from mambakit.kernels.selective_scan import selective_scan, selective_scan_step
from mambakit.kernels.ssd import ssd, ssd_core, ssd_step

__all__ = [
    "Mamba3State",
    "causal_conv1d",
    "causal_conv1d_step",
    "gated_rms_norm",
    "mamba3_scan",
    "mamba3_step",
    "selective_scan",
    "selective_scan_step",
    "ssd",
    "ssd_core",
    "ssd_step",
]
