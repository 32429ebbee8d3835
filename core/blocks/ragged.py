"""Index arithmetic for rows of different lengths and for packed rows; shared by the blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from mambakit.core.blocks.base import padding_mask
from mambakit.kernels.semantics import effective_dt, state_dtype


def finished_dt(
    dt: Tensor,
    dt_bias: Tensor,
    dt_limit: tuple[float, float],
    lengths: Tensor | None,
    elapsed: Tensor | None,
) -> Tensor:
    """The step size with its bias, softplus and limits applied, times ``elapsed``, and zero at padding.

    dt is the step by which the block's continuous-time system is discretised (Gu & Dao 2023,
    arXiv:2312.00752, section 2): over a gap ``elapsed`` times the ordinary one the state decays by
    exp(A dt elapsed), and the input enters with dt elapsed B. A step of size zero leaves the state as it was:
    exp(0 A) = 1 and no input enters.

    Args:
        dt: ``(batch, length, ...)``, or ``(batch, ...)`` of one token.
        dt_bias, dt_limit: As the scans take them.
        lengths: ``(batch,)`` for padded rows.
        elapsed: ``(batch, length)`` or ``(batch,)``.

    Raises:
        ValueError: If ``elapsed`` has not one number a token.
    """
    dt = effective_dt(dt, dt_bias, True, dt_limit, state_dtype(dt))
    if elapsed is not None:
        if elapsed.shape != dt.shape[:-1]:
            raise ValueError(
                f"elapsed: expected a number a token, {tuple(dt.shape[:-1])}, got {tuple(elapsed.shape)}"
            )
        dt = dt * elapsed.to(dt.dtype)[..., None]
    if lengths is None:
        return dt
    return dt.masked_fill(padding_mask(lengths, dt.shape[1])[..., None], 0.0)


def last_inputs(x: Tensor, past: Tensor | None, lengths: Tensor, width: int) -> Tensor:
    """A convolution's state after each row's last real token: its ``width - 1`` latest inputs.

    Args:
        x: Inputs ``(batch, length, channels)`` of right-padded rows.
        past: State before them, ``(batch, channels, width - 1)``; zero if None.
        lengths: ``(batch,)``.
        width: Taps of the convolution.

    Returns:
        ``(batch, channels, width - 1)``.
    """
    batch, _, channels = x.shape
    dtype = state_dtype(x)
    n = width - 1
    if past is None:
        past = torch.zeros(batch, channels, n, device=x.device, dtype=dtype)
    if n == 0:
        return past
    index = lengths[:, None] + torch.arange(-n, 0, device=x.device)  # [b, n], negative: before x
    from_x = x.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, channels)).to(dtype)
    from_past = past.to(dtype).gather(2, (index + n).clamp(max=n - 1)[:, None].expand(-1, channels, -1))
    return torch.where((index >= 0)[:, None], from_x.transpose(1, 2), from_past)


def sequence_starts(seq_idx: Tensor) -> Tensor:
    """Where the sequence of each token begins in its row, ``(batch, length)`` int64."""
    length = seq_idx.shape[1]
    t = torch.arange(length, device=seq_idx.device)
    opens = torch.zeros_like(seq_idx, dtype=torch.bool)
    opens[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    return torch.where(opens, t, 0).cummax(dim=1).values


def reversal_index(x: Tensor, seq_idx: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """Where to take each token from to reverse every sequence in its own place.

    Reverses inside each packed sequence, or inside each row's real tokens (padding stays at the end).
    None stands for plain rows, which flip.
    """
    length = x.shape[1]
    t = torch.arange(length, device=x.device)
    if lengths is not None:
        return torch.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)
    if seq_idx is None:
        return None
    # a sequence ends where the row read backwards begins it
    ends = length - 1 - sequence_starts(seq_idx.flip(1)).flip(1)
    return sequence_starts(seq_idx) + ends - t


def take(x: Tensor, index: Tensor | None) -> Tensor:
    """Tokens of ``x`` ``(batch, length, channels)`` at ``index`` ``(batch, length)``; flipped for None."""
    if index is None:
        return x.flip(1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def time_major(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How ``torch.nn.utils.rnn.PackedSequence`` orders the tokens of sequences: by time, the longest first.

    Args:
        starts: Where each sequence begins in the flattened rows, ``(n,)``.
        lengths: Its tokens, ``(n,)`` int64, 0 too.

    Returns:
        The place of each token ``(n_tokens,)``; how many sequences have a token at each time, ``(longest,)``
        on the CPU; and the numbers of the sequences that have any, longest first.
    """
    number = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    t = torch.arange(len(number), device=lengths.device) - (lengths.cumsum(0) - lengths)[number]
    longest_first = lengths.argsort(descending=True, stable=True)
    rank = longest_first.argsort()
    order = (t * len(lengths) + rank[number]).argsort()
    batch_sizes = t.bincount().cpu()
    alive = longest_first[: int(batch_sizes[0])] if len(batch_sizes) else longest_first[:0]
    return (starts[number] + t)[order], batch_sizes, alive


def left_padding_index(lengths: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Indices for ``take`` that turn left-padded rows into right-padded ones, and back."""
    t = torch.arange(length, device=lengths.device)
    shift = length - lengths[:, None]
    return (t + shift) % max(length, 1), (t - shift) % max(length, 1)
