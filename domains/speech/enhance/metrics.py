"""How good enhanced speech is, by well-kept packages: SI-SDR, STOI and PESQ."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from mambakit.core.errors import UserError
from mambakit.domains.speech.audio import resample

_PESQ_RATES = {16_000: "wb", 8_000: "nb"}
_STOI_LEAST_S = 0.4  # it compares stretches of 384 ms


class Scores(NamedTuple):
    """Of one signal beside its clean one; NaN where it can't be said."""

    pesq: float
    """ITU-T P.862.2 wide band at 16 kHz, P.862 narrow band at 8 kHz: 1 to about 4.6."""
    stoi: float
    """Short-time objective intelligibility (Taal et al. 2011): 0 to 1."""
    si_sdr: float
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv:1811.02508)."""


def si_sdr(said: Tensor, clean: Tensor) -> Tensor:
    """In dB over the last dimension: ``(..., n)`` to ``(...)``; means are not removed."""
    value: Tensor = scale_invariant_signal_distortion_ratio(said, clean)
    return value


def has_pesq() -> bool:
    """Whether the package pesq, which needs a compiler to install, is there."""
    return find_spec("pesq") is not None


def scores(said: Tensor, clean: Tensor, rate_hz: int, *, pesq: bool = True) -> Scores:
    """Scores of one signal ``(n,)`` beside its clean one ``(n,)``.

    Args:
        said: Enhanced, or noisy.
        clean: The reference.
        rate_hz: Their rate; for PESQ, another than 8 and 16 kHz is resampled to 16 kHz.
        pesq: Whether to compute PESQ, which takes longest.

    Raises:
        UserError: If a package is not installed.
    """
    stoi = float("nan")
    if clean.numel() >= _STOI_LEAST_S * rate_hz and bool(clean.any()):
        module = _package("pystoi", "speech")
        with np.errstate(all="ignore"):
            stoi = float(module.stoi(clean.double().numpy(), said.double().numpy(), rate_hz))
    return Scores(
        _pesq(said, clean, rate_hz) if pesq else float("nan"),
        stoi,
        float(si_sdr(said.double(), clean.double())),
    )


def _pesq(said: Tensor, clean: Tensor, rate_hz: int) -> float:
    module = _package("pesq", "speech-metrics")
    if rate_hz not in _PESQ_RATES:
        said, clean, rate_hz = resample(said, rate_hz, 16_000), resample(clean, rate_hz, 16_000), 16_000
    pair = (torch.stack([clean, said]).double() * 32768).round().clamp(-32768, 32767).short().numpy()
    try:
        return float(module.pesq(rate_hz, pair[0], pair[1], _PESQ_RATES[rate_hz]))
    except (module.NoUtterancesError, module.BufferTooShortError):
        return float("nan")


def _package(name: str, extra: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"this score needs the package {name}; install it with pip install 'mambakit[{extra}]'"
        ) from error
