"""New recordings to learn from, put together of words that a speaker says in others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mambakit.domains.speech.recognize.alignment import frames_needed
from mambakit.domains.speech.recognize.recordings import Pairs, Recordings
from mambakit.domains.speech.recognize.tokenizer import TextTokenizer, normalised
from mambakit.domains.speech.utterances import Utterances


class Piece(NamedTuple):
    """A word in a recording, with the pauses around it to their middles.

    Attributes:
        place: The recording's.
        begin, end: Its samples, ``begin <= sample < end``.
        word: What it says.
    """

    place: int
    begin: int
    end: int
    word: str


def pieces_of_speakers(recordings: Recordings, utterances: Utterances, rate_hz: int) -> list[list[Piece]]:
    """For each recording, the words that its speaker says in any of them.

    Without a name of the speaker they are the recording's own; none where the data do not say when words are
    heard.
    """
    speakers, lengths = utterances.table["speaker"], recordings.lengths
    names = [speakers.iloc[row] or place for place, row in enumerate(recordings.rows)]
    pieces: dict[object, list[Piece]] = {name: [] for name in names}
    for place, (name, row) in enumerate(zip(names, recordings.rows, strict=True)):
        times = utterances.word_times(row) or []
        words = [normalised(one.word) for one in times]
        if words != recordings.texts[place].split():
            continue
        middles = [(one.end_s + after.start_s) / 2 for one, after in itertools.pairwise(times)]
        edges = [0, *(round(rate_hz * middle) for middle in middles), lengths[place]]
        pieces[name] += [
            Piece(place, begin, end, word)
            for word, (begin, end) in zip(words, itertools.pairwise(edges), strict=True)
            if begin < end
        ]
    return [pieces[name] for name in names]


class Spliced(Dataset[tuple[Tensor, Tensor]]):
    """Recordings of which a share says other words of the same speaker, as many, in an order of chance.

    Training strings are few, and a network learns them by heart: so it never hears one twice (aligned data
    augmentation, Lam et al. 2021, arXiv:2104.01393, but whole recordings and one speaker's).

    Args:
        recordings: As they are.
        tokenizer: Fitted.
        pieces: Of ``pieces_of_speakers``.
        share: How many are put together anew.
        frame_samples: Samples a frame of symbols; what would be too short for its symbols is not made.
    """

    def __init__(
        self,
        recordings: Recordings,
        tokenizer: TextTokenizer,
        pieces: Sequence[Sequence[Piece]],
        share: float,
        frame_samples: int,
    ) -> None:
        self._recordings, self._tokenizer = recordings, tokenizer
        self._pairs = Pairs(recordings, tokenizer)
        self._pieces, self._share, self._frame_samples = pieces, share, frame_samples

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        """Samples ``(n,)`` and symbols ``(n_symbols,)``."""
        pieces = self._pieces[place]
        if not pieces or torch.rand(()) >= self._share:
            return self._pairs[place]
        n_words = len(self._recordings.texts[place].split())
        chosen = [pieces[i] for i in torch.randint(len(pieces), (n_words,)).tolist()]
        ids = self._tokenizer.encode(" ".join(one.word for one in chosen)).values
        n_samples = sum(one.end - one.begin for one in chosen)
        if frames_needed(ids.tolist()) > n_samples // self._frame_samples:
            return self._pairs[place]
        heard = self._recordings.samples
        return torch.cat([heard[one.place][one.begin : one.end] for one in chosen]), ids
