"""Labelled recordings in memory, and their batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mambakit.core.errors import DataError
from mambakit.domains.speech.utterances import Split, Utterances


class ClipBatch(NamedTuple):
    """Recordings padded to the longest."""

    samples: Tensor
    """``(batch, n_samples)`` float32."""
    lengths: Tensor
    """``(batch,)`` int64."""
    labels: Tensor
    """``(batch,)`` int64."""


@dataclass(frozen=True)
class Clips:
    """Recordings of one rate, and their classes."""

    samples: list[Tensor]
    """``(n,)`` each."""
    labels: Tensor
    """``(n_clips,)`` int64."""

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, places: Iterable[int]) -> Clips:
        """Some of them."""
        chosen = [int(place) for place in places]
        return Clips([self.samples[place] for place in chosen], self.labels[chosen])


def classes_of(utterances: Utterances, split: Split) -> list[str]:
    """The labels of the training part, in order: numbers by size, others by name.

    Raises:
        DataError: If there are fewer than two, or validation has one that training has not.
    """
    labels = utterances.table["label"].to_numpy(dtype=object)
    known = sorted(
        {str(one) for one in labels[split.train]}, key=lambda one: (not one.isdigit(), len(one), one)
    )
    if all(not one.isdigit() for one in known):
        known.sort()
    if len(known) < 2:
        raise DataError(f"{utterances.name}: to classify takes two labels, training has {', '.join(known)}")
    for part in ("validation", "test"):
        new = sorted({str(one) for one in labels[getattr(split, part)]} - set(known))
        if new:
            raise DataError(f"{utterances.name}: {part} has the label {new[0]!r}, which training has not")
    return known


def read_clips(
    utterances: Utterances, classes: Sequence[str], rate_hz: int, least: int
) -> tuple[Clips, list[int], list[tuple[str, str]]]:
    """All recordings that can be read.

    Args:
        utterances: Where they lie.
        classes: Names of the labels, in order.
        rate_hz: Rate to resample to.
        least: Samples that a recording must have.

    Returns:
        The recordings, the places that they have in ``utterances``, and which were left out and why.

    Raises:
        DataError: If none can be read.
    """
    index = {name: i for i, name in enumerate(classes)}
    samples, labels, places, bad = [], [], [], []
    for place, label in enumerate(utterances.table["label"]):
        try:
            audio = utterances.audio(place, rate_hz=rate_hz)
            check_clip(audio.samples, least, rate_hz, str(utterances.table["path"].iloc[place]))
        except DataError as error:
            bad.append((str(utterances.table["path"].iloc[place]), str(error)))
            continue
        samples.append(audio.samples)
        labels.append(index[str(label)])
        places.append(place)
    if not samples:
        raise DataError(f"{utterances.name}: no recording can be read; the first, {bad[0][1]}")
    return Clips(samples, torch.tensor(labels)), places, bad


def check_clip(samples: Tensor, least: int, rate_hz: int, name: str) -> None:
    """Raise a DataError if a recording is too short for a single vector, or digitally silent."""
    if len(samples) < least:
        raise DataError(
            f"{name}: too short: {len(samples) / rate_hz:.3f} s, at least {least / rate_hz:.3f} s are needed"
        )
    if not bool(samples.any()):
        raise DataError(f"{name}: silent: every sample is zero")


def places_in(kept: Sequence[int], part: np.ndarray) -> list[int]:
    """Where the utterances of a part are among those kept."""
    there = {place: i for i, place in enumerate(kept)}
    return [there[int(place)] for place in part if int(place) in there]


def training_loader(clips: Clips, batch_size: int) -> DataLoader[ClipBatch]:
    """Recordings as they are, in an order of chance."""
    return DataLoader(
        list(zip(clips.samples, clips.labels, strict=True)),  # type: ignore[arg-type]
        batch_size,
        shuffle=True,
        collate_fn=_collated,
        drop_last=len(clips) > batch_size,
    )


def measuring_loader(clips: Clips, batch_size: int = 64) -> DataLoader[ClipBatch]:
    """Recordings as they are, in their order."""
    return DataLoader(
        list(zip(clips.samples, clips.labels, strict=True)),  # type: ignore[arg-type]
        batch_size,
        collate_fn=_collated,
    )


def padded(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``(batch, n)`` with zeros at the end of shorter ones, and their lengths."""
    lengths = torch.tensor([len(one) for one in samples])
    return torch.nn.utils.rnn.pad_sequence(list(samples), batch_first=True), lengths


def _collated(pairs: list[tuple[Tensor, Tensor]]) -> ClipBatch:
    samples, lengths = padded([samples for samples, _ in pairs])
    return ClipBatch(samples, lengths, torch.stack([label for _, label in pairs]))
