"""Which device, which precision, which seed."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from mambakit.core.errors import UsageError


def resolve_device(device: str) -> torch.device:
    """The torch device for a ``--device`` flag: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    ``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        UsageError: If there is no such device here; the message says what there is.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and index.isdigit())):
        raise UsageError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {device!r}")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            why = "torch finds no GPU" if torch.version.cuda else "this torch is built without CUDA"
            raise UsageError(f"device: {device} is not available here ({why}); use cpu or auto")
        if int(index or 0) >= count:
            raise UsageError(f"device: {device} is not there; the last GPU here is cuda:{count - 1}")
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device: mps is not available here (it needs an Apple GPU); use cpu or auto")
    return torch.device(kind)


def n_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_processes(given: int | None, device: torch.device) -> int:
    """``TrainConfig.num_workers``; by default up to 8 beside a GPU, and none where the CPU itself learns."""
    if given is not None:
        return given
    return 0 if device.type == "cpu" else min(8, n_cores() - 1)


def choose_precision(precision: str, device: torch.device) -> str:
    """Lightning's precision: ``auto`` is bf16-mixed on a GPU that computes in it, else 32-true."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "32-true"


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch; call it before building a model, for reproducible weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
