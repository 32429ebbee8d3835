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
from mambakit.domains.speech.audio import soundfile_module
from mambakit.domains.speech.recognize.alignment import frames_needed
from mambakit.domains.speech.recognize.tokenizer import (
    TextTokenizer,
    normalised,
    unknown_characters,
    unknown_sentence,
)
from mambakit.domains.speech.utterances import Utterances

_MOST_HOURS = 20.0  # in memory: 4.6 GB at 16 kHz
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


class OnDisk(Sequence[Tensor]):
    """Recordings that are read when they are asked for.

    Args:
        utterances: Where they are.
        rows: Their places in the table.
        lengths: Samples of each.
        rate_hz: To read at.
    """

    def __init__(
        self, utterances: Utterances, rows: Sequence[int], lengths: Sequence[int], rate_hz: int
    ) -> None:
        self.utterances, self.rows, self.lengths, self.rate_hz = utterances, rows, lengths, rate_hz

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Tensor:  # type: ignore[override]
        """Raises a DataError if the file, whose header was read before, can't be read."""
        samples = self.utterances.audio(self.rows[place], rate_hz=self.rate_hz).samples
        n = self.lengths[place]  # resampling and times in manifests round by one
        return torch.nn.functional.pad(samples[:n], (0, max(0, n - len(samples))))

    def take(self, places: Sequence[int]) -> OnDisk:
        """Some of them."""
        return OnDisk(
            self.utterances, [self.rows[i] for i in places], [self.lengths[i] for i in places], self.rate_hz
        )


def lengths_of(samples: Sequence[Tensor]) -> list[int]:
    """Samples of each, without reading what is on disk."""
    return list(samples.lengths) if isinstance(samples, OnDisk) else [len(one) for one in samples]


@dataclass(frozen=True)
class Recordings:
    """Samples, transcripts and rows, side by side."""

    samples: Sequence[Tensor]
    texts: list[str]
    rows: list[int]
    """The places they have in the table."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> list[int]:
        """Samples of each."""
        return lengths_of(self.samples)

    def take(self, places: Sequence[int]) -> Recordings:
        """Some of them."""
        own = self.samples
        samples = own.take(places) if isinstance(own, OnDisk) else [own[i] for i in places]
        return Recordings(samples, [self.texts[i] for i in places], [self.rows[i] for i in places])


def read_recordings(
    utterances: Utterances, places: NDArray[np.int64], rate_hz: int
) -> tuple[Recordings, list[tuple[str, str]]]:
    """The recordings of a part; those that can't be read, or say nothing, are left out with the reason.

    More than 20 hours stay on disk; of those the headers are read.
    """
    texts: dict[int, str] = {}
    left_out: list[tuple[str, str]] = []
    for place in places.tolist():
        texts[place] = normalised(utterances.table["text"].iloc[place] or "")
        if not texts[place]:
            left_out.append((str(utterances.table["path"].iloc[place]), "its transcript is empty"))
            del texts[place]
    lengths = {row: samples_by_header(utterances, row, rate_hz) for row in texts}
    stays = sum(lengths.values()) > _MOST_HOURS * 3600 * rate_hz
    samples: list[Tensor] = []
    rows = []
    for row, n in lengths.items():
        if not (stays and n):
            try:
                sound = utterances.audio(row, rate_hz=rate_hz).samples
            except DataError as error:
                left_out.append((str(utterances.table["path"].iloc[row]), str(error)))
                continue
            lengths[row] = len(sound)
            if not stays:
                samples.append(sound)
        rows.append(row)
    read = OnDisk(utterances, rows, [lengths[row] for row in rows], rate_hz) if stays else samples
    return Recordings(read, [texts[row] for row in rows], rows), left_out


def samples_by_header(utterances: Utterances, row: int, rate_hz: int) -> int:
    """How many samples a row has at a rate, by its file's header; 0 where that can't be read."""
    soundfile = soundfile_module()
    path, start, end = (utterances.table[name].iloc[row] for name in ("path", "start_s", "end_s"))
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError):
        return 0
    first = round(float(start) * info.samplerate)
    last = info.frames if np.isnan(end) else min(round(float(end) * info.samplerate), info.frames)
    return max(0, math.ceil((last - first) * rate_hz / info.samplerate))


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
    for i, (n_samples, text) in enumerate(zip(recordings.lengths, recordings.texts, strict=True)):
        name = str(utterances.table["path"].iloc[recordings.rows[i]])
        if bad := tokenizer.unknown(text):
            left_out.append((name, f"{tokenizer.wanting}: {' '.join(bad)}"))
            continue
        needed, there = frames_needed(tokenizer.encode(text).values.tolist()), n_samples // frame_samples
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


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Samples and symbols of each."""

    def __init__(self, recordings: Recordings, tokenizer: TextTokenizer) -> None:
        self.samples = recordings.samples
        self.ids = [tokenizer.encode(text).values for text in recordings.texts]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.samples[place], self.ids[place]


def training_loader(
    recordings: Recordings, data: Dataset[tuple[Tensor, Tensor]], batch_size: int, n_processes: int = 0
) -> DataLoader[SpeechBatch]:
    """In batches of like length and an order of chance.

    Args:
        recordings: All of them.
        data: Samples and symbols of each, as they are or changed.
        batch_size: Recordings a batch.
        n_processes: That read those on disk; what is in memory takes none.
    """
    n_processes = n_processes if isinstance(recordings.samples, OnDisk) else 0
    return DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=LengthBatches(recordings.lengths, batch_size),
        collate_fn=_collated,
        num_workers=n_processes,
        persistent_workers=n_processes > 0,
    )


def measuring_loader(
    recordings: Recordings, tokenizer: TextTokenizer, batch_size: int = 32, n_processes: int = 0
) -> DataLoader[SpeechBatch]:
    """Recordings as they are, in their order."""
    return DataLoader(
        Pairs(recordings, tokenizer),  # type: ignore[arg-type]
        batch_size,
        collate_fn=_collated,
        num_workers=n_processes if isinstance(recordings.samples, OnDisk) else 0,
    )


def _collated(pairs: list[tuple[Tensor, Tensor]]) -> SpeechBatch:
    parts = []
    for side in zip(*pairs, strict=True):
        parts += [
            torch.nn.utils.rnn.pad_sequence(list(side), batch_first=True),
            torch.tensor([len(one) for one in side]),
        ]
    return SpeechBatch(*parts)
