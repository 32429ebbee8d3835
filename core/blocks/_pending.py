"""Temporary: the reference implementations behind the public signatures, until the ops land."""

from __future__ import annotations

from typing import Any

from mambakit.kernels.causal_conv1d.reference import causal_conv1d_reference
from mambakit.kernels.selective_scan.reference import selective_scan_reference


def causal_conv1d(*args: Any, return_final_state: bool = False, **kw: Any) -> Any:
    y, s = causal_conv1d_reference(*args, **kw)
    return (y, s) if return_final_state else y


def selective_scan(*args: Any, return_final_state: bool = False, **kw: Any) -> Any:
    y, s = selective_scan_reference(*args, **kw)
    return (y, s) if return_final_state else y


def causal_conv1d_step(state: Any, x: Any, *args: Any, **kw: Any) -> Any:
    y, s = causal_conv1d_reference(x[:, None], *args, initial_state=state, **kw)
    return y[:, 0], s


def selective_scan_step(state: Any, x: Any, dt: Any, A: Any, B: Any, C: Any, z: Any = None, **kw: Any) -> Any:
    y, s = selective_scan_reference(
        x[:, None], dt[:, None], A, B[:, None], C[:, None], z=z[:, None], initial_state=state, **kw
    )
    return y[:, 0], s
