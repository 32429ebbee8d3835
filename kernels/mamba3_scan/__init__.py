"""Mamba-3's recurrence: the trapezoidal rule on a rotating state, single or multiple input and output."""

from mambakit.kernels.mamba3_scan.op import mamba3_scan
from mambakit.kernels.mamba3_scan.reference import mamba3_scan_reference
from mambakit.kernels.mamba3_scan.state import Mamba3State
from mambakit.kernels.mamba3_scan.step import mamba3_step

__all__ = ["Mamba3State", "mamba3_scan", "mamba3_scan_reference", "mamba3_step"]
