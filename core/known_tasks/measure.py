"""How many answers of a causal model are right, at any length: the stream is read in pieces."""

from __future__ import annotations

import torch

from mambakit.core.known_tasks.drawn import NOTHING, Drawn
from mambakit.core.language_model import LanguageModel


@torch.no_grad()
def share_right(model: LanguageModel, drawn: Drawn, *, piece: int | None = None) -> float:
    """The share of questions whose likeliest id is the answer.

    Args:
        model: On the device of ``drawn``; called as it is, in training mode or not.
        drawn: Rows of a task.
        piece: Tokens read at a time, with the state carried from one piece to the next: memory then does
            not grow with the length (an attention's cache does). All at once if None.

    Raises:
        ValueError: If nothing is asked, or ``piece`` is below 1.
    """
    asked = drawn.targets != NOTHING
    if not bool(asked.any()):
        raise ValueError("drawn: there is no question in it")
    length = drawn.ids.shape[1]
    piece = length if piece is None else piece
    if piece < 1:
        raise ValueError(f"piece: expected at least 1, got {piece}")
    right, state = torch.zeros((), dtype=torch.int64, device=drawn.ids.device), None
    for begin in range(0, length, piece):
        end = begin + piece
        logits, state = model(drawn.ids[:, begin:end], state)
        # a target of NOTHING is no id, so none is said there
        right += (logits.argmax(-1) == drawn.targets[:, begin:end]).sum()
    return int(right) / int(asked.sum())
