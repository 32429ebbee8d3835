"""The picture of an alignment: waveform, log-mel frames, and words where they are said."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from mambakit.domains.speech.audio import Audio
from mambakit.domains.speech.recognize.formats import Transcript
from mambakit.domains.speech.recognize.model import Recognizer

_OURS, _MARK = "#1668b8", "#c2571a"


def alignment_figure(model: Recognizer, audio: Audio, transcript: Transcript, samples: Tensor) -> Figure:
    """Words over the sound.

    Args:
        model: Whose frames to draw.
        audio: The recording.
        transcript: Its words.
        samples: The recording at the model's rate.
    """
    frames = model.front_end(samples[None])[0][0].detach().cpu().numpy()
    figure = Figure(figsize=(max(6.0, min(24.0, 1.6 * audio.seconds)), 4.4), layout="constrained")
    wave, mel = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    wave.plot(
        np.arange(len(audio.samples)) / audio.rate_hz, audio.samples.numpy(), color=_OURS, linewidth=0.4
    )
    wave.set_yticks([])
    mel.imshow(
        frames.T, origin="lower", aspect="auto", cmap="magma", extent=(0, audio.seconds, 0, frames.shape[1])
    )
    mel.set_ylabel("mel band", fontsize=9)
    mel.set_xlabel("seconds", fontsize=9)
    top = float(audio.samples.abs().max()) or 1.0
    for word in transcript.words:
        for axis in (wave, mel):
            axis.axvspan(word.start_s, word.end_s, color=_MARK, alpha=0.18, linewidth=0)
            axis.axvline(word.start_s, color=_MARK, linewidth=0.8)
        wave.text(word.start_s, 1.05 * top, word.text, fontsize=8, color=_MARK, clip_on=False)
    return figure
