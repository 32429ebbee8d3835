"""Softmax attention with rotary positions and a key-value state (Vaswani et al. 2017; Su et al. 2021).

Rotary embedding: arXiv:2104.09864, section 3.4.2.
Grouped key-value heads: Ainslie et al. 2023, arXiv:2305.13245.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import Block, padding_mask
from mambakit.core.blocks.ragged import sequence_starts
from mambakit.core.blocks.registry import register_block
from mambakit.core.state import State


@register_block("attention")
class Attention(Block):
    """Multi-head attention; the state holds every key and value so far, so it grows with the sequence.

    Args:
        d_model: Width of input and output.
        n_heads: Query heads; one per 64 channels by default. Divides ``d_model``.
        n_kv_heads: Key and value heads, each shared by ``n_heads / n_kv_heads`` query heads; ``n_heads``
            by default.
        causal: A token sees only itself and what came before. Otherwise it sees its whole sequence, and
            there is no state.
        rope: Rotate queries and keys by their positions, which restart in every packed sequence.
        rope_theta: Base of the rotation's wavelengths.
        bias: Biases of both projections.

    Raises:
        ValueError: On sizes that do not divide, or an odd head with ``rope``.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        causal: bool = True,
        rope: bool = True,
        rope_theta: float = 10000.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if n_heads is None:
            n_heads = max(1, d_model // 64)
        if n_kv_heads is None:
            n_kv_heads = n_heads
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"n_heads: d_model={d_model} is not divisible by n_heads={n_heads}")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads: n_heads={n_heads} is not divisible by n_kv_heads={n_kv_heads}")
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.head_dim = d_model // n_heads
        self.causal = causal
        self.rope = rope
        self.rope_theta = rope_theta
        if rope and self.head_dim % 2:
            raise ValueError(
                f"rope: rotates pairs of channels, but d_model={d_model} / n_heads={n_heads} is the odd "
                f"head_dim={self.head_dim}"
            )
        d_kv = n_kv_heads * self.head_dim
        self._split = [n_heads + n_kv_heads, n_kv_heads]  # heads of queries and keys, and of values
        heads = (None, n_kv_heads, self.head_dim)
        self._shapes: dict[str, tuple[int | None, ...]] = (
            {"key": heads, "value": heads, "valid": (None,)} if causal else {}
        )
        self.in_proj = nn.Linear(d_model, d_model + 2 * d_kv, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return self._shapes

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """An empty cache.

        ``key`` and ``value`` are ``(batch, cached, n_kv_heads, head_dim)``; ``valid`` ``(batch, cached)``
        marks what a row may look at, so that rows of different lengths share one cache.
        """
        self._refuse_unless_causal()
        device, dtype = self._place(device, dtype)
        empty = torch.zeros(batch, 0, self.n_kv_heads, self.head_dim, device=device, dtype=dtype)
        return State.of(key=empty, value=empty, valid=torch.zeros(batch, 0, device=device, dtype=torch.bool))

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        batch, length, _ = x.shape
        qk, v = self.in_proj(x).unflatten(-1, (-1, self.head_dim)).split(self._split, dim=2)
        if self.rope:
            qk = rotate(qk, self._positions(x, state, seq_idx), self.rope_theta)
        q, k = qk.split([self.n_heads, self.n_kv_heads], dim=2)
        new_valid = torch.ones(batch, length, device=x.device, dtype=torch.bool)
        if lengths is not None:
            new_valid = ~padding_mask(lengths, length)
        keys, values = k, v
        if state is not None:
            keys = torch.cat([state["key"].to(k.dtype), k], dim=1)
            values = torch.cat([state["value"].to(v.dtype), v], dim=1)
        plain = state is None and seq_idx is None and (self.causal or lengths is None)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=None if plain else self._mask(new_valid, state, seq_idx)[:, None],
            is_causal=plain and self.causal,  # right padding is after every real token
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        y = self.out_proj(y.transpose(1, 2).flatten(-2))
        if not self.causal:
            return y, State.of()
        if seq_idx is not None:  # the row's last sequence goes on
            new_valid = seq_idx == seq_idx[:, -1:]
        valid = new_valid
        if state is not None:
            past = state["valid"]
            if seq_idx is not None:
                past = past & new_valid[:, :1]
            valid = torch.cat([past, new_valid], dim=1)
        following = State.of(key=keys, value=values, valid=valid)
        if lengths is None and seq_idx is None:
            return y, following
        return y, compact(following)

    def mix_step(self, x: Tensor, state: State, inplace: bool = False) -> tuple[Tensor, State]:
        y, state = self.mix(x.unsqueeze(1), state, None, None)
        return y.squeeze(1), state

    def _positions(self, x: Tensor, state: State | None, seq_idx: Tensor | None) -> Tensor:
        """Position of each token in its own sequence, ``(batch or 1, length)``."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        if seq_idx is not None:
            positions = positions - sequence_starts(seq_idx)
        if state is not None:
            offset = state["valid"].sum(1, keepdim=True)
            if seq_idx is not None:
                offset = offset * (seq_idx == seq_idx[:, :1])
            positions = positions + offset
        return positions

    def _mask(self, new_valid: Tensor, state: State | None, seq_idx: Tensor | None) -> Tensor:
        """Which key each query sees, ``(batch, length, past + length)``."""
        batch, length = new_valid.shape
        own = torch.eye(length, device=new_valid.device, dtype=torch.bool)
        if self.causal:
            seen = torch.ones(length, length, device=new_valid.device, dtype=torch.bool).tril()
        else:
            # a padded query sees itself: a softmax over nothing would be NaN
            seen = new_valid[:, None, :] | own
        seen = seen.expand(batch, length, length)
        if seq_idx is not None:
            seen = seen & (seq_idx[:, :, None] == seq_idx[:, None, :])
        if state is None:
            return seen
        past = state["valid"][:, None, :].expand(batch, length, -1)
        if seq_idx is not None:
            past = past & (seq_idx == seq_idx[:, :1])[:, :, None]
        return torch.cat([past, seen], dim=2)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate channel pairs ``(i, i + head_dim/2)`` of ``x`` by ``positions * theta**(-2i/head_dim)``.

    Args:
        x: ``(batch, length, n_heads, head_dim)``.
        positions: ``(batch or 1, length)``.
        theta: Base of the wavelengths.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angles = (positions.to(dtype)[..., None] * frequencies).unsqueeze(-2)  # [b, l, 1, p/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def compact(state: State) -> State:
    """Move every row's valid entries to the front, in order, and drop the columns that no row uses."""
    if torch.compiler.is_compiling():  # the size would depend on data; the mask alone is right too
        return state
    valid = state["valid"]
    order = torch.argsort(~valid, dim=1, stable=True)
    order = order[:, : int(valid.sum(1).max()) if valid.shape[0] else 0]
    rows = torch.arange(valid.shape[0], device=valid.device)[:, None]
    return state.map(lambda tensor: tensor[rows, order])
