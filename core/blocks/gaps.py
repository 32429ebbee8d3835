"""Time gaps between tokens: their checks, and what a reading in another order makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mambakit.core.blocks.ragged import sequence_starts


def check_elapsed(elapsed: Tensor, x: Tensor) -> None:
    """Raise unless ``elapsed`` ``(batch, length)`` has a number for each token of ``x``.

    ``x`` is ``(batch, length, d_model)``; of one token they are ``(batch,)`` and ``(batch, d_model)``.

    Raises:
        TypeError: If it is not a tensor of floats.
        ValueError: On a wrong shape or device.
    """
    if not isinstance(elapsed, Tensor) or not elapsed.is_floating_point():
        got = elapsed.dtype if isinstance(elapsed, Tensor) else type(elapsed).__name__
        raise TypeError(f"elapsed: expected a tensor of floats, got {got}")
    if elapsed.shape != x.shape[:-1]:
        sizes = ", ".join(f"{n}={size}" for n, size in zip(("batch", "length"), x.shape[:-1], strict=False))
        raise ValueError(f"elapsed: expected shape ({sizes}), a number a token, got {tuple(elapsed.shape)}")
    if elapsed.device != x.device:
        raise ValueError(f"elapsed: expected it on x's device {x.device}, got it on {elapsed.device}")


def check_gaps(elapsed: Tensor | None) -> None:
    """Raise if a gap is negative, infinite or NaN; on a CPU only: to read them on a GPU would wait for it.

    Raises:
        ValueError: That names the first such value and its row.
    """
    if elapsed is None or elapsed.device.type != "cpu" or elapsed.numel() == 0:
        return
    if torch.compiler.is_compiling():
        return
    low, high = elapsed.detach().aminmax()  # NaN if any is
    if not (low >= 0.0 and high < float("inf")):
        wrong = ~((elapsed >= 0.0) & (elapsed < float("inf")))
        raise ValueError(
            "elapsed: expected the time since the token before, finite and at least 0, "
            f"got {float(elapsed[wrong][0])} in row {int(wrong.nonzero()[0, 0])}"
        )


def gaps_as_read(elapsed: Tensor, order: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    """``elapsed`` for a block that reads the tokens in another order.

    A token is read after some other one than that before it in time, and what has passed between those two is
    what must drive its step: read backwards, the gap to the *next* token, not the token's own. Between
    tokens that lie apart it is the mean gap on the way from one to the other, so that ordinary gaps stay
    ordinary however far a scan strides. What a sequence begins with has nothing before it in either order:
    the token read first gets the ``elapsed`` of the first in time.

    Args:
        elapsed: ``(batch, length)``, time since the token before.
        order: The token read at each moment, ``(batch or 1, length)`` int64; None for backwards. Every
            sequence keeps its place in the row.
        seq_idx: ``(batch, length)``, the sequences; None if a row is one.

    Returns:
        ``(batch, length)``: for each moment the time since the token read before.
    """
    batch, length = elapsed.shape
    t = torch.arange(length, device=elapsed.device)
    order = (t.flip(0) if order is None else order).expand(batch, -1)
    opens = (t == (0 if seq_idx is None else sequence_starts(seq_idx))).expand(batch, -1)
    before = order.roll(1, 1)
    # differences of long sums; MPS has no float64
    exact = torch.float32 if elapsed.device.type == "mps" else torch.float64
    when = elapsed.to(exact).cumsum(1)
    apart = (order - before).masked_fill(opens, 1)  # tokens; what opens a sequence is taken care of below
    gaps = (when.gather(1, order) - when.gather(1, before)) / apart
    return torch.where(opens, elapsed, gaps.to(elapsed.dtype))
