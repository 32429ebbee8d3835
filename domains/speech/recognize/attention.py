"""A decoder that writes a text while it looks at the whole recording: recurrent layers with cross-attention.

Chorowski et al. 2015, "Attention-Based Models for Speech Recognition" (arXiv:1506.07503), with a Mamba block
for what is written so far and Vaswani et al.'s heads (arXiv:1706.03762, section 3.2) for the sound. Symbol 0
stands before the first symbol and behind the last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks import RMSNorm, build_block
from mambakit.core.blocks.base import padding_mask
from mambakit.core.state import State
from mambakit.domains.speech.recognize.config import DecoderConfig
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID

END_ID = BLANK_ID


class Memory(NamedTuple):
    """Recordings as the decoder looks at them.

    Attributes:
        keys, values: Of each layer, ``(batch, n_heads, n_frames, head_dim)``.
        real: ``(batch, 1, 1, n_frames)`` bool, False at padding.
    """

    keys: list[Tensor]
    values: list[Tensor]
    real: Tensor

    def rows(self, n: int) -> Memory:
        """One recording, for ``n`` texts."""
        return Memory(
            [one.expand(n, -1, -1, -1) for one in self.keys],
            [one.expand(n, -1, -1, -1) for one in self.values],
            self.real.expand(n, -1, -1, -1),
        )


class CrossAttention(nn.Module):
    """Heads that look from the text at the sound.

    Args:
        d_model: Width of the text's vectors.
        d_memory: Width of the sound's.
        n_heads: Heads; they divide ``d_model``.
    """

    def __init__(self, d_model: int, d_memory: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_memory, 2 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def look(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``(batch, n_frames, d_memory)``."""
        keys, values = self.key_value(memory).chunk(2, -1)
        return self._heads(keys), self._heads(values)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, real: Tensor) -> Tensor:
        """``(batch, length, d_model)`` to the same shape."""
        y = F.scaled_dot_product_attention(self._heads(self.query(x)), keys, values, attn_mask=real)
        return self.out(y.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class _Layer(nn.Module):
    def __init__(self, d_memory: int, config: DecoderConfig) -> None:
        super().__init__()
        self.block = build_block(config.block, config.d_model, config.block_options())
        self.cross = CrossAttention(config.d_model, d_memory, config.n_heads)
        self.norms = nn.ModuleList(RMSNorm(config.d_model) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: State | None, keys: Tensor, values: Tensor, real: Tensor
    ) -> tuple[Tensor, State]:
        y, state = self.block(self.norms[0](x), state)
        x = x + self.dropout(y)
        return x + self.dropout(self.cross(self.norms[1](x), keys, values, real)), state


class AttentionDecoder(nn.Module):
    """Log-probabilities of the next symbol, given the recording and the symbols before.

    Args:
        d_encoder: Width of the sound's vectors.
        n_ids: Symbols; 0 is the end.
        config: The shape.
    """

    def __init__(self, d_encoder: int, n_ids: int, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_ids, config.d_model)
        self.layers = nn.ModuleList(_Layer(d_encoder, config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model)
        self.out = nn.Linear(config.d_model, n_ids)

    def memory(self, x: Tensor, lengths: Tensor) -> Memory:
        """Recordings ``(batch, n_frames, d_encoder)``, right-padded, of so many frames, made ready."""
        pairs = [layer.cross.look(x) for layer in self._layers()]
        real = ~padding_mask(lengths.clamp(min=1).to(x.device), x.shape[1])
        return Memory([key for key, _ in pairs], [value for _, value in pairs], real[:, None, None])

    def forward(self, ids: Tensor, memory: Memory, state: State | None = None) -> tuple[Tensor, State]:
        """Log-probabilities ``(batch, length, n_ids)`` behind each of the symbols ``(batch, length)``.

        ``state`` is where the text stands that they continue; symbol 0 comes first.
        """
        x, states = self.embedding(ids), {}
        for i, layer in enumerate(self._layers()):
            past = None if state is None else state[str(i)]
            x, states[str(i)] = layer(x, past, memory.keys[i], memory.values[i], memory.real)
        logits = self.out(self.norm(x))
        kind = torch.promote_types(logits.dtype, torch.float32)
        return logits.log_softmax(-1, dtype=kind), State.of(**states)

    def loss(self, x: Tensor, lengths: Tensor, ids: Tensor, id_lengths: Tensor) -> Tensor:
        """Mean over rows of the cross-entropy a symbol, the end among them; arguments as ``CTCHead.loss``."""
        pads = padding_mask(id_lengths, ids.shape[1])
        ids = ids.masked_fill(pads, END_ID)
        said, _ = self(F.pad(ids, (1, 0), value=END_ID), self.memory(x, lengths))
        wanted = F.pad(ids, (0, 1), value=END_ID)  # the end follows each row's last symbol
        values = -said.gather(2, wanted[..., None])[..., 0]
        values = values.masked_fill(padding_mask(id_lengths + 1, wanted.shape[1]), 0.0)
        return (values.sum(1) / (id_lengths + 1)).mean()

    @torch.no_grad()
    def written(self, x: Tensor, lengths: Tensor) -> list[list[int]]:
        """The likeliest next symbol, one after the other, of recordings; at most one a frame."""
        memory, state = self.memory(x, lengths), None
        ids = torch.full((len(x), 1), END_ID, device=x.device)
        written: list[list[int]] = [[] for _ in range(len(x))]
        is_open = lengths.to(x.device) > 0
        for n in range(x.shape[1]):
            said, state = self(ids, memory, state)
            ids = said.argmax(-1)
            is_open = is_open & (ids[:, 0] != END_ID) & (lengths.to(x.device) > n)
            for row in is_open.nonzero()[:, 0].tolist():
                written[row].append(int(ids[row, 0]))
            if not bool(is_open.any()):
                break
        return written

    def _layers(self) -> list[_Layer]:
        return list(self.layers)  # type: ignore[arg-type]
