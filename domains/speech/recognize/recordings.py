"""Recordings and their transcripts, read, checked and put into batches of like length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mambakit.core.errors import DataError
from mambakit.domains.speech.augment import AugmentConfig, augment
from mambakit.domains.speech.recognize.alignment import frames_needed
from mambakit.domains.speech.recognize.tokenizer import (
    TextTokenizer,
    normalised,
    unknown_characters,
    unknown_sentence,
)
from mambakit.domains.speech.utterances import Utterances

_STRETCH = 8  # batches that are sorted by length together


class SpeechBatch(NamedTuple):
    """Recordings and what they say.

    Attributes:
        samples: ``(batch, n_samples)``, zero at padding.
        lengths: ``(batch,)`` samples of each.
        ids: ``(batch, n_symbols)`` int64, zero at padding.
        id_lengths: ``(batch,)`` symbols of each.
    """

    samples: Tensor
    lengths: Tensor
    ids: Tensor
    id_lengths: Tensor


@dataclass(frozen=True)
class Recordings:
    """Samples, transcripts and rows, side by side."""

    samples: list[Tensor]
    texts: list[str]
    rows: list[int]
    """The places they have in the table."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> list[int]:
        """Samples of each."""
        return [len(one) for one in self.samples]

    def take(self, places: Sequence[int]) -> Recordings:
        """Some of them."""
        return Recordings(
            [self.samples[i] for i in places], [self.texts[i] for i in places], [self.rows[i] for i in places]
        )


def read_recordings(
    utterances: Utterances, places: NDArray[np.int64], rate_hz: int
) -> tuple[Recordings, list[tuple[str, str]]]:
    """The recordings of a part; those that can't be read, or say nothing, are left out with the reason."""
    found = Recordings([], [], [])
    left_out: list[tuple[str, str]] = []
    for place in places.tolist():
        name = str(utterances.table["path"].iloc[place])
        text = normalised(utterances.table["text"].iloc[place] or "")
        if not text:
            left_out.append((name, "its transcript is empty"))
            continue
        try:
            samples = utterances.audio(place, rate_hz=rate_hz).samples
        except DataError as error:
            left_out.append((name, str(error)))
            continue
        found.samples.append(samples)
        found.texts.append(text)
        found.rows.append(place)
    return found, left_out


def fitting(
    recordings: Recordings, tokenizer: TextTokenizer, frame_samples: int, utterances: Utterances
) -> tuple[Recordings, list[tuple[str, str]], list[str]]:
    """Those whose transcript can be written in their frames.

    Args:
        recordings: To choose from.
        tokenizer: Fitted.
        frame_samples: Samples a frame of symbols.
        utterances: Where their names are.

    Returns:
        Those that fit; the others with the reason; and notes, a sentence each.
    """
    unknown = unknown_characters(
        tokenizer, {row + 1: text for row, text in zip(recordings.rows, recordings.texts, strict=True)}
    )
    kept, left_out, notes = [], [], []
    n_long, first_long = 0, ""
    for i, (samples, text) in enumerate(zip(recordings.samples, recordings.texts, strict=True)):
        name = str(utterances.table["path"].iloc[recordings.rows[i]])
        if bad := tokenizer.unknown(text):
            left_out.append((name, f"{tokenizer.wanting}: {' '.join(bad)}"))
            continue
        needed, there = frames_needed(tokenizer.encode(text).values.tolist()), len(samples) // frame_samples
        if needed > there:
            n_long, first_long = n_long + 1, first_long or name
            left_out.append((name, f"its transcript needs {needed} frames, and it has {there}"))
            continue
        kept.append(i)
    if unknown:
        notes.append(f"{utterances.name}: left out for {unknown_sentence(unknown, tokenizer.wanting)}")
    if n_long:
        notes.append(
            f"{utterances.name}: {n_long} recordings are left out because their transcripts are longer than "
            f"their frames allow under CTC (the first: {first_long}); less subsampling or bpe would help"
        )
    return recordings.take(kept), left_out, notes


class LengthBatches(Sampler[list[int]]):
    """Batches of recordings of like length: the order of chance is cut into stretches, and each is sorted.

    Args:
        lengths: Of each.
        batch_size: Recordings a batch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int) -> None:
        self._lengths, self._batch_size = torch.tensor(list(lengths)), batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[Tensor] = []
        for stretch in torch.randperm(len(self._lengths)).split(_STRETCH * self._batch_size):
            batches += stretch[self._lengths[stretch].argsort()].split(self._batch_size)
        for i in torch.randperm(len(batches)).tolist():
            yield batches[i].tolist()


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Each recording changed anew, by torch's global generator; never so fast that its text doesn't fit."""

    def __init__(
        self,
        recordings: Recordings,
        ids: list[Tensor],
        frame_samples: int,
        rate_hz: int,
        config: AugmentConfig,
        noises: Sequence[Tensor],
    ) -> None:
        self._recordings, self._ids, self._frame_samples = recordings, ids, frame_samples
        self._rate_hz, self._config, self._noises = rate_hz, config, noises

    def __len__(self) -> int:
        return len(self._recordings)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(torch.randint(0, 2**62, ())))
        own, ids = self._recordings.samples[place], self._ids[place]
        samples = augment(own, self._rate_hz, self._config, generator, self._noises)
        fits = len(samples) // self._frame_samples >= frames_needed(ids.tolist())
        return (samples if fits else own), ids


def training_loader(
    recordings: Recordings,
    tokenizer: TextTokenizer,
    frame_samples: int,
    rate_hz: int,
    config: AugmentConfig,
    noises: Sequence[Tensor],
    batch_size: int,
) -> DataLoader[SpeechBatch]:
    """Augmented recordings in batches of like length."""
    ids = [tokenizer.encode(text).values for text in recordings.texts]
    data = _Augmented(recordings, ids, frame_samples, rate_hz, config, noises)
    batches = LengthBatches(recordings.lengths, batch_size)
    return DataLoader(data, batch_sampler=batches, collate_fn=_collated)  # type: ignore[arg-type]


def measuring_loader(
    recordings: Recordings, tokenizer: TextTokenizer, batch_size: int = 32
) -> DataLoader[SpeechBatch]:
    """Recordings as they are, in their order."""
    pairs = [
        (samples, tokenizer.encode(text).values)
        for samples, text in zip(recordings.samples, recordings.texts, strict=True)
    ]
    return DataLoader(pairs, batch_size, collate_fn=_collated)  # type: ignore[arg-type]


def _collated(pairs: list[tuple[Tensor, Tensor]]) -> SpeechBatch:
    parts = []
    for side in zip(*pairs, strict=True):
        parts += [
            torch.nn.utils.rnn.pad_sequence(list(side), batch_first=True),
            torch.tensor([len(one) for one in side]),
        ]
    return SpeechBatch(*parts)
