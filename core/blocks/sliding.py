"""Sliding-window attention: blocks of queries over a sequence, a ring of keys and values in a stream.

A token sees itself and the ``window - 1`` before it (Beltagy et al. 2020, arXiv:2004.05150, section 3.1; as
Mistral has it, Jiang et al. 2023, arXiv:2310.06825, section 2). The cost grows with ``length * window``. The
state is a ring with a slot for each of the last ``window`` tokens, the token at position t in slot
``t % window``: its size never changes, and a step overwrites one slot.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mambakit.core.blocks.ragged import sequence_starts
from mambakit.core.state import State

# Queries that share one slice of keys, at least: a narrow window's blocks would be too small to compute fast.
_LEAST_BLOCK = 64


def attend_sliding(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    causal: bool,
    scale: float | None,
    state: State | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    """Attention over a sequence, or the next piece of one.

    Args:
        q: ``(batch, length, n_heads, head_dim)``.
        k, v: ``(batch, length, n_kv_heads, head_dim)``.
        window: Tokens that a query sees, itself among them; if not ``causal`` as many again after it.
        causal: Only what came before.
        scale: Of the scores; ``head_dim ** -0.5`` if None.
        state: The ring of what came before.
        seq_idx, lengths: As in ``Block.forward``.

    Returns:
        ``(batch, length, n_heads, head_dim)``.
    """
    batch, length = q.shape[:2]
    gqa = q.shape[2] != k.shape[2]
    traced = torch.compiler.is_compiling()  # then no choice depends on the length: one graph serves all
    all_seen = state is None and seq_idx is None and not traced and length <= window
    if all_seen and (causal or lengths is None):  # right padding is after every real token
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=gqa)
        return y.transpose(1, 2)
    before, after = window - 1, 0 if causal else window - 1
    block = max(window, _LEAST_BLOCK)
    if torch.compiler.is_exporting():  # sizes are to be proved for every length: one block
        block, n_blocks = length, 1
    elif traced:
        n_blocks = torch.sym_max(2, length // block + 1)  # one block would be a graph of its own
    else:
        block = min(length, block)
        n_blocks = -(-length // block)
    spare = n_blocks * block - length
    past_k, past_v = (None, None) if state is None else _unroll(state, window)
    keys, values = (
        _slices(_extend(tensor, past, before, after + spare), block, before + after, n_blocks)
        for tensor, past in ((k, past_k), (v, past_v))
    )  # [b * c, g, before + q + after, p]
    queries = F.pad(q, (0, 0, 0, 0, 0, spare)).unflatten(1, (n_blocks, block)).flatten(0, 1)
    mask = _mask(batch, length, block, n_blocks, window, causal, state, seq_idx, lengths, q.device)
    mask = mask.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)
    y = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys, values, attn_mask=mask, scale=scale, enable_gqa=gqa
    )
    return y.transpose(1, 2).unflatten(0, (batch, n_blocks)).flatten(1, 2)[:, :length]


def _extend(x: Tensor, past: Tensor | None, before: int, after: int) -> Tensor:
    if past is None:
        return F.pad(x, (0, 0, 0, 0, before, after))
    return F.pad(torch.cat([past.to(x.dtype), x], dim=1), (0, 0, 0, 0, 0, after))


def _slices(x: Tensor, block: int, more: int, n_blocks: int) -> Tensor:
    """The keys each block of queries may see, ``(batch * n_blocks, n_heads, block + more, head_dim)``."""
    if n_blocks == 1:
        return x.transpose(1, 2)
    return x.unfold(1, block + more, block).transpose(-1, -2).flatten(0, 1)


def _mask(
    batch: int,
    length: int,
    block: int,
    n_blocks: int,
    window: int,
    causal: bool,
    state: State | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Which key of its slice each query sees, ``(batch or 1, n_blocks, block, before + block + after)``."""
    before, after = window - 1, 0 if causal else window - 1
    first = torch.arange(n_blocks, device=device)[:, None] * block
    query = first + torch.arange(block, device=device)  # [c, q] tokens of x
    key = first + torch.arange(-before, block + after, device=device)  # [c, k], negative: before x
    distance = query[:, :, None] - key[:, None, :]
    seen = (distance.abs() < window)[None]
    if causal:
        seen = seen & (distance >= 0)
    known = (key < length)[None]
    if state is None:
        known = known & (key >= 0)
    else:
        known = known & (key >= -state["position"][:, None, None])
    if lengths is not None and not causal:
        known = known & (key < lengths[:, None, None])
    seen = seen & known[:, :, None, :]
    if seq_idx is not None:
        # what came before x belongs to the row's first sequence
        of_query = seq_idx[:, query.clamp(max=length - 1)]  # [b, c, q]
        of_key = seq_idx[:, key.clamp(0, length - 1)]
        seen = seen & (of_query[..., None] == of_key[:, :, None, :])
    # a padded query sees itself: a softmax over nothing would be NaN
    return seen | (distance == 0)


def _unroll(state: State, window: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the last ``window - 1`` tokens in order, ``(batch, window - 1, n_heads, p)``."""
    position = state["position"]
    slots = (position[:, None] + torch.arange(1, window, device=position.device)) % window
    return _at(state["key"], slots), _at(state["value"], slots)


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None, None].expand(-1, -1, *x.shape[2:]))


def next_ring(
    k: Tensor, v: Tensor, window: int, state: State | None, seq_idx: Tensor | None, lengths: Tensor | None
) -> State:
    """The ring after each row's last real token, of its last sequence.

    Args:
        k, v: ``(batch, length, n_kv_heads, head_dim)``, at least one token.
        window: Slots.
        state: The ring before; None at the beginning.
        seq_idx, lengths: As in ``Block.forward``.
    """
    batch, length = k.shape[:2]
    start = torch.zeros(batch, device=k.device, dtype=torch.int64)
    position = start if state is None else state["position"]
    count = torch.full_like(start, length) if lengths is None else lengths
    if seq_idx is not None:
        start = sequence_starts(seq_idx)[:, -1]
        count = count - start
        position = position * (start == 0)
    end = position + count
    slots = torch.arange(window, device=k.device)
    latest = (end[:, None] - 1) - (end[:, None] - 1 - slots) % window  # [b, window]: position in each slot
    fresh = latest >= position[:, None]
    token = (latest - position[:, None] + start[:, None]).clamp(0, length - 1)

    def filled(x: Tensor, name: str) -> Tensor:
        if state is None:
            old = torch.zeros((), device=x.device, dtype=x.dtype)
        else:
            old = state[name].to(x.dtype).masked_fill((start > 0)[:, None, None, None], 0.0)
        return torch.where(fresh[..., None, None], _at(x, token), old)

    return State.of(key=filled(k, "key"), value=filled(v, "value"), position=end)


def sliding_step(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float | None, state: State, inplace: bool
) -> tuple[Tensor, State]:
    """One token, ``(batch, n_heads, head_dim)`` each: the output and the next ring.

    With ``inplace`` the slot is overwritten in the given ring; otherwise the ring is copied.
    """
    position = state["position"]
    slots = torch.arange(window, device=q.device)
    rings = []
    for ring, new in ((state["key"], k), (state["value"], v)):
        if inplace and ring.dtype == new.dtype:
            ring[torch.arange(len(new), device=q.device), position % window] = new
        else:
            hit = slots == (position % window)[:, None]
            ring = torch.where(hit[..., None, None], new[:, None], ring.to(new.dtype))
        rings.append(ring)
    keys, values = rings
    y = F.scaled_dot_product_attention(
        q.unsqueeze(2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=(slots <= position[:, None])[:, None, None],  # the order of keys does not matter
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    position = position.add_(1) if inplace else position + 1
    return y.squeeze(2), State.of(key=keys, value=values, position=position)
