"""Plain sequences in windows or strides: a block over a rearranged sequence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mambakit.core.blocks.base import Block, Context, padding_mask
from mambakit.core.blocks.gaps import gaps_as_read
from mambakit.core.blocks.ragged import sequence_starts, take
from mambakit.core.blocks.registry import build_block, register_block
from mambakit.core.state import State

SEQUENCE_SCANS = ("windows", "dilated")


@register_block("sequence_scan")
class SequenceScan(Block):
    """A block over windows of a sequence, each on its own, or over every ``size``-th token of it.

    ``"windows"`` cuts the sequence and starts anew in each piece. ``"dilated"`` reads tokens 0, size,
    2 size, ..., then 1, size + 1, ..., and so on, so that ``size`` times as much is within reach of a
    convolution or a decaying state. Sequences of any length, packed and padded ones too, each by itself.
    It needs the whole sequence: it takes no state and has no ``step``. For both directions, let ``inner``
    be ``"bidirectional"``. Where time gaps are given, a strided reading sees the mean gap of each stride
    (``gaps.gaps_as_read``), and a window its tokens' own.

    Args:
        d_model: Width of input and output.
        scan: ``"windows"`` or ``"dilated"``.
        size: Tokens of a window, or the stride.
        isolate: Every pass of a dilated scan is a sequence of its own, instead of going on from the pass
            before. Windows always are.
        inner: Kind of the block.
        inner_options: Its keyword arguments.

    Raises:
        ValueError: On another scan, a size below 1, windows that are not to be isolated, or an unknown kind
            or option.
    """

    causal = False

    def __init__(
        self,
        *,
        d_model: int,
        scan: str = "dilated",
        size: int = 4,
        isolate: bool = True,
        inner: str = "mamba2",
        inner_options: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        if scan not in SEQUENCE_SCANS:
            raise ValueError(f"scan: expected one of {', '.join(SEQUENCE_SCANS)}, got {scan!r}")
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        if scan == "windows" and not isolate:
            raise ValueError("isolate: windows read one after another are the sequence itself; leave it on")
        self.d_model = d_model
        self.scan = scan
        self.size = size
        self.isolate = isolate
        self.inner = build_block(inner, d_model, inner_options)
        self.uses_context = self.inner.uses_context
        self.uses_elapsed = self.inner.uses_elapsed

    def state_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}

    def mix(
        self,
        x: Tensor,
        state: State | None,
        seq_idx: Tensor | None,
        lengths: Tensor | None,
        context: Context | None = None,
    ) -> tuple[Tensor, State]:
        batch, length, _ = x.shape
        t = torch.arange(length, device=x.device)
        if lengths is not None:
            sequence = padding_mask(lengths, length).long()  # padding is a sequence after the others
            position = t.expand(batch, -1)
        elif seq_idx is not None:
            start = sequence_starts(seq_idx)
            sequence, position = start, t - start  # where it starts tells it from others, in order
        else:
            sequence, position = torch.zeros_like(t).expand(batch, -1), t.expand(batch, -1)
        group = position // self.size if self.scan == "windows" else position % self.size
        key = sequence * length + group  # there are no more groups than tokens
        order = None
        if self.scan == "dilated":
            order = key.argsort(dim=1, stable=True)
            x, key = take(x, order), key.gather(1, order)
        if context is not None:
            context = context.reordered(
                lambda v: v if order is None else take(v, order),
                lambda v: v if order is None else gaps_as_read(v, order, sequence),
            )
        inside = _numbered(key) if self.isolate else sequence.int()
        y, _ = self.inner(x, None, inside, None, context)
        return (y if order is None else take(y, order.argsort(dim=1))), State.of()


def _numbered(key: Tensor) -> Tensor:
    """0, 1, ... for the runs of equal values in each row, int32: keys of long rows would not fit into it."""
    changes = (key != key.roll(1, 1)).cumsum(1)  # of any length when traced, as differences are not
    return (changes - changes[:, :1]).int()
