"""From samples to a batch: pad each to a row of its own, or pack several into a row.

``pad_batch`` serves as a DataLoader's ``collate_fn`` as it is, ``pack_batch`` through
``functools.partial(pack_batch, length=...)``. Parts come from checked ``Tokens``: nothing is checked twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mambakit.core.adapters.packing import first_fit, number_samples
from mambakit.core.adapters.token_checks import dtype_name
from mambakit.core.adapters.tokens import NO_MODALITY, Padding, TokenBatch, Tokens


def pad_batch(
    samples: Sequence[Tokens],
    *,
    padding: Padding = "right",
    length: int | None = None,
    pad_value: float = 0,
) -> TokenBatch:
    """Put each sample in a row of its own, padded to the longest (or to ``length``).

    Padding of ``time`` repeats the row's nearest stamp, so that it holds no gap; padding of
    ``modality`` is ``NO_MODALITY``.

    Raises:
        ValueError: On no samples, samples that don't go together, or one longer than ``length``.
    """
    _check_alike("pad_batch", samples)
    lengths = torch.tensor([len(sample) for sample in samples])
    longest = int(lengths.max())
    width = longest if length is None else length
    if longest > width:
        worst = int(lengths.argmax())
        raise ValueError(f"length: sample {worst} has {longest} tokens, more than length={width}")
    if padding not in ("left", "right"):
        raise ValueError(f"padding: expected 'left' or 'right', got {padding!r}")
    starts = width - lengths if padding == "left" else torch.zeros_like(lengths)
    spans = torch.stack((torch.arange(len(samples)), starts, lengths), dim=1)
    parts = _lay_out(samples, spans, n_rows=len(samples), width=width, pad_value=pad_value)
    return TokenBatch.trusted(**parts, lengths=lengths, seq_idx=None, padding=padding, _spans=None)


def pack_batch(
    samples: Sequence[Tokens], length: int, *, pad_value: float = 0, row_multiple: int = 1
) -> TokenBatch:
    """Put several samples in each row of ``length`` positions: first-fit, in the given order.

    Nothing crosses from one sample to the next where ``seq_idx`` is handed on to the backbone. The
    padding at a row's end has an index of its own (one more than the row's last sequence's). Rows of
    padding alone make their number a multiple of ``row_multiple``: shapes that come again can be compiled.

    Raises:
        ValueError: On no samples, samples that don't go together, or one longer than ``length``
            (cut it up first, or raise ``length``).
    """
    _check_alike("pack_batch", samples)
    for name, value in (("length", length), ("row_multiple", row_multiple)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    for i, sample in enumerate(samples):
        if len(sample) > length:
            raise ValueError(
                f"length: sample {i} has {len(sample)} tokens, more than a row of length={length} holds; "
                "cut it into pieces or pack into longer rows"
            )
    placed, used = first_fit(map(len, samples), length)
    used += [0] * (-len(used) % row_multiple)
    spans = torch.tensor(placed)
    lengths = torch.tensor(used)
    parts = _lay_out(samples, spans, n_rows=len(used), width=length, pad_value=pad_value)
    seq_idx = number_samples(placed, used, length)
    return TokenBatch.trusted(**parts, lengths=lengths, seq_idx=seq_idx, padding="right", _spans=spans)


def _check_alike(where: str, samples: Sequence[Tokens]) -> None:
    """Raise unless there are samples, and all can share a tensor."""
    if len(samples) == 0:
        raise ValueError(f"{where}: expected at least one sample, got none")

    def describe(sample: Tokens) -> str:
        if not isinstance(sample, Tokens):
            raise TypeError(f"{where}: expected a list of Tokens, got one of {type(sample).__name__}")
        channels = "" if sample.values.dim() == 1 else f" of {sample.values.shape[1]} columns"
        parts = [name for name in ("time", "modality") if getattr(sample, name) is not None]
        return f"{dtype_name(sample.values)} values{channels} with {' and '.join(parts) or 'no time'}"

    first = describe(samples[0])
    for i, sample in enumerate(samples):
        if describe(sample) != first:
            raise ValueError(f"{where}: sample {i} has {describe(sample)}, but sample 0 has {first}")


def _lay_out(
    samples: Sequence[Tokens], spans: Tensor, *, n_rows: int, width: int, pad_value: float
) -> dict[str, Tensor | None]:
    """Copy each sample into its span of fresh (n_rows, width) tensors."""
    places = [(row, slice(start, start + n)) for row, start, n in spans.tolist()]

    def laid_out(parts: Sequence[Tensor | None], fill: float) -> Tensor | None:
        if parts[0] is None:
            return None
        whole = parts[0].new_full((n_rows, width, *parts[0].shape[1:]), fill)
        for part, place in zip(parts, places, strict=True):
            assert part is not None  # _check_alike
            whole[place] = part
        return whole

    time = laid_out([sample.time for sample in samples], 0)
    if time is not None:
        for sample, (row, span) in zip(samples, places, strict=True):
            if sample.time is not None and len(sample):
                time[row, span] = sample.time
                time[row, span.stop :] = sample.time[-1]  # the row's next sample writes over it
                if span.start and len(samples) == n_rows:  # left padding
                    time[row, : span.start] = sample.time[0]
    return {
        "values": laid_out([sample.values for sample in samples], pad_value),
        "time": time,
        "modality": laid_out([sample.modality for sample in samples], NO_MODALITY),
    }
