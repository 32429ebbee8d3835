"""Long recordings cut where nothing is said, for a decoder that looks at the whole of what it writes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mambakit.domains.speech.recognize.tokenizer import BLANK_ID

LONGEST_S = 20.0
"""Of a piece; a decoder that attends to more than it was trained on loses its place."""
_PAUSE_S = 0.3


def quiet_pieces(log_probabilities: Tensor, frame_s: float) -> list[tuple[int, int]]:
    """Begins and ends of pieces that together are all frames.

    Each but the last is between half of ``LONGEST_S`` and all of it long, and ends in the middle of the
    stretch there that CTC is surest to be blank.

    Args:
        log_probabilities: CTC's, ``(n_frames, n_symbols)``.
        frame_s: Seconds a frame.
    """
    longest, pause = max(2, round(LONGEST_S / frame_s)), max(1, round(_PAUSE_S / frame_s) | 1)
    if len(log_probabilities) <= longest:
        return [(0, len(log_probabilities))]
    blank = log_probabilities[:, BLANK_ID].exp()[None, None]
    quiet = torch.nn.functional.avg_pool1d(blank, pause, 1, pause // 2)[0, 0]
    cuts = [0]
    while len(quiet) - cuts[-1] > longest:
        first = cuts[-1] + longest // 2
        cuts.append(first + int(quiet[first : cuts[-1] + longest].argmax()))
    return list(pairwise([*cuts, len(quiet)]))
