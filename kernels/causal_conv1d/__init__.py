"""Depthwise causal convolution over time."""

from mambakit.kernels.causal_conv1d.op import causal_conv1d, causal_conv1d_step

__all__ = ["causal_conv1d", "causal_conv1d_step"]
