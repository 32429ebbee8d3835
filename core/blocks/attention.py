"""Softmax attention with rotary positions and a key-value state, over all that came or a sliding window.

Attention: Vaswani et al. 2017, arXiv:1706.03762. Rotary positions: Su et al. 2021, arXiv:2104.09864.
Grouped key-value heads: Ainslie et al. 2023, arXiv:2305.13245.
Norms of queries and keys: Henry et al. 2020, arXiv:2010.04245.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambakit.core.blocks.base import Block, padding_mask
from mambakit.core.blocks.norm import RMSNorm
from mambakit.core.blocks.ragged import sequence_starts
from mambakit.core.blocks.registry import register_block
from mambakit.core.blocks.rotary import rotate
from mambakit.core.blocks.sliding import attend_sliding, next_ring, sliding_step
from mambakit.core.state import State


@register_block("attention")
class Attention(Block):
    """Multi-head attention.

    Without a window the state holds every key and value so far: it grows with the sequence, and a step
    copies it. With one it is a ring of a fixed size, which ``step(inplace=True)`` overwrites. A window as
    long as the longest sequence gives the outputs of full attention from such a ring.

    Args:
        d_model: Width of input and output.
        n_heads: Query heads; one per 64 channels by default.
        n_kv_heads: Key and value heads, each shared by ``n_heads / n_kv_heads`` query heads; ``n_heads``
            by default.
        head_dim: Channels of a head; ``d_model / n_heads`` by default.
        window: Tokens that a token sees, itself among them; all by default.
        causal: A token sees only itself and what came before. Otherwise it sees its whole sequence (or
            ``window - 1`` tokens on either side), and there is no state.
        rope: Rotate queries and keys by their positions, which restart in every packed sequence.
        rope_theta: Base of the rotation's wavelengths.
        rope_fraction: Share of a head's channels that is rotated, the first ones.
        qk_norm: RMSNorm over each head of queries and keys, before the rotation.
        scale: Factor of the scores; ``head_dim ** -0.5`` by default.
        bias: Bias of the projections.
        out_bias: Bias of the output projection, if it is to differ from ``bias``.

    Raises:
        ValueError: On sizes that do not divide, a window below 1, or an odd number of channels to rotate.
    """

    projections = ("in_proj", "out_proj")

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        causal: bool = True,
        rope: bool = True,
        rope_theta: float = 10000.0,
        rope_fraction: float = 1.0,
        qk_norm: bool = False,
        scale: float | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
    ) -> None:
        super().__init__()
        if n_heads is None:
            n_heads = max(1, d_model // 64)
        if n_kv_heads is None:
            n_kv_heads = n_heads
        if n_heads < 1 or (head_dim is None and d_model % n_heads):
            raise ValueError(f"n_heads: d_model={d_model} is not divisible by n_heads={n_heads}")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads: n_heads={n_heads} is not divisible by n_kv_heads={n_kv_heads}")
        if head_dim is not None and head_dim < 1:
            raise ValueError(f"head_dim: expected at least 1, got {head_dim}")
        if window is not None and window < 1:
            raise ValueError(f"window: expected at least 1 (a token sees itself), got {window}")
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.head_dim = d_model // n_heads if head_dim is None else head_dim
        self.window = window
        self.causal = causal
        self.rope_theta = rope_theta
        self.n_rotated = _rotated_channels(self.head_dim, rope_fraction) if rope else 0
        self.scale = scale
        d_kv = n_kv_heads * self.head_dim
        self._split = [n_heads, n_kv_heads, n_kv_heads]
        heads = (window, n_kv_heads, self.head_dim)
        self._shapes: dict[str, tuple[int | None, ...]] = {}
        if causal:
            self._shapes = {"key": heads, "value": heads}
            self._shapes |= {"valid": (None,)} if window is None else {"position": ()}
        self.in_proj = nn.Linear(d_model, n_heads * self.head_dim + 2 * d_kv, bias=bias)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.out_proj = nn.Linear(
            n_heads * self.head_dim, d_model, bias=bias if out_bias is None else out_bias
        )

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return self._shapes

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """An empty cache.

        ``key`` and ``value`` are ``(batch, cached, n_kv_heads, head_dim)``. Without a window ``valid``
        ``(batch, cached)`` marks what a row may look at, so that rows of different lengths share one cache.
        With one ``cached`` is the window, and ``position`` ``(batch,)`` counts the tokens so far.
        """
        self._refuse_unless_causal()
        device, dtype = self._place(device, dtype)
        cached = self.window or 0
        empty = torch.zeros(batch, cached, self.n_kv_heads, self.head_dim, device=device, dtype=dtype)
        if self.window is None:
            valid = torch.zeros(batch, 0, device=device, dtype=torch.bool)
            return State.of(key=empty, value=empty, valid=valid)
        position = torch.zeros(batch, device=device, dtype=torch.int64)
        return State.of(key=empty, value=empty.clone(), position=position)

    def mix(
        self, x: Tensor, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        q, k, v = self._project(x, self._positions(x, state, seq_idx))
        if self.window is None:
            y, following = self._attend_to_all(q, k, v, state, seq_idx, lengths)
        else:
            y = attend_sliding(
                q, k, v,
                window=self.window, causal=self.causal, scale=self.scale,
                state=state, seq_idx=seq_idx, lengths=lengths,
            )  # fmt: skip
            following = next_ring(k, v, self.window, state, seq_idx, lengths) if self.causal else State.of()
        return self.out_proj(y.flatten(-2)), following

    def mix_step(self, x: Tensor, state: State, inplace: bool = False) -> tuple[Tensor, State]:
        if self.window is None:
            y, state = self.mix(x.unsqueeze(1), state, None, None)
            return y.squeeze(1), state
        q, k, v = self._project(x.unsqueeze(1), state["position"][:, None])
        y, state = sliding_step(
            q.squeeze(1), k.squeeze(1), v.squeeze(1),
            window=self.window, scale=self.scale, state=state, inplace=inplace,
        )  # fmt: skip
        return self.out_proj(y.flatten(-2)), state

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(batch, length, n_heads, head_dim)``, and keys and values of ``n_kv_heads``."""
        return self._heads(self.in_proj(x), positions)

    def _heads(self, projected: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = projected.unflatten(-1, (-1, self.head_dim)).split(self._split, dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.n_rotated:
            qk = rotate(torch.cat([q, k], dim=2), positions, self.rope_theta, self.n_rotated)
            q, k = qk.split(self._split[:2], dim=2)
        return q, k, v

    def _positions(self, x: Tensor, state: State | None, seq_idx: Tensor | None) -> Tensor:
        """Position of each token in its own sequence, ``(batch or 1, length)``."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        if seq_idx is not None:
            positions = positions - sequence_starts(seq_idx)
        if state is not None:
            done = state["valid"].sum(1) if self.window is None else state["position"]
            offset = done[:, None]
            if seq_idx is not None:
                offset = offset * (seq_idx == seq_idx[:, :1])
            positions = positions + offset
        return positions

    def _attend_to_all(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, State]:
        """Outputs ``(batch, length, n_heads, head_dim)`` and the cache with all keys and values."""
        batch, length = q.shape[:2]
        new_valid = torch.ones(batch, length, device=q.device, dtype=torch.bool)
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
            scale=self.scale,
            enable_gqa=self.n_kv_heads != self.n_heads,
        ).transpose(1, 2)
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
        return y, following if lengths is None and seq_idx is None else compact(following)

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


@register_block("sliding_attention")
class SlidingAttention(Attention):
    """Attention that always has a window: a kind of its own, so that one stack can hold both.

    Args:
        d_model: Width of input and output.
        window: Tokens that a token sees, itself among them.
        n_heads, n_kv_heads, head_dim, causal, rope, rope_theta, rope_fraction, qk_norm, scale, bias,
            out_bias: As in ``Attention``.

    Raises:
        ValueError: As ``Attention``.
    """

    def __init__(
        self,
        *,
        d_model: int,
        window: int = 512,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = True,
        rope: bool = True,
        rope_theta: float = 10000.0,
        rope_fraction: float = 1.0,
        qk_norm: bool = False,
        scale: float | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
    ) -> None:
        super().__init__(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            window=window,
            causal=causal,
            rope=rope,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction,
            qk_norm=qk_norm,
            scale=scale,
            bias=bias,
            out_bias=out_bias,
        )


def _rotated_channels(head_dim: int, fraction: float) -> int:
    if not 0.0 < fraction <= 1.0:
        raise ValueError(
            f"rope_fraction: expected 0 < rope_fraction <= 1, got {fraction} (rope=False turns it off)"
        )
    n_rotated = int(head_dim * fraction)
    if n_rotated % 2 or n_rotated == 0:
        raise ValueError(
            f"rope: rotates pairs of channels, not {n_rotated} of them: an odd head_dim={head_dim} times "
            f"rope_fraction={fraction}; choose other heads, or rope=False"
        )
    return n_rotated


def compact(state: State) -> State:
    """Move every row's valid entries to the front, in order, and drop the columns that no row uses."""
    if torch.compiler.is_compiling():  # the size would depend on data; the mask alone is right too
        return state
    valid = state["valid"]
    order = torch.argsort(~valid, dim=1, stable=True)
    order = order[:, : int(valid.sum(1).max()) if valid.shape[0] else 0]
    rows = torch.arange(valid.shape[0], device=valid.device)[:, None]
    return state.map(lambda tensor: tensor[rows, order])
