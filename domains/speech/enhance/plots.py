"""Pictures of enhancement: spectrograms before and after."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mambakit.domains.speech.spectral.stft import CausalSTFT

_RANGE_DB = 70.0
_COLUMNS = 1600  # more frames than a picture shows are joined


def spectrogram_db(samples: Tensor, rate_hz: int) -> np.ndarray:
    """Level in dB of full scale, ``(n_bins, n_columns)``; windows of 32 ms."""
    hop = max(1, round(0.008 * rate_hz))
    power = CausalSTFT(4 * hop, hop).whole(samples[None].float())[0].abs().square() / hop**2
    joined = max(1, len(power) // _COLUMNS)
    whole = power[: len(power) // joined * joined].unflatten(0, (-1, joined)).mean(1)
    return (10 * torch.log10(whole + 1e-12)).T.numpy()


def before_after_figure(signals: dict[str, Tensor], rate_hz: int) -> Figure:
    """Spectrograms of signals ``(n,)`` one below the other, on one scale of levels, by title."""
    pictures = {title: spectrogram_db(samples, rate_hz) for title, samples in signals.items()}
    top = max(float(picture.max()) for picture in pictures.values())
    figure = Figure(figsize=(9, 2.3 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        seconds = len(signals[title]) / rate_hz
        image = axis.imshow(
            picture, origin="lower", aspect="auto", cmap="magma", vmin=top - _RANGE_DB, vmax=top,
            extent=(0, seconds, 0, rate_hz / 2000),
        )  # fmt: skip
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel("kHz", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("seconds", fontsize=9)
    figure.colorbar(image, ax=list(axes), label="dB of full scale", pad=0.01)
    return figure
