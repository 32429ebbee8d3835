"""Backend choice: which implementation of an op runs, and why another cannot."""

from __future__ import annotations

import importlib.util
import os

import torch

BACKENDS = ("reference", "portable", "triton")

# The ops that have a gpu.py. An op earns its name here when its Triton kernels pass the op's own tests.
TRITON_OPS: frozenset[str] = frozenset({"selective_scan"})


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why and what would help."""


def why_unavailable(backend: str, op: str, device: torch.device) -> str | None:
    """Why ``backend`` cannot run ``op`` on ``device`` and what would help, or None if it can."""
    if backend in ("reference", "portable"):
        return None
    if op not in TRITON_OPS:
        return f"this version has no Triton kernel for {op}; use backend='portable'"
    if importlib.util.find_spec("triton") is None:
        return "the triton package is not installed (it exists for Linux only); use backend='portable'"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton kernels need a CUDA tensor, got one on {device}; move it, or use backend='portable'"
    return None


def choose_backend(op: str, backend: str | None, device: torch.device) -> str:
    """The backend to run ``op`` with.

    Args:
        op: Name of the op, as in ``mambakit.kernels``.
        backend: A name from ``BACKENDS``, or None: then the environment variable MAMBAKIT_BACKEND,
            and without it the fastest backend that runs on ``device``.
        device: Where the inputs are.

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
        runs = device.type == "cuda" and why_unavailable("triton", op, device) is None
        return "triton" if runs else "portable"
    if backend not in BACKENDS:
        raise ValueError(f"{asked_by}: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    reason = why_unavailable(backend, op, device)
    if reason is not None:
        raise BackendUnavailableError(f"{asked_by}={backend!r} cannot run {op}: {reason}")
    return backend
