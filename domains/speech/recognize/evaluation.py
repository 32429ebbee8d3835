"""A recogniser measured beside a baseline: error rates, in noise, and word times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mambakit.domains.speech.augment import coloured_noise, mix, stretch
from mambakit.domains.speech.recognize.decoding import Decoder
from mambakit.domains.speech.recognize.formats import Transcript, lines_of
from mambakit.domains.speech.recognize.metrics import error_rates
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.reach import activity_of
from mambakit.domains.speech.recognize.recordings import Recordings, lengths_of
from mambakit.domains.speech.recognize.streaming import StreamingRecognizer
from mambakit.domains.speech.utterances import Utterances

COLUMNS = ("model", "condition", "wer", "cer", "substitutions", "deletions", "insertions", "words", "n")
OURS = "mambakit"
_BATCH_S = 120.0


def transcripts(
    model: Recognizer, recordings: Sequence[Tensor], decoder: Decoder | None = None
) -> list[Transcript]:
    """Of recordings at the model's rate; nothing where one has no frame.

    Recordings of like length are computed together; how, changes nothing.
    """
    decoder = decoder or Decoder(model)
    made: dict[int, Transcript] = {}
    for batch in _batches(lengths_of(recordings), round(_BATCH_S * model.rate_hz)):
        heard = [recordings[i] for i in batch]
        for i, samples, vectors in zip(batch, heard, _together(model, heard), strict=True):
            seconds, words = len(samples) / model.rate_hz, []
            if len(vectors):
                words = model.words(decoder(vectors), activity_of(samples, model.rate_hz), seconds)
            made[i] = Transcript(lines_of(words), seconds)
    return [made[i] for i in range(len(recordings))]


def streamed_texts(model: Recognizer, recordings: Sequence[Tensor], chunk_s: float) -> list[str]:
    """Texts of recordings that come in chunks of so many seconds, as ``mambakit speech stream`` hears them.

    Raises:
        UsageError: If the model can't stream.
    """
    size, found = max(1, round(chunk_s * model.rate_hz)), []
    for samples in recordings:
        stream = StreamingRecognizer(model)
        events = [event for chunk in samples.split(size) for event in stream.feed(chunk)] + stream.finish()
        found.append(" ".join(event.line.text for event in events if event.kind == "completed"))
    return found


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of like length, so many that they are at most ``most`` samples with their padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[i] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.no_grad()
def _together(model: Recognizer, recordings: Sequence[Tensor]) -> list[Tensor]:
    """The encoder's vectors ``(n_frames, d_model)`` of each."""
    device = model.head.proj.weight.device
    if len(recordings) == 1:  # perhaps a long one, which is read in pieces
        (one,) = recordings
        return [model.vectors_of(one) if len(one) >= model.frame_samples else torch.zeros(0, 1)]
    lengths = torch.tensor([len(one) for one in recordings]).to(device)
    samples = pad_sequence(list(recordings), batch_first=True).to(device)
    vectors, frames = model.vectors(samples, lengths)
    there = frames.where(lengths >= model.frame_samples, 0)  # a tail alone says nothing
    return [one[:n] for one, n in zip(vectors, there.tolist(), strict=True)]


def measured(
    models: dict[str, Recognizer],
    recordings: Recordings,
    utterances: Utterances,
    *,
    snr_db: Sequence[float] = (),
    noises: Sequence[Tensor] = (),
    decoders: dict[str, Decoder] | None = None,
) -> list[dict[str, Any]]:
    """Rows of error rates, of every model and condition.

    Args:
        models: By the name that a table shows.
        recordings: To measure on.
        utterances: Where they are from, for what they were before noise.
        snr_db: Further conditions: so much noise is added to the recordings (to the clean ones, where there
            are such).
        noises: Recordings of noise at the models' rate; white noise without any.
        decoders: How a model's texts are chosen; the best path by default.
    """
    rows = []
    for condition in (None, *snr_db):
        heard = recordings.samples
        if condition is not None:
            heard = in_noise(recordings, utterances, condition, noises, next(iter(models.values())).rate_hz)
        for name, model in models.items():
            made = transcripts(model, heard, (decoders or {}).get(name))
            rates = error_rates(recordings.texts, [one.text for one in made])
            shown = "as recorded" if condition is None else f"{condition:g} dB"
            rows.append({"model": name, "condition": shown, **rates._asdict(), "n": len(made)})
    return rows


def in_noise(
    recordings: Recordings,
    utterances: Utterances,
    snr_db: float,
    noises: Sequence[Tensor],
    rate_hz: int,
) -> list[Tensor]:
    """Recordings with noise at a ratio to the speech, the same for every model."""
    generator = torch.Generator().manual_seed(0)
    clean = utterances.table["clean_path"]
    made = []
    for samples, row in zip(recordings.samples, recordings.rows, strict=True):
        if clean.iloc[row] is not None:
            samples = utterances.clean_audio(row, rate_hz=rate_hz).samples
        if noises:
            which = noises[int(torch.randint(0, len(noises), (), generator=generator))]
            noise = stretch(which, len(samples), generator)
        else:
            noise = coloured_noise(len(samples), 0.0, generator)
        made.append(mix(samples, noise, snr_db))
    return made


def word_time_errors(
    model: Recognizer, recordings: Recordings, utterances: Utterances, decoder: Decoder | None = None
) -> dict[str, float] | None:
    """How far word starts are from known ones, of recordings that were written without a mistake.

    Args:
        model: The recogniser.
        recordings: To measure on.
        utterances: What says when words are heard; None is returned where nothing does.
        decoder: How texts are chosen; the best path by default.
    """
    known = [utterances.word_times(row) for row in recordings.rows]
    if not any(known):
        return None
    starts, ends = [], []
    written = transcripts(model, recordings.samples, decoder)
    for made, text, times in zip(written, recordings.texts, known, strict=True):
        if made.text != text or times is None or len(times) != len(made.words):
            continue
        starts += [word.start_s - time.start_s for word, time in zip(made.words, times, strict=True)]
        ends += [word.end_s - time.end_s for word, time in zip(made.words, times, strict=True)]
    if not starts:
        return None
    return {
        "words": len(starts),
        "median_start_error_s": float(np.median(np.abs(starts))),
        "median_start_shift_s": float(np.median(starts)),
        "median_end_error_s": float(np.median(np.abs(ends))),
    }
