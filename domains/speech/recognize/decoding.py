"""From a recording to a transcript: the best path or a beam, and every word's time and confidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import Audio, resample
from mambakit.domains.speech.recognize.alignment import forced_alignment
from mambakit.domains.speech.recognize.formats import Line, Transcript, lines_of
from mambakit.domains.speech.recognize.fusion import Fusion, check_hotwords
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.ngram import NgramModel
from mambakit.domains.speech.recognize.search import beam_search, best_path
from mambakit.domains.speech.recognize.words import Spoken, Word, spoken_along, words_of


@dataclass(frozen=True)
class DecodeConfig:
    """How texts are chosen."""

    beam: int = 1
    """Texts that the search keeps; 1 takes the likeliest symbol of every frame."""
    lm: Path | None = None
    """A language model's .json, or a .txt with a sentence a line to make one of; needs a beam."""
    lm_weight: float = 0.5
    """How much the language model counts."""
    word_bonus: float = 0.0
    """Nats a word brings."""
    hotwords: list[str] | None = None
    """Words or phrases to expect; needs a beam."""
    hotword_boost: float = 4.0
    """Nats a hotword brings."""

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise UsageError(f"beam: expected at least 1, got {self.beam}")
        if self.beam == 1 and (self.lm is not None or self.hotwords or self.word_bonus):
            raise UsageError("lm, hotwords, word_bonus: have no effect with --decode.beam 1; try 16")

    def fusion(self, model: Recognizer) -> Fusion | None:
        """What is weighed beside the sound; None with the best path.

        Raises:
            UsageError: If the model can't write a hotword.
            DataError: If the language model can't be read.
        """
        if self.beam == 1:
            return None
        check_hotwords(model.tokenizer, self.hotwords or [])
        return Fusion(
            None if self.lm is None else NgramModel.load(self.lm),
            lm_weight=self.lm_weight,
            word_bonus=self.word_bonus,
            hotwords=self.hotwords or [],
            hotword_boost=self.hotword_boost,
        )


PRESET_DECODE = DecodeConfig()


class Decoder:
    """Log-probabilities to symbols, as the options say; the language model is read once.

    Args:
        model: Whose symbols.
        config: The options.
    """

    def __init__(self, model: Recognizer, config: DecodeConfig = PRESET_DECODE) -> None:
        self._pieces, self._config, self._fusion = model.tokenizer.pieces, config, config.fusion(model)
        self.greedy = config.beam == 1

    def __call__(self, log_probabilities: Tensor) -> list[Spoken]:
        """The symbols of ``(n_frames, n_symbols)`` and their frames; of a beam's text by forced alignment."""
        if self.greedy:
            return spoken_along(best_path(log_probabilities), log_probabilities)
        found = beam_search(log_probabilities, self._pieces, width=self._config.beam, fusion=self._fusion)
        return spoken_along(forced_alignment(log_probabilities, found[0].ids).path, log_probabilities)


def heard(model: Recognizer, audio: Audio) -> Tensor:
    """A recording's samples at the model's rate.

    Raises:
        DataError: If it is too short for a single frame.
    """
    samples = resample(audio.samples, audio.rate_hz, model.rate_hz)
    if int(model.frames_of(torch.tensor(len(samples)))) < 1:
        raise DataError(
            f"too short: {len(samples) / model.rate_hz:.3f} s, and at least {model.frame_s:.3f} s are needed"
        )
    return samples


def transcribe(model: Recognizer, audio: Audio, decoder: Decoder | None = None) -> Transcript:
    """What is said in a recording.

    Args:
        model: In evaluation mode.
        audio: At any rate.
        decoder: How texts are chosen; the best path by default.

    Raises:
        DataError: If it is too short for a single frame.
    """
    decoder = decoder or Decoder(model)
    said = model.log_probabilities(heard(model, audio))
    words = words_of(decoder(said), model.tokenizer.pieces, model.frame_s)
    return Transcript(lines_of(words), audio.seconds)


def align(model: Recognizer, audio: Audio, text: str) -> Transcript:
    """When each word of a known text is said; one line.

    Raises:
        DataError: If the text can't be written or is longer than the recording's frames allow.
    """
    if unknown := model.tokenizer.unknown(text):
        raise DataError(f"text: the model knows no {', '.join(map(repr, unknown))}")
    ids = model.tokenizer.encode(text).values.tolist()
    if not ids:
        raise DataError("text: it is empty")
    said = model.log_probabilities(heard(model, audio))
    symbols = spoken_along(forced_alignment(said, ids).path, said)
    words: list[Word] = words_of(symbols, model.tokenizer.pieces, model.frame_s)
    return Transcript((Line(tuple(words)),), audio.seconds)
