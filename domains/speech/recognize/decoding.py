"""From a recording to a transcript: the best path or a beam, and every word's time and confidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mambakit.core.config_checks import check_least, check_shares
from mambakit.core.errors import DataError, UsageError
from mambakit.domains.speech.audio import Audio, resample
from mambakit.domains.speech.recognize.alignment import forced_alignment
from mambakit.domains.speech.recognize.attention import AttentionDecoder
from mambakit.domains.speech.recognize.attention_search import attention_search
from mambakit.domains.speech.recognize.formats import Line, Transcript, lines_of
from mambakit.domains.speech.recognize.fusion import Fusion, check_hotwords
from mambakit.domains.speech.recognize.model import Recognizer
from mambakit.domains.speech.recognize.pieces import quiet_pieces
from mambakit.domains.speech.recognize.predictor import Transducer
from mambakit.domains.speech.recognize.prefixes import Hypothesis
from mambakit.domains.speech.recognize.reach import activity_of
from mambakit.domains.speech.recognize.search import beam_search
from mambakit.domains.speech.recognize.text_models import load_text_model
from mambakit.domains.speech.recognize.tokenizer import normalised
from mambakit.domains.speech.recognize.transducer_search import TransducerBeam
from mambakit.domains.speech.recognize.words import Spoken, spoken_along, spoken_in_frames


@dataclass(frozen=True)
class DecodeConfig:
    """How texts are chosen."""

    beam: int = 1
    """Texts that the search keeps; 1 takes the likeliest symbol each time."""
    lm: Path | None = None
    """A folder of `train --task language`, an n-gram model's .json, or a .txt with a sentence a line to make
    one of; needs a beam."""
    lm_weight: float = 0.5
    """How much the language model counts."""
    word_bonus: float = 0.0
    """Nats a word brings."""
    hotwords: list[str] | None = None
    """Words or phrases to expect; needs a beam."""
    hotword_boost: float = 4.0
    """Nats a hotword brings."""
    ctc_weight: float = 0.3
    """With an attention decoder: how much CTC counts beside it, 0 to 1."""

    def __post_init__(self) -> None:
        check_least(self, 1, "beam")
        check_shares(self, "ctc_weight")
        if self.beam == 1 and (self.lm is not None or self.hotwords or self.word_bonus):
            raise UsageError("lm, hotwords, word_bonus: have no effect with --decode.beam 1; try 16")
        for name, of in (("lm_weight", "lm"), ("hotword_boost", "hotwords")):
            if getattr(self, name) != getattr(DecodeConfig, name) and not getattr(self, of):
                raise UsageError(f"{name}: has no effect without --decode.{of}")

    def fusion(self, model: Recognizer) -> Fusion | None:
        """What is weighed beside the sound; None with the best path.

        Raises:
            UsageError: If the model can't write a hotword.
            DataError: If the language model can't be read.
        """
        if self.beam == 1:
            return None
        check_hotwords(model.tokenizer, self.hotwords or [])
        lm = None if self.lm is None else load_text_model(self.lm)
        if lm is not None and lm.unit == "characters" and model.config.model.units == "phones":
            raise UsageError(f"lm: {self.lm} is of characters, and the model writes phones; use one of words")
        return Fusion(
            lm,
            lm_weight=self.lm_weight,
            word_bonus=self.word_bonus,
            hotwords=self.hotwords or [],
            hotword_boost=self.hotword_boost,
            tokenizer=model.tokenizer,
        )


PRESET_DECODE = DecodeConfig()


class Decoder:
    """The encoder's vectors to symbols, as the options say; the language model is read once.

    Args:
        model: Which heard them.
        config: The options.

    Raises:
        UsageError, DataError: As ``DecodeConfig.fusion``; also on an option that the model makes no use of.
    """

    def __init__(self, model: Recognizer, config: DecodeConfig = PRESET_DECODE) -> None:
        self._model, self._config, self._fusion = model, config, config.fusion(model)
        self.greedy = config.beam == 1
        if config.ctc_weight != DecodeConfig.ctc_weight and not isinstance(model.decoder, AttentionDecoder):
            raise UsageError(
                "ctc_weight: only an attention decoder is weighed with CTC, and the model has none"
            )

    @torch.no_grad()
    def __call__(self, vectors: Tensor) -> list[Spoken]:
        """The symbols of ``(n_frames, d_model)`` and their frames.

        A transducer says when; the text of a beam under CTC, and of attention, is aligned by CTC.
        """
        model, writer = self._model, self._model.decoder
        if isinstance(writer, AttentionDecoder):
            return self._attended(writer, vectors)
        if self.greedy:
            said, _ = model.said(vectors[None], model.said_before(1))
            return spoken_in_frames(said[0], repeats=model.repeats)
        pieces, width = model.tokenizer.pieces, self._config.beam
        if isinstance(writer, Transducer):
            beam = TransducerBeam(writer, pieces, width=width, fusion=self._fusion)
            beam.feed(vectors)
            return beam.best()
        heard = model.head(vectors).cpu()
        return _aligned(heard, beam_search(heard, pieces, width=width, fusion=self._fusion)[0])

    def _attended(self, writer: AttentionDecoder, vectors: Tensor) -> list[Spoken]:
        """A long recording in pieces, with a space between them."""
        model = self._model
        said = model.head(vectors)
        symbols: list[Spoken] = []
        for begin, end in quiet_pieces(said, model.frame_s):
            if begin and " " in model.tokenizer.pieces:
                symbols.append(Spoken(model.tokenizer.pieces.index(" "), begin, begin + 1, 0.0))
            found = attention_search(
                writer,
                vectors[begin:end],
                said[begin:end],
                model.tokenizer.pieces,
                width=self._config.beam,
                ctc_weight=self._config.ctc_weight,
                fusion=self._fusion,
            )
            symbols += [
                one._replace(begin=one.begin + begin, end=one.end + begin)
                for one in _aligned(said[begin:end].cpu(), found[0])
            ]
        return symbols


def _aligned(log_probabilities: Tensor, found: Hypothesis) -> list[Spoken]:
    return spoken_along(forced_alignment(log_probabilities, found.ids).path, log_probabilities)


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
    samples = heard(model, audio)
    symbols = decoder(model.vectors_of(samples))
    words = model.words(symbols, activity_of(samples, model.rate_hz), audio.seconds)
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
    samples = heard(model, audio)
    said = model.log_probabilities(samples)
    symbols = spoken_along(forced_alignment(said, ids).path, said)
    found = model.words(symbols, activity_of(samples, model.rate_hz), audio.seconds)
    words = [
        word._replace(text=said)  # phones may spell another word that sounds alike
        for word, said in zip(found, normalised(text).split(), strict=True)
    ]
    return Transcript((Line(tuple(words)),), audio.seconds)
