"""Greedy decoding and sampling: the loop that ``generate`` and ``stream`` share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mambakit.core.generation.config import GenerationConfig
from mambakit.core.generation.decoding import Decoding, Faults
from mambakit.core.generation.warpers import Uniforms, draw, warp


@dataclass(frozen=True)
class Step:
    """One generated id in every row; rows are the prompts' in order, all samples of one together."""

    position: int
    """How many ids were generated before."""
    ids: Tensor
    """``(rows,)`` int64; the config's pad_id in rows that ended before."""
    log_probs: Tensor
    """Under the model alone, ``(rows,)``; zero in rows that ended before."""
    sampled_log_probs: Tensor | None
    """Under the distribution drawn from, ``(rows,)``; None unless drawn."""
    finished: Tensor
    """``(rows,)`` bool: the row has ended, with this id or before."""


class Choice(NamedTuple):
    """The next id of every row, and what is to be known of it; all ``(rows,)``."""

    ids: Tensor
    log_probs: Tensor
    """Under the model alone."""
    drawn: Tensor | None
    """Log-probabilities under the distribution drawn from; None unless drawn."""
    not_a_number: Tensor
    """bool: the logits hold one that is none."""
    forbidden: Tensor
    """bool: the constraint forbids every id."""


def choose(decoding: Decoding, config: GenerationConfig, uniforms: Tensor | None) -> Choice:
    """One id a row, drawn with ``uniforms`` ``(rows,)``, or the likeliest one for None."""
    raw, choice = decoding.log_probs()
    drawn = None
    if uniforms is None:
        ids = choice.argmax(-1)
    else:
        warped = warp(
            choice,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
        )
        ids = draw(warped, uniforms)
        drawn = warped.gather(-1, ids[:, None])[:, 0]
    log_probs = raw.gather(-1, ids[:, None])[:, 0]
    # a NaN is in the whole row after the softmax; and -inf is chosen only where there is nothing else
    stuck = choice.gather(-1, ids[:, None])[:, 0] == -math.inf
    return Choice(ids, log_probs, drawn, log_probs.isnan(), stuck)


@torch.no_grad()
def decode_rows(
    decoding: Decoding,
    config: GenerationConfig,
    draws: Uniforms | None,
    *,
    check_every: int,
    drop: bool,
) -> Iterator[Step]:
    """Choose, yield, advance; until every row has ended or has the most ids.

    Args:
        decoding: Rows that have read their prompts.
        config: The options; its ends are in the vocabulary.
        draws: Numbers to sample with; None takes the likeliest id.
        check_every: Look every so many ids whether rows have ended or are at fault, which waits for a GPU.
        drop: Go on without the rows that have ended, as soon as they are half of them.

    Raises:
        ValueError: If the constraint forbids every id or a logit is not a number, naming row and position.
    """
    n_rows, device = len(decoding), decoding.device
    live = torch.arange(n_rows, device=device)
    done = torch.zeros(n_rows, dtype=torch.bool, device=device)
    ends = torch.tensor(config.eos_ids, dtype=torch.int64, device=device)
    faults = Faults(n_rows, device)
    whole = True
    for position in range(config.max_new_tokens):
        uniforms = None
        if draws is not None:
            uniforms = draws.at(position) if whole else draws.at(position)[live]
        chosen = choose(decoding, config, uniforms)
        faults.note(position, chosen.not_a_number & ~done, chosen.forbidden & ~done)
        log_probs = chosen.log_probs.masked_fill(done, 0.0)
        drawn = None if chosen.drawn is None else chosen.drawn.masked_fill(done, 0.0)
        ids = chosen.ids.masked_fill(done, config.pad_id)
        if config.eos_ids:
            done = done | (ids[:, None] == ends).any(-1)
        last = position + 1 == config.max_new_tokens
        n_done = None
        if last or (position + 1) % check_every == 0:
            n_faults, n_done = torch.stack([(faults.kind != 0).sum(), done.sum()]).tolist()
            if n_faults:
                faults.report(live, config.copies)
        if whole:
            yield Step(position, ids, log_probs, drawn, done)
        else:
            yield Step(
                position,
                ids.new_full((n_rows,), config.pad_id).index_copy(0, live, ids),
                log_probs.new_zeros(n_rows).index_copy(0, live, log_probs),
                None if drawn is None else drawn.new_zeros(n_rows).index_copy(0, live, drawn),
                torch.ones(n_rows, dtype=torch.bool, device=device).index_copy(0, live, done),
            )
        if last or n_done == len(live):
            return
        if drop and n_done is not None and 2 * n_done >= len(live):
            kept = (~done).nonzero()[:, 0]
            live, done, ids, whole = live[kept], done[kept], ids[kept], False
            faults.select(kept)
            decoding.select(kept)
        decoding.advance(ids.masked_fill(done, 0))
