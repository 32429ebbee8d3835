"""The recogniser: log-mel frames, an encoder, and symbols by connectionist temporal classification.

samples -> log-mel -> convolutions -> Mamba-2 layers -> log-probabilities of symbols, one of them blank
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mambakit.core.heads import CTCHead
from mambakit.core.hub import HubModel
from mambakit.core.state import State
from mambakit.domains.speech.encoder import Encoder, EncoderConfig
from mambakit.domains.speech.frontend import FrontEnd
from mambakit.domains.speech.recognize.config import RecognizerConfig
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID, TextTokenizer, load_tokenizer

_PIECE_S = 20.0  # of a long recording that is run at once


class Recognizer(nn.Module, HubModel):
    """Recordings to log-probabilities of symbols.

    Args:
        config: The network and how many symbols there are.

    Attributes:
        tokenizer: What the symbols are; lies in the model's folder.
    """

    tokenizer: TextTokenizer

    def __init__(self, config: RecognizerConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.model
        self.front_end = FrontEnd(shape.front_end)
        self.encoder = GruEncoder(shape.encoder) if shape.network == "bigru" else Encoder(shape.encoder)
        self.head = CTCHead(d_model=shape.encoder.d_model, n_classes=config.n_ids, blank=BLANK_ID)

    @property
    def causal(self) -> bool:
        """Whether it can stream."""
        return self.encoder.causal and self.config.model.front_end.normalise != "utterance"

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

    def frames_of(self, n_samples: Tensor) -> Tensor:
        """Frames of symbols that so many samples make."""
        return self.encoder.lengths_of(self.front_end.frames_of(n_samples))

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(batch, n, n_ids)`` of ``(batch, n_samples)``, and how many frames are real."""
        return self.of_frames(*self.front_end(samples, lengths))

    def of_frames(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same from normalised log-mel frames ``(batch, n_frames, n_mels)``."""
        x, lengths = self.encoder(frames, lengths)
        return self.head(x), lengths

    def init_state(self, batch: int) -> State:
        """Before the first sample. Raises a RuntimeError if the model can't stream."""
        return State.of(front_end=self.front_end.init_state(batch), encoder=self.encoder.init_state(batch))

    def step(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """The next samples ``(batch, n)``, any n, and the log-probabilities ``(batch, m, n_ids)`` of it."""
        frames, front_end = self.front_end.step(samples, state["front_end"])
        encoder = state["encoder"]
        if frames.shape[1] == 0:
            vectors = frames.new_zeros(len(frames), 0, self.config.model.encoder.d_model)
        else:
            vectors, encoder = self.encoder.step(frames, encoder)
        return self.head(vectors), State.of(front_end=front_end, encoder=encoder)

    @torch.no_grad()
    def log_probabilities(self, samples: Tensor) -> Tensor:
        """``(n_frames, n_ids)`` of one recording ``(n_samples,)``, on the CPU; in pieces if it can stream."""
        samples = samples.to(self.head.proj.weight.device)
        size = self.frame_samples * max(1, round(_PIECE_S / self.frame_s))
        if not self.causal or len(samples) <= size:
            return self(samples[None])[0][0].cpu()
        state, found = self.init_state(1), []
        for piece in samples.split(size):
            said, state = self.step(piece[None], state)
            found.append(said[0].cpu())
        return torch.cat(found)

    def save_extra(self, folder: Path) -> None:
        """The tokenizer."""
        self.tokenizer.save(folder)

    def load_extra(self, folder: Path) -> None:
        """The tokenizer."""
        self.tokenizer = load_tokenizer(folder, self.config.model.units)


class GruEncoder(Encoder):
    """The baseline: the same convolutions, then two layers of GRU that read both ways.

    Args:
        config: Of the encoder that it stands beside; its width gives about as many parameters.
    """

    _LAYERS = 2

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        wanted = sum(parameter.numel() for parameter in self.backbone.parameters())
        width = max(8, min(range(8, 512), key=lambda h: abs(self._size(config.d_model, h) - wanted)))
        del self.backbone
        self.gru = nn.GRU(
            config.d_model, width, self._LAYERS, batch_first=True, bidirectional=True, dropout=config.dropout
        )
        self.out = nn.Linear(2 * width, config.d_model)

    @property
    def causal(self) -> bool:
        """It reads both ways."""
        return False

    @staticmethod
    def _size(d_model: int, h: int) -> int:
        return 2 * (3 * h * (d_model + h + 2)) + 2 * (3 * h * (3 * h + 2)) + d_model * (2 * h + 1)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Encoder.forward``."""
        x, _ = self._thinned(frames, self._before(len(frames), frames))
        lengths = self.lengths_of(lengths)
        if x.shape[1] == 0:
            return x, lengths
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.out(y), lengths
