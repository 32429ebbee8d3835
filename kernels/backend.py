"""Backend choice: which implementation of an op runs, and why another cannot."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = ("reference", "portable", "triton")

# The ops that have Triton kernels. An op earns its name here when they pass the op's own tests.
TRITON_OPS: frozenset[str] = frozenset(
    {
        *("causal_conv1d", "gated_rms_norm", "selective_scan", "ssd"),
        *("causal_conv1d_step", "selective_scan_step", "ssd_step"),
    }
)


# A constant, as torch.compile does not trace a search for a module; marking a function as one by
# torch.compiler.assume_constant_result would import all of the compiler, which takes seconds.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why and what would help."""


def why_unavailable(
    backend: str, op: str, device: torch.device, dtype: torch.dtype | None = None
) -> str | None:
    """Why ``backend`` cannot run ``op`` on ``device`` in ``dtype`` and what would help, or None if it can."""
    if backend in ("reference", "portable"):
        return None
    if op not in TRITON_OPS:
        return f"this version has no Triton kernel for {op}; use backend='portable'"
    if not _HAS_TRITON:
        return "the triton package is not installed (it exists for Linux only); use backend='portable'"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton kernels need a CUDA tensor, got one on {device}; move it, or use backend='portable'"
    if dtype == torch.float64:
        return "Triton kernels compute in float32; for float64 use backend='portable'"
    return None


def choose_backend(
    op: str, backend: str | None, device: torch.device, dtype: torch.dtype | None = None
) -> str:
    """The backend to run ``op`` with.

    Args:
        op: Name of the op, as in ``mambakit.kernels``.
        backend: A name from ``BACKENDS``, or None: then the environment variable MAMBAKIT_BACKEND,
            and without it the fastest backend that runs on ``device``.
        device: Where the inputs are.
        dtype: What the op computes in, where that decides: no Triton kernel computes in float64.

    Raises:
        ValueError: On an unknown name.
        BackendUnavailableError: If the backend asked for cannot run.
    """
    asked_by = "backend"
    if backend is None:
        backend = os.environ.get("MAMBAKIT_BACKEND") or None
        asked_by = "MAMBAKIT_BACKEND"
    if backend is None:
        # on the CPU Triton's interpreter is for tests, and asked for by name
        runs = device.type == "cuda" and why_unavailable("triton", op, device, dtype) is None
        return "triton" if runs else "portable"
    if backend not in BACKENDS:
        raise ValueError(f"{asked_by}: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    reason = why_unavailable(backend, op, device, dtype)
    if reason is not None:
        raise BackendUnavailableError(f"{asked_by}={backend!r} cannot run {op}: {reason}")
    return backend


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Every op that is called inside, and names no backend itself, runs with this one; in all threads.

    ``use_backend("reference")`` around ``torch.export.export`` leaves a program of torch's own operators.

    Raises:
        ValueError: On an unknown name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    before = os.environ.get("MAMBAKIT_BACKEND")
    os.environ["MAMBAKIT_BACKEND"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["MAMBAKIT_BACKEND"]
        else:
            os.environ["MAMBAKIT_BACKEND"] = before
