"""Tokens that a model doesn't know, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_MOST_TOKENS, _MOST_ROWS = 5, 3


def unseen_sentence(unseen: Mapping[str, Sequence[int]]) -> str:
    """``2 tokens are new to the model: [Se] (row 3), [Hg] (row 8, 9, 12, ...)``.

    Args:
        unseen: The rows of each, one token at least.
    """
    shown = [
        f"{token} (row {', '.join(map(str, at[:_MOST_ROWS]))}{', ...' if len(at) > _MOST_ROWS else ''})"
        for token, at in list(unseen.items())[:_MOST_TOKENS]
    ]
    more = f" and {len(unseen) - _MOST_TOKENS} more" if len(unseen) > _MOST_TOKENS else ""
    return f"{len(unseen)} tokens are new to the model: {', '.join(shown)}{more}"
