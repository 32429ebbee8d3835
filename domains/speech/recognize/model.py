"""The recogniser: log-mel frames, an encoder, and symbols by CTC, a transducer or attention.

samples -> log-mel -> convolutions -> Mamba-2 layers -> vectors -> log-probabilities of symbols, one blank
                                                            `---> transducer or attention decoder, if any
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from mambakit.core.blocks.base import padding_mask
from mambakit.core.heads import CTCHead
from mambakit.core.hub import HubModel
from mambakit.core.state import State
from mambakit.domains.speech.about import RECOGNIZER
from mambakit.domains.speech.encoder import Encoder
from mambakit.domains.speech.frontend import FrontEnd
from mambakit.domains.speech.recognize.attention import AttentionDecoder
from mambakit.domains.speech.recognize.config import RecognizerConfig
from mambakit.domains.speech.recognize.gru import GruEncoder
from mambakit.domains.speech.recognize.predictor import Transducer
from mambakit.domains.speech.recognize.reach import Activity, reaching
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID, TextTokenizer
from mambakit.domains.speech.recognize.units import load_tokenizer
from mambakit.domains.speech.recognize.words import Said, Spoken, Word, words_of

_PIECE_S = 20.0  # of a long recording that is run at once


class Recognizer(nn.Module, HubModel):
    """Recordings to log-probabilities of symbols.

    Args:
        config: The network and how many symbols there are.

    Attributes:
        tokenizer: What the symbols are; lies in the model's folder.
        head: CTC, which every recogniser has: it aligns texts to the sound.
        decoder: What writes the text beside it; None where CTC does.
    """

    about = RECOGNIZER

    tokenizer: TextTokenizer

    def __init__(self, config: RecognizerConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.model
        self.front_end = FrontEnd(shape.front_end)
        self.encoder = GruEncoder(shape.encoder) if shape.network == "bigru" else Encoder(shape.encoder)
        width = shape.encoder.d_model
        self.head = CTCHead(d_model=width, n_classes=config.n_ids, blank=BLANK_ID)
        self.decoder: Transducer | AttentionDecoder | None = None
        if shape.head == "rnnt":
            self.decoder = Transducer(width, config.n_ids, shape.decoder)
        elif shape.head == "attention":
            self.decoder = AttentionDecoder(width, config.n_ids, shape.decoder)

    @property
    def causal(self) -> bool:
        """Whether the vectors of sound depend on nothing that comes later."""
        return self.encoder.causal and self.config.model.front_end.normalise != "utterance"

    @property
    def streams(self) -> bool:
        """Whether it can write while it hears."""
        return self.causal and not isinstance(self.decoder, AttentionDecoder)

    @property
    def repeats(self) -> bool:
        """Whether a symbol that two frames in turn say is two symbols; under CTC it is one."""
        return isinstance(self.decoder, Transducer)

    @property
    def rate_hz(self) -> int:
        """Sampling rate it hears."""
        return self.config.model.front_end.rate_hz

    @property
    def frame_samples(self) -> int:
        """Samples from one frame of symbols to the next."""
        return self.config.model.front_end.hop * self.config.model.encoder.subsampling

    @property
    def frame_s(self) -> float:
        """The same in seconds."""
        return self.frame_samples / self.rate_hz

    @property
    def n_tail(self) -> int:
        """Samples of silence that it hears behind the end of a recording."""
        return round(self.config.model.tail_s * self.rate_hz) if self.causal else 0

    def frames_of(self, n_samples: Tensor) -> Tensor:
        """Frames of symbols that so many samples make, without the silence behind them."""
        return self.encoder.lengths_of(self.front_end.frames_of(n_samples))

    def with_tail(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Right-padded recordings ``(batch, n_samples)`` with the silence behind each, and their lengths."""
        if lengths is None:
            lengths = torch.full((len(samples),), samples.shape[1], device=samples.device)
        if self.n_tail == 0:
            return samples, lengths
        samples = samples.masked_fill(padding_mask(lengths, samples.shape[1]), 0.0)
        return torch.nn.functional.pad(samples, (0, self.n_tail)), lengths + self.n_tail

    def vectors(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The encoder's ``(batch, n, d_model)`` of recordings with their tails, and how many are real."""
        x, lengths = self.encoder(*self.front_end(*self.with_tail(samples, lengths)))
        return x, lengths

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """CTC's log-probabilities ``(batch, n, n_ids)`` of ``vectors``, and how many are real."""
        x, lengths = self.vectors(samples, lengths)
        return self.head(x), lengths

    def loss(self, x: Tensor, lengths: Tensor, ids: Tensor, id_lengths: Tensor) -> Tensor:
        """A symbol's loss, of the encoder's vectors; arguments as ``CTCHead.loss``."""
        loss = self.head.loss(self.head(x), ids, lengths, id_lengths)
        if self.decoder is None:
            return loss
        share = self.config.model.ctc_weight
        return share * loss + (1 - share) * self.decoder.loss(x, lengths, ids, id_lengths)

    def written(self, x: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest symbols of each row, one by one."""
        if self.decoder is None:
            return self.head.best_path(self.head(x), lengths)
        return self.decoder.written(x, lengths)

    def init_state(self, batch: int) -> State:
        """Before the first sample. Raises a RuntimeError if the model can't stream."""
        return State.of(front_end=self.front_end.init_state(batch), encoder=self.encoder.init_state(batch))

    def step(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """The next samples ``(batch, n)``, any n, and CTC's log-probabilities ``(batch, m, n_ids)`` of it."""
        x, state = self.step_vectors(samples, state)
        return self.head(x), state

    def step_vectors(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """The same with the vectors ``(batch, m, d_model)``."""
        by = self.config.model.encoder.subsampling  # fewer frames complete no vector
        frames, front_end = self.front_end.step(samples, state["front_end"], by)
        encoder = state["encoder"]
        if frames.shape[1] == 0:
            vectors = frames.new_zeros(len(frames), 0, self.config.model.encoder.d_model)
        else:
            vectors, encoder = self.encoder.step(frames, encoder)
        return vectors, State.of(front_end=front_end, encoder=encoder)

    def said_before(self, batch: int) -> State:
        """Where the text of each row stands before the first frame; empty under CTC, which knows none."""
        return self.decoder.init_state(batch) if isinstance(self.decoder, Transducer) else State.of()

    @torch.no_grad()
    def said(self, x: Tensor, state: State) -> tuple[list[list[list[Said]]], State]:
        """What each frame of the next vectors ``(batch, n, d_model)`` says, likeliest symbol by symbol.

        Under CTC that is a symbol a frame, perhaps that of the frame before again.

        Raises:
            RuntimeError: With an attention decoder, which has no frames.
        """
        if isinstance(self.decoder, AttentionDecoder):
            raise RuntimeError(
                "an attention decoder writes whole recordings; rnnt and ctc write frame by frame"
            )
        if self.decoder is not None:
            return self.decoder.greedy(x, state)
        values, symbols = (one.tolist() for one in self.head(x).max(-1))
        return [
            [[] if symbol == BLANK_ID else [(symbol, value)] for symbol, value in zip(*row, strict=True)]
            for row in zip(symbols, values, strict=True)
        ], state

    @torch.no_grad()
    def vectors_of(self, samples: Tensor) -> Tensor:
        """``(n_frames, d_model)`` of one recording ``(n_samples,)``; in pieces if that is the same."""
        samples = samples.to(self.head.proj.weight.device)
        size = self.frame_samples * max(1, round(_PIECE_S / self.frame_s))
        if not self.causal or len(samples) <= size:
            return self.vectors(samples[None])[0][0]
        samples = torch.nn.functional.pad(samples, (0, self.n_tail))
        state, found = self.init_state(1), []
        for piece in samples.split(size):
            vectors, state = self.step_vectors(piece[None], state)
            found.append(vectors[0])
        return torch.cat(found)

    @torch.no_grad()
    def log_probabilities(self, samples: Tensor) -> Tensor:
        """CTC's ``(n_frames, n_ids)`` of one recording ``(n_samples,)``, on the CPU."""
        return self.head(self.vectors_of(samples)).cpu()

    def words(
        self,
        symbols: Iterable[Spoken],
        activity: Activity,
        seconds: float = math.inf,
        since_s: float = 0.0,
    ) -> list[Word]:
        """The words that symbols spell, with the times of their sound.

        Args:
            symbols: In their order.
            activity: Where somebody speaks.
            seconds: When the recording is over.
            since_s: When the word before these was over.
        """
        tokenizer = self.tokenizer
        written = words_of(symbols, tokenizer.pieces, self.frame_s, tokenizer.spelled, seconds)
        return reaching(written, activity, seconds, since_s)

    def save_extra(self, folder: Path) -> None:
        """The tokenizer."""
        self.tokenizer.save(folder)

    def load_extra(self, folder: Path) -> None:
        """The tokenizer."""
        self.tokenizer = load_tokenizer(folder, self.config.model.units)
