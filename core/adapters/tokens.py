"""Tokens of one sample, and batches of them: padded left or right, or packed.

``Tokens`` is what a tokenizer makes of one sample; ``TokenBatch`` is what an adapter embeds.
``collate.pad_batch`` and ``collate.pack_batch`` go from the first to the second, ``TokenBatch.unbind``
goes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, final

import torch
from torch import Tensor

from mambakit.core.adapters.token_checks import (
    SampleError,
    check_companion,
    check_values,
    modality_fault,
    time_fault,
    value_fault,
)

Padding = Literal["left", "right"]

# Fills `modality` where there is no token; real modalities are 0, 1, 2, ...
NO_MODALITY = -1


@final
@dataclass(frozen=True, eq=False)
class Tokens:
    """One sample as a sequence, checked when it is made.

    Attributes:
        values: Ids, ``(length,)`` or ``(length, n_fields)`` int64 and >= 0, or channels,
            ``(length, d_input)`` float32 and finite. A missing channel value is a tokenizer's
            business (fill it and add a channel that says so), never a NaN.
        time: When each token happened, ``(length,)`` float64, finite, non-decreasing; the unit is
            the tokenizer's.
        modality: Which modality each token is of, ``(length,)`` int64 >= 0.

    Raises:
        TypeError: On a wrong type or dtype.
        ValueError: On a wrong shape.
        SampleError: On data that can't be right: NaN, infinity, a negative id, time running backwards.
    """

    values: Tensor
    time: Tensor | None = None
    modality: Tensor | None = None

    def __post_init__(self) -> None:
        check_values(self.values, leading=("length",))
        length = (self.values.shape[0],)
        check_companion("time", self.time, torch.float64, length)
        check_companion("modality", self.modality, torch.int64, length)
        reason = value_fault(self.values)
        if not reason and self.time is not None:
            reason = time_fault(self.time, torch.diff(self.time, prepend=self.time[:1]))
        if not reason and self.modality is not None:
            reason = modality_fault(self.modality)
        if reason:
            raise SampleError(reason)

    def __len__(self) -> int:
        return self.values.shape[0]

    def equals(self, other: Tokens) -> bool:
        """True when every part is present in both and holds the same numbers."""
        pairs = ((self.values, other.values), (self.time, other.time), (self.modality, other.modality))
        return all(
            (a is None and b is None)
            or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
            for a, b in pairs
        )


@final
class TokenBatch:
    """A batch of token sequences, padded (a sequence a row) or packed (several a row).

    Immutable by convention: every method returns a new batch. Contents (lengths, NaN, time order)
    are checked when a batch is made on the CPU; elsewhere only shapes and dtypes are, because
    reading the contents would make the host wait for the device.

    Deliberately not a dataclass: Lightning casts every floating tensor inside a dataclass in its
    "true" half precisions, and ``time`` must not be rounded. An adapter casts ``values`` itself.

    Args:
        values: ``(batch, length)`` or ``(batch, length, n_fields)`` int64 ids, or
            ``(batch, length, d_input)`` float32 channels.
        lengths: Real tokens in each row, ``(batch,)`` int64. In a packed row: of all its sequences.
        time: ``(batch, length)`` float64, non-decreasing inside each sequence (float32 on devices
            without float64).
        modality: ``(batch, length)`` int64; ``NO_MODALITY`` in the padding.
        seq_idx: ``(batch, length)`` int32, non-decreasing inside a row: the sequence each position
            belongs to. Given exactly when the batch is packed. Padding has an index of its own.
        padding: The side the padding is on; packed batches are padded on the right.
        spans: Of each packed sequence its row, start and length, ``(n_sequences, 3)`` int64, in the
            caller's order; read off ``seq_idx`` (row by row) where it isn't given.

    Raises:
        TypeError: On a wrong type or dtype.
        ValueError: On a wrong shape or device, or contents that can't be right.
    """

    def __init__(
        self,
        values: Tensor,
        lengths: Tensor,
        time: Tensor | None = None,
        modality: Tensor | None = None,
        seq_idx: Tensor | None = None,
        padding: Padding = "right",
        *,
        spans: Tensor | None = None,
    ) -> None:
        check_values(values, leading=("batch", "length"))
        batch, length = values.shape[:2]
        check_companion("lengths", lengths, torch.int64, (batch,), device=values.device)
        no_float64 = time is not None and time.device.type == "mps"
        time_dtype = torch.float32 if no_float64 else torch.float64
        check_companion("time", time, time_dtype, (batch, length), device=values.device)
        check_companion("modality", modality, torch.int64, (batch, length), device=values.device)
        check_companion("seq_idx", seq_idx, torch.int32, (batch, length), device=values.device)
        if padding not in ("left", "right"):
            raise ValueError(f"padding: expected 'left' or 'right', got {padding!r}")
        if seq_idx is not None and padding == "left":
            raise ValueError("padding: packed batches (with seq_idx) are padded on the right, got 'left'")
        if spans is not None and seq_idx is None:
            raise ValueError("spans: only a packed batch has them, but seq_idx is None")
        self.values = values
        self.lengths = lengths
        self.time = time
        self.modality = modality
        self.seq_idx = seq_idx
        self.padding: Padding = padding
        self._spans = spans
        if values.device.type == "cpu":
            self._check_contents()

    # -- size and place --

    @property
    def batch_size(self) -> int:
        """Number of rows (a packed row holds several sequences: see ``n_sequences``)."""
        return self.values.shape[0]

    @property
    def length(self) -> int:
        """Positions in a row, padding included."""
        return self.values.shape[1]

    @property
    def n_sequences(self) -> int:
        """Number of sequences, the empty ones too."""
        return self.batch_size if self.seq_idx is None else self.spans.shape[0]

    @property
    def device(self) -> torch.device:
        """Where all tensors of the batch are."""
        return self.values.device

    @property
    def is_packed(self) -> bool:
        """True when rows hold several sequences, told apart by ``seq_idx``."""
        return self.seq_idx is not None

    @property
    def mask(self) -> Tensor:
        """``(batch, length)`` bool, True at real tokens."""
        positions = torch.arange(self.length, device=self.device)
        if self.padding == "left":
            return positions >= self.length - self.lengths[:, None]
        return positions < self.lengths[:, None]

    @property
    def spans(self) -> Tensor:
        """Row, start and length of each sequence, ``(n_sequences, 3)`` int64, in the caller's order."""
        if self.seq_idx is None:
            rows = torch.arange(self.batch_size, device=self.device)
            start = self.length - self.lengths if self.padding == "left" else torch.zeros_like(self.lengths)
            return torch.stack((rows, start, self.lengths), dim=1)
        if self._spans is None:
            self._spans = _spans_of(self.seq_idx, self.lengths)
        return self._spans

    @property
    def gaps(self) -> Tensor:
        """Time since the previous token of the same sequence, like ``time``; 0 for the first and for padding.

        Raises:
            ValueError: If the batch has no time.
        """
        if self.time is None:
            raise ValueError(
                "time: this batch has none, so there are no gaps; let the tokenizer set Tokens.time"
            )
        gaps = torch.diff(self.time, dim=1, prepend=self.time[:, :1])
        return torch.where(self.mask & ~self._begins, gaps, torch.zeros_like(gaps))

    @property
    def _begins(self) -> Tensor:
        """``(batch, length)`` bool, True at the first real token of every sequence."""
        begins = self.mask
        follows = begins[:, :-1]
        if self.seq_idx is not None:
            follows = follows & (self.seq_idx[:, 1:] == self.seq_idx[:, :-1])
        begins[:, 1:] &= ~follows
        return begins

    def elapsed(self, unit: float | Tensor) -> Tensor:
        """``gaps`` in units of an ordinary one, as a backbone takes them, ``(batch, length)`` float32:

            backbone(adapter.embed(batch), **batch.layout(), elapsed=batch.elapsed(60.0))

        A sequence's first token has nothing before it and gets 1, so that it is read as any other (the first
        of a piece that goes on from a state: write its gap there). Tokens at the same time get 0: they
        leave a state-space model's state as it was. Where they should count, and where one long gap should
        not outweigh all else, bound them: ``batch.elapsed(unit).clamp(0.1, 100.0)``.

        Args:
            unit: The ordinary gap, in the unit of ``time``; or one for each row or token, ``(batch, 1)`` or
                ``(batch, length)``.

        Raises:
            ValueError: If the batch has no time, or ``unit`` is not positive (of a tensor, on a CPU only).
        """
        gaps = self.gaps
        if isinstance(unit, Tensor):
            if unit.dim() != 2 or unit.shape[0] != self.batch_size or unit.shape[1] not in (1, self.length):
                shape = f"(batch={self.batch_size}, 1 or length={self.length})"
                raise ValueError(f"unit: expected a number, or shape {shape}, got {tuple(unit.shape)}")
            right = unit.device.type != "cpu" or bool(((unit > 0) & (unit < float("inf"))).all())
        else:
            right = 0 < unit < float("inf")
        if not right:
            raise ValueError(f"unit: expected an ordinary gap, finite and above 0, got {unit}")
        return torch.where(self._begins, 1.0, gaps / unit).float()

    def layout(self) -> dict[str, Any]:
        """What a backbone must know about the rows: ``backbone(x, **batch.layout())``.

        ``seq_idx`` for a packed batch, ``lengths`` and ``padding`` for a padded one.
        """
        if self.seq_idx is not None:
            return {"seq_idx": self.seq_idx}
        return {"lengths": self.lengths, "padding": self.padding}

    def __repr__(self) -> str:
        kind = "packed" if self.is_packed else f"{self.padding}-padded"
        extra = "".join(f", {name}" for name in ("time", "modality") if getattr(self, name) is not None)
        return (
            f"TokenBatch({kind}, values {tuple(self.values.shape)} {self.values.dtype}{extra}, "
            f"{self.n_sequences} sequences on {self.device})"
        )

    # -- moves --

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> TokenBatch:
        """The batch on another device. Dtypes stay (but ``time`` is float32 on MPS, which has no float64)."""
        target = torch.device(device)
        return self._map(lambda part: _moved(part, target, non_blocking))

    def pin_memory(self, device: torch.device | str | None = None) -> TokenBatch:
        """The batch in page-locked memory; a DataLoader with ``pin_memory=True`` calls this.

        Without an accelerator there is nothing to lock for, and the batch is returned as it is.
        """
        if not torch.accelerator.is_available():
            return self
        return self._map(lambda part: part.pin_memory())

    def is_pinned(self) -> bool:
        """True when the values lie in page-locked memory."""
        return self.values.is_pinned()

    # -- back to samples --

    def split(self, output: Tensor) -> list[Tensor]:
        """Cut ``output``, ``(batch, length, ...)``, into one view a sequence, ``(its length, ...)``.

        This is how what a model computed is read out again: padding is gone, packing undone, and the
        order is that of the samples given to ``pad_batch`` or ``pack_batch``.

        Raises:
            ValueError: If ``output`` doesn't start with this batch's ``(batch, length)``.
        """
        if output.shape[:2] != self.values.shape[:2]:
            raise ValueError(
                f"output: expected shape (batch={self.batch_size}, length={self.length}, ...), "
                f"got {tuple(output.shape)}"
            )
        return [output[row, start : start + length] for row, start, length in self.spans.tolist()]

    def unbind(self) -> list[Tokens]:
        """The samples again, in their first order: the inverse of ``pad_batch`` and of ``pack_batch``."""
        n = self.n_sequences
        values = self.split(self.values)
        time = [None] * n if self.time is None else self.split(self.time)
        modality = [None] * n if self.modality is None else self.split(self.modality)
        return [
            Tokens(v, None if t is None else t.double(), m)
            for v, t, m in zip(values, time, modality, strict=True)
        ]

    # -- inside --

    def _map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        return self.trusted(
            **{k: function(part) if isinstance(part, Tensor) else part for k, part in self.__dict__.items()}
        )

    @classmethod
    def trusted(cls, **parts: object) -> Self:
        """A batch of parts known to be right (they come from checked Tokens or another batch)."""
        batch = object.__new__(cls)
        batch.__dict__.update(parts)
        return batch

    def _check_contents(self) -> None:
        low, high = (int(self.lengths.min()), int(self.lengths.max())) if self.batch_size else (0, 0)
        if low < 0 or high > self.length:
            raise ValueError(f"lengths: expected 0 to length={self.length}, got {low} to {high}")
        if self.seq_idx is not None:
            if bool((self.seq_idx[:, 1:] < self.seq_idx[:, :-1]).any()):
                raise ValueError("seq_idx: expected a non-decreasing index inside each row")
            _check_spans(self.spans, self.seq_idx, self.lengths)
        mask = self.mask
        reason = value_fault(self.values, mask)
        if not reason and self.time is not None:
            reason = time_fault(self.time, self.gaps, mask)
        if not reason and self.modality is not None:
            reason = modality_fault(self.modality, mask)
        if reason:
            raise ValueError(reason)


def _spans_of(seq_idx: Tensor, lengths: Tensor) -> Tensor:
    """Runs of one index among each row's real tokens, row by row."""
    spans = []
    for row, used in enumerate(lengths.tolist()):
        _, counts = torch.unique_consecutive(seq_idx[row, :used], return_counts=True)
        start = 0
        for n in counts.tolist():
            spans.append((row, start, n))
            start += n
    return torch.tensor(spans, dtype=torch.int64, device=seq_idx.device).view(-1, 3)


def _check_spans(spans: Tensor, seq_idx: Tensor, lengths: Tensor) -> None:
    """Raise unless the spans that aren't empty are just the runs of ``seq_idx``."""
    check_companion("spans", spans, torch.int64, (spans.shape[0], 3), device=seq_idx.device)
    given = sorted(span for span in spans.tolist() if span[2])
    if given != sorted(_spans_of(seq_idx, lengths).tolist()):
        raise ValueError("spans: expected the row, start and length of each run of seq_idx, got others")


def _moved(part: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
    if device.type == "mps" and part.dtype == torch.float64:
        part = part.float()
    return part.to(device, non_blocking=non_blocking)
