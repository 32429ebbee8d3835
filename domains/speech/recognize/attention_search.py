"""Beam search of an attention decoder, joined with CTC.

A text scores ``(1 - w) log p_attention + w log p_ctc(texts that begin so)`` (Watanabe et al. 2017, "Hybrid
CTC/Attention Architecture for End-to-End Speech Recognition", section IV-A): CTC knows where the sound ends,
so that the decoder neither stops early nor says a stretch twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambakit.core.state import State
from mambakit.domains.speech.recognize.alignment import frames_needed
from mambakit.domains.speech.recognize.attention import END_ID, AttentionDecoder
from mambakit.domains.speech.recognize.fusion import Fusion
from mambakit.domains.speech.recognize.prefixes import Hypothesis, Prefix, Prefixes
from mambakit.domains.speech.recognize.tokenizer import BLANK_ID

_NEVER = -1e30  # finite, as sums of it must be numbers


class CtcPrefixes:
    """Probabilities of all texts that begin with a prefix (algorithm 2 of the paper, all frames at once).

    The sums over paths that end in the prefix's last symbol and in a blank are recurrences of one factor a
    frame: divided by the product of factors so far they are cumulative sums.

    Args:
        log_probabilities: CTC's, ``(n_frames, n_symbols)``; computed in float64.
    """

    def __init__(self, log_probabilities: Tensor) -> None:
        self._p = log_probabilities.double().clamp(min=-1e3)
        self._sums = self._p.cumsum(0)  # [t, v]

    def start(self) -> Tensor:
        """Of the empty prefix, ``(1, 2, n_frames + 1)``: paths that end in its symbol, and in a blank."""
        blanks = torch.cat([self._p.new_zeros(1), self._sums[:, BLANK_ID]])
        return torch.stack([torch.full_like(blanks, _NEVER), blanks])[None]

    def extended(self, ends: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Each prefix with each symbol behind it.

        Args:
            ends: ``(n, 2, n_frames + 1)``.
            last: ``(n,)`` the prefixes' last symbols; 0 of the empty one.

        Returns:
            Log-probabilities ``(n, n_symbols)`` of texts that begin so, in the column of the blank of the
            text that ends there; and ``ends`` of the longer prefixes, ``(n, n_symbols, 2, n_frames + 1)``.
        """
        symbols = torch.arange(self._p.shape[1], device=self._p.device)
        total = torch.logaddexp(ends[:, 0], ends[:, 1])  # [n, t + 1]
        repeated = symbols == last[:, None]  # [n, v]
        before = torch.where(repeated[..., None], ends[:, None, 1], total[:, None])[..., :-1]  # [n, v, t]
        sums = self._sums.T  # [v, t]
        new = before + self._p.T
        in_symbol = (sums + torch.logcumsumexp(new - sums, -1)).clamp(min=_NEVER)
        in_symbol = torch.nn.functional.pad(in_symbol, (1, 0), value=_NEVER)
        blanks = torch.nn.functional.pad(sums[BLANK_ID], (1, 0))
        in_blank = blanks[1:] + torch.logcumsumexp(in_symbol - blanks, -1)[..., :-1]
        in_blank = torch.nn.functional.pad(in_blank.clamp(min=_NEVER), (1, 0), value=_NEVER)
        value = new.logsumexp(-1)
        value[:, BLANK_ID] = total[:, -1]
        return value, torch.stack([in_symbol, in_blank], 2)


class _Text(NamedTuple):
    prefix: Prefix
    value: float  # of attention
    score: float
    ends: Tensor


@torch.no_grad()
def attention_search(
    model: AttentionDecoder,
    x: Tensor,
    log_probabilities: Tensor,
    pieces: Sequence[str],
    *,
    width: int = 8,
    ctc_weight: float = 0.3,
    fusion: Fusion | None = None,
) -> list[Hypothesis]:
    """The texts of a beam, the best first; each can be written in the frames under CTC.

    Args:
        model: The decoder.
        x: The recording's vectors, ``(n_frames, d_encoder)``.
        log_probabilities: What CTC makes of them, ``(n_frames, n_symbols)``.
        pieces: The text of every symbol.
        width: Texts that are kept.
        ctc_weight: How much CTC counts, 0 to 1.
        fusion: What else is weighed.

    Raises:
        UsageError: If the width is below 1.
    """
    texts, sound = Prefixes(pieces, width, fusion), CtcPrefixes(log_probabilities)
    memory = model.memory(x[None], torch.tensor([len(x)]))
    growing = [_Text(texts.root(), 0.0, 0.0, sound.start()[0])]
    state: State | None = None
    ended: list[Hypothesis] = []

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=x.device)[:, None]

    while growing:
        last = torch.tensor([one.prefix.id for one in growing], device=x.device)
        said, state = model(last[:, None], memory.rows(len(growing)), state)
        attention = said[:, 0].double() + column([one.value for one in growing])
        ctc, ends = sound.extended(torch.stack([one.ends for one in growing]), last)
        joint = (1 - ctc_weight) * attention + ctc_weight * ctc
        for i, one in enumerate(growing):
            score = float(joint[i, END_ID]) + texts.finished(one.prefix)
            ended.append(Hypothesis(one.prefix.ids(), float(joint[i, END_ID]), score))
        ended = sorted(ended, key=lambda one: -one.score)[:width]
        joint[:, END_ID] = -torch.inf
        joint[ctc < _NEVER / 2] = -torch.inf  # no room for one more symbol
        joint += column([one.prefix.fusion.score for one in growing])
        # more than are kept, as the new symbol's part of what else is weighed is not in yet
        few = joint.flatten().topk(min(4 * width, joint.numel()))
        tried: list[tuple[_Text, int]] = []
        for value, place in zip(few.values.tolist(), few.indices.tolist(), strict=True):
            i, symbol = divmod(place, joint.shape[1])
            if value == -torch.inf:
                break
            prefix = texts.longer(growing[i].prefix, symbol)
            score = value - growing[i].prefix.fusion.score + prefix.fusion.score
            tried.append((_Text(prefix, float(attention[i, symbol]), score, ends[i, symbol]), i))
        tried = sorted(tried, key=lambda entry: -entry[0].score)[:width]
        if len(ended) == width and (not tried or ended[-1].score >= tried[0][0].score):
            break
        tried = [entry for entry in tried if len(ended) < width or entry[0].score > ended[-1].score]
        growing = [text for text, _ in tried if frames_needed(text.prefix.ids()) <= len(x)]
        kept = [i for text, i in tried if frames_needed(text.prefix.ids()) <= len(x)]
        state = state.index_select(kept)
    return ended
