"""The transducer's loss by torchaudio where its compiled library loads, else in plain torch."""

from __future__ import annotations

from torch import Tensor

from mambakit.core.torchaudio_parts import has_extension, torchaudio
from mambakit.domains.speech.recognize.transducer import transducer_loss


def rnnt_loss(logits: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """Minus the log-probability of each row's symbols, ``(batch,)``; the blank is 0.

    Args:
        logits: ``(batch, n_frames, n_targets + 1, n_symbols)``.
        targets: ``(batch, n_targets)`` int64, right-padded.
        lengths: ``(batch,)`` frames of each row, at least 1.
        target_lengths: ``(batch,)`` symbols of each row.

    Raises:
        ValueError: As ``transducer_loss``.
    """
    logits = logits.double() if logits.dtype.itemsize > 4 else logits.float()
    # torchaudio refuses padding that no row of the batch fills
    n_frames, n_targets = int(lengths.max()), int(target_lengths.max())
    logits, targets = logits[:, :n_frames, : n_targets + 1].contiguous(), targets[:, :n_targets].contiguous()
    functional = torchaudio().functional
    if has_extension() and hasattr(functional, "rnnt_loss") and logits.dtype.itemsize == 4:
        ints = [one.int().to(logits.device) for one in (targets, lengths, target_lengths)]
        return functional.rnnt_loss(logits, *ints, blank=0, reduction="none")
    return transducer_loss(logits.log_softmax(-1), targets, lengths, target_lengths)
