"""The RNN transducer's loss in plain torch (Graves 2012, arXiv:1211.3711, section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

_NEVER = -1e30  # finite: the gradient of logaddexp(-inf, -inf) is not a number


def transducer_loss(
    log_probabilities: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor, *, blank: int = 0
) -> Tensor:
    """Minus the log-probability of each row's symbols, over all alignments (equation 16).

    The recursion alpha(t, u) = alpha(t-1, u) blank(t-1, u) + alpha(t, u-1) symbol(t, u-1) runs along the
    diagonals t + u, each in one step for all rows.

    Args:
        log_probabilities: ``(batch, n_frames, n_targets + 1, n_symbols)``.
        targets: ``(batch, n_targets)`` int64, right-padded with anything.
        lengths: ``(batch,)`` frames of each row, at least 1.
        target_lengths: ``(batch,)`` symbols of each row.
        blank: Index of the blank.

    Returns:
        ``(batch,)``; differentiable.

    Raises:
        ValueError: On shapes or lengths that don't go together.
    """
    batch, n_frames, n_states, n_symbols = log_probabilities.shape
    if targets.shape != (batch, n_states - 1):
        raise ValueError(
            f"targets: expected shape (batch={batch}, n_targets={n_states - 1}), got {tuple(targets.shape)}"
        )
    if bool((lengths < 1).any() | (lengths > n_frames).any()):
        raise ValueError(f"lengths: expected values in 1..{n_frames}, got {lengths.tolist()}")
    if bool((target_lengths < 0).any() | (target_lengths >= n_states).any()):
        raise ValueError(
            f"target_lengths: expected values in 0..{n_states - 1}, got {target_lengths.tolist()}"
        )
    known = targets.clamp(0, n_symbols - 1)[:, None, :, None].expand(-1, n_frames, -1, 1)
    of_blank = log_probabilities[..., blank]  # [b, t, u]
    of_symbol = log_probabilities[:, :, :-1].gather(3, known)[..., 0]  # [b, t, u - 1]
    n_diagonals = n_frames + n_states - 1
    of_blank, of_symbol = _skewed(of_blank, n_diagonals), _skewed(of_symbol, n_diagonals)
    u = torch.arange(n_states, device=log_probabilities.device)
    alpha = torch.where(u == 0, 0.0, _NEVER).to(log_probabilities).expand(batch, -1)
    ends = lengths + target_lengths - 1  # the diagonal of each row's last node
    last = alpha
    for d in range(1, n_diagonals):
        stayed = alpha + of_blank[:, d - 1]
        said = torch.cat([alpha.new_full((batch, 1), _NEVER), alpha[:, :-1] + of_symbol[:, d - 1]], 1)
        alpha = torch.logaddexp(stayed, said).clamp(min=_NEVER)
        last = torch.where((ends == d)[:, None], alpha, last)
    at = target_lengths[:, None]
    final = of_blank[torch.arange(batch, device=ends.device), ends]
    return -(last.gather(1, at) + final.gather(1, at))[:, 0]


def _skewed(x: Tensor, n_diagonals: int) -> Tensor:
    """``(batch, t, u)`` to ``(batch, d, u)`` with ``x[:, d - u, u]``; never where there is no such frame."""
    batch, n_frames, n_states = x.shape
    t = torch.arange(n_diagonals, device=x.device)[:, None] - torch.arange(n_states, device=x.device)
    inside = (t >= 0) & (t < n_frames)
    return x.gather(1, t.clamp(0, n_frames - 1).expand(batch, -1, -1)).masked_fill(~inside, _NEVER)
