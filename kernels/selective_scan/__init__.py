"""The selective scan (Mamba-1's recurrence)."""

from mambakit.kernels.selective_scan.op import selective_scan
from mambakit.kernels.selective_scan.step import selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]
