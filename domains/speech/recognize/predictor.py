"""A transducer: a recurrent network over what is written, joined to the sound frame by frame.

Graves 2012, "Sequence Transduction with Recurrent Neural Networks" (arXiv:1211.3711), with Mamba in the
prediction network. In a frame it writes symbols until it says blank, which takes it to the next.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.backbone import Backbone
from mambakit.core.state import State
from mambakit.domains.speech.recognize.config import DecoderConfig
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID
from mambakit.domains.speech.recognize.torchaudio_loss import rnnt_loss
from mambakit.domains.speech.recognize.words import Said

MOST_A_FRAME = 12
"""Symbols that are written in one frame at most: a network that never says blank would not end. Much less
would cut words: a causal network waits until it is sure, and writes the rest of a word at once."""
_WINDOW = 32  # frames that are looked through for the next symbol at once


class Transducer(nn.Module):
    """Prediction network and joiner.

    Args:
        d_encoder: Width of the sound's vectors.
        n_ids: Symbols, the blank among them; it also stands before the first.
        config: The shape.
    """

    def __init__(self, d_encoder: int, n_ids: int, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_ids, config.d_model)
        self.backbone = Backbone(config.backbone())
        self.of_sound = nn.Linear(d_encoder, config.d_model)
        self.of_text = nn.Linear(config.d_model, config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, n_ids)

    def joined(self, sound: Tensor, text: Tensor) -> Tensor:
        """Logits ``(..., n_ids)`` of projected sound and text, both ``(..., d_model)``."""
        return self.out(torch.tanh(sound + text))

    def log_probabilities(self, sound: Tensor, text: Tensor) -> Tensor:
        """The same as log-probabilities, float32 at least."""
        logits = self.joined(sound, text)
        return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits ``(batch, n_frames, n_symbols + 1, n_ids)`` of all places in a text.

        Args:
            x: ``(batch, n_frames, d_encoder)``.
            ids: ``(batch, n_symbols)`` int64.
        """
        y, _ = self.backbone(self.embedding(F.pad(ids, (1, 0), value=BLANK_ID)))
        return self.joined(self.of_sound(x)[:, :, None], self.of_text(y)[:, None])

    def loss(self, x: Tensor, lengths: Tensor, ids: Tensor, id_lengths: Tensor) -> Tensor:
        """Mean over rows of the loss a symbol, as CTC's is; arguments as ``forward`` and ``CTCHead.loss``."""
        values = rnnt_loss(self(x, ids), ids, lengths, id_lengths)
        return (values / id_lengths.clamp(min=1)).mean()

    def init_state(self, batch: int) -> State:
        """Before the first symbol."""
        start = torch.full((batch,), BLANK_ID, device=self.out.weight.device)
        return self.advance(start, State.of(backbone=self.backbone.init_state(batch)))

    def advance(self, ids: Tensor, state: State) -> State:
        """After one more symbol ``(batch,)``; ``text`` is what the joiner takes, ``(batch, d_model)``."""
        y, inner = self.backbone.step(self.embedding(ids), state["backbone"])
        return State.of(backbone=inner, text=self.of_text(y))

    @torch.no_grad()
    def greedy(self, x: Tensor, state: State) -> tuple[list[list[list[Said]]], State]:
        """The likeliest symbols of the next frames.

        Args:
            x: ``(batch, n_frames, d_encoder)``, any number of frames.
            state: Where each row's text stands.

        Returns:
            What each frame of each row says, and the state behind it.
        """
        batch, n_frames = x.shape[:2]
        said: list[list[list[Said]]] = [[[] for _ in range(n_frames)] for _ in range(batch)]
        sound = self.of_sound(x)
        t = 0
        while t < n_frames:
            window = self.log_probabilities(sound[:, t : t + _WINDOW], state["text"][:, None])
            speaking = (window.argmax(-1) != BLANK_ID).any(0).nonzero()
            if not len(speaking):
                t += window.shape[1]
                continue
            t += int(speaking[0])
            state = self._in_frame(sound[:, t], state, [row[t] for row in said])
            t += 1
        return said, state

    def _in_frame(self, sound: Tensor, state: State, said: list[list[Said]]) -> State:
        is_open = torch.ones(len(sound), dtype=torch.bool, device=sound.device)
        for _ in range(MOST_A_FRAME):
            values, symbols = self.log_probabilities(sound, state["text"]).max(-1)
            is_open = is_open & (symbols != BLANK_ID)
            rows = is_open.nonzero()[:, 0].tolist()
            if not rows:
                break
            for row in rows:
                said[row].append((int(symbols[row]), float(values[row])))
            state = state.where_rows(is_open, self.advance(symbols, state))
        return state

    @torch.no_grad()
    def written(self, x: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest symbols of whole recordings ``(batch, n_frames, d_encoder)``."""
        said, _ = self.greedy(x, self.init_state(len(x)))
        return [
            [symbol for frame in row[:n] for symbol, _ in frame]
            for row, n in zip(said, lengths.tolist(), strict=True)
        ]
