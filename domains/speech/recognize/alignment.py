"""Forced alignment: the likeliest CTC path of a known text, by Viterbi over CTC's trellis.

The states are blank, s1, blank, s2, ..., blank; a path goes on by one state, or by two over a blank between
different symbols (Graves et al. 2006, "Connectionist Temporal Classification", section 4.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambakit.core.errors import DataError
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID


class Alignment(NamedTuple):
    """A path through the frames.

    Attributes:
        path: The symbol of each frame, ``(n_frames,)`` int64; 0 is the blank.
        token: Which symbol of the text it is, ``(n_frames,)`` int64; -1 at blanks.
        log_probability: Of the whole path.
    """

    path: Tensor
    token: Tensor
    log_probability: float


def frames_needed(ids: Sequence[int]) -> int:
    """The fewest frames that CTC writes these symbols in: a repeated one needs a blank between."""
    return len(ids) + sum(a == b for a, b in itertools.pairwise(ids))


def frames_needed_each(ids: Tensor, lengths: Tensor) -> Tensor:
    """``frames_needed`` of rows ``(batch, n)``, of which the first ``lengths`` ``(batch,)`` count."""
    within = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    return lengths + ((ids[:, 1:] == ids[:, :-1]) & within).sum(1)


@torch.no_grad()
def forced_alignment(log_probabilities: Tensor, ids: Sequence[int]) -> Alignment:
    """The likeliest path that says ``ids``.

    Args:
        log_probabilities: ``(n_frames, n_symbols)``; the blank is symbol 0.
        ids: The symbols, without blanks.

    Raises:
        DataError: If there are fewer frames than the symbols need.
        ValueError: On another shape, or a symbol that there isn't.
    """
    if log_probabilities.dim() != 2:
        raise ValueError(
            f"log_probabilities: expected (n_frames, n_symbols), got {tuple(log_probabilities.shape)}"
        )
    n_frames, n_symbols = log_probabilities.shape
    wrong = [i for i in ids if not 0 < i < n_symbols]
    if wrong:
        raise ValueError(f"ids: expected symbols in 1..{n_symbols - 1}, got {wrong[0]}")
    if frames_needed(ids) > n_frames:
        raise DataError(
            f"the text needs {frames_needed(ids)} frames ({len(ids)} symbols, a blank in each repeat), but "
            f"the audio has {n_frames}; check that the text belongs to it"
        )
    if n_frames == 0:
        empty = torch.zeros(0, dtype=torch.int64)
        return Alignment(empty, empty, 0.0)
    states = torch.full((2 * len(ids) + 1,), BLANK_ID, dtype=torch.int64)
    states[1::2] = torch.tensor(list(ids), dtype=torch.int64)
    n_states = len(states)
    emitted = log_probabilities.detach().cpu()[:, states]  # [l, n_states]
    may_skip = torch.zeros(n_states, dtype=torch.bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    score = emitted.new_full((n_states,), -torch.inf)
    score[:2] = emitted[0, :2]
    steps = torch.zeros(n_frames, n_states, dtype=torch.int64)
    stay_step_skip = emitted.new_full((3, n_states), -torch.inf)
    for t in range(1, n_frames):
        stay_step_skip[0] = score
        stay_step_skip[1, 1:] = score[:-1]
        stay_step_skip[2, 2:] = score[:-2].masked_fill(~may_skip[2:], -torch.inf)
        best, steps[t] = stay_step_skip.max(0)
        score = best + emitted[t]
    at = n_states - 1
    if n_states > 1 and score[-2] > score[-1]:
        at = n_states - 2
    total = float(score[at])
    visited = [at]
    for t in range(n_frames - 1, 0, -1):
        at -= int(steps[t, at])
        visited.append(at)
    places = torch.tensor(visited[::-1])
    return Alignment(states[places], torch.where(places % 2 == 1, places // 2, -1), total)
