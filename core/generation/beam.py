"""Beam search with a separate pool of ended sequences.

At each step the ``beam_width`` likeliest continuations of a prompt's beam are looked at: those that end go
into the pool, if they are among the best there. The likeliest that do not end are the next beam, so that an
ended sequence takes no place in it (as in transformers, and fairseq: Ott et al. 2019, arXiv:1904.01038). A
prompt is decided when nothing in its beam can come to beat the last of the sequences wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mambakit.core.generation.config import GenerationConfig
from mambakit.core.generation.decoding import Decoding, Faults


@dataclass
class Sequences:
    """Some sequences of each prompt, ``(batch, n)``; a score of -inf stands for none."""

    scores: Tensor
    """What they are ranked by, ``(batch, n)``."""
    ids: Tensor
    """``(batch, n, max_new_tokens)``, padded."""
    log_probs: Tensor
    """Of each id, like ``ids``."""
    lengths: Tensor
    """``(batch, n)``."""
    ended: Tensor
    """``(batch, n)`` bool: by an end id."""

    def pick(self, index: Tensor) -> Sequences:
        """Sequence ``index[b, j]`` of each prompt, ``(batch, m)``."""
        long = index[..., None].expand(-1, -1, self.ids.shape[-1])
        return Sequences(
            self.scores.gather(1, index),
            self.ids.gather(1, long),
            self.log_probs.gather(1, long),
            self.lengths.gather(1, index),
            self.ended.gather(1, index),
        )

    def best_of(self, other: Sequences) -> Sequences:
        """As many as here, from both, the best first."""
        both = Sequences(*(torch.cat(pair, 1) for pair in zip(_fields(self), _fields(other), strict=True)))
        return both.pick(both.scores.topk(self.scores.shape[1], dim=1).indices)


@torch.no_grad()
def decode_beams(decoding: Decoding, config: GenerationConfig, *, check_every: int) -> Sequences:
    """The best sequences of each prompt, ``n_best`` of them, the best first.

    Args:
        decoding: ``beam_width`` rows for each prompt that have read it.
        config: The options; its ends are in the vocabulary.
        check_every: Look every so many ids whether all prompts are decided, which waits for a GPU.

    Raises:
        ValueError: If a prompt has no allowed sequence or a logit is not a number, naming row and position.
    """
    width, most, device = config.beam_width, config.max_new_tokens, decoding.device
    batch = len(decoding) // width
    first_row = torch.arange(batch, device=device)[:, None] * width
    ends = torch.tensor(config.eos_ids, dtype=torch.int64, device=device)
    faults = Faults(batch, device)
    beam = _nothing(batch, width, config, decoding)
    beam.scores[:, 0] = 0.0  # all rows are alike at first: one of them is enough, and nothing comes twice
    pool = _nothing(batch, width, config, decoding)
    for position in range(most):
        raw, choice = (one.view(batch, width, -1) for one in decoding.log_probs())
        alive = beam.scores > -math.inf
        broken = raw[..., 0].isnan() & alive  # the softmax has spread it
        total = torch.where(alive[..., None], beam.scores[..., None] + choice, -math.inf)  # [b, w, n_ids]
        if config.eos_ids:
            scores, flat = total.flatten(1).topk(width, dim=1)
            parent, ids = flat // decoding.n_ids, flat % decoding.n_ids
            scores = torch.where((ids[..., None] == ends).any(-1), scores, -math.inf)
            scores = scores / (position + 1) ** config.length_penalty
            ended = _extend(beam, parent, ids, raw, scores, position)
            ended.ended.fill_(True)
            pool = pool.best_of(ended)
            total = total.index_fill(-1, ends, -math.inf)
        scores, flat = total.flatten(1).topk(width, dim=1)
        parent, ids = flat // decoding.n_ids, flat % decoding.n_ids
        beam = _extend(beam, parent, ids, raw, scores, position)
        nothing_left = (scores[:, 0] == -math.inf) & (pool.scores[:, 0] == -math.inf)
        faults.note(position, broken.any(1), nothing_left)
        last = position + 1 == most
        if last or (position + 1) % check_every == 0:
            n_left = len(scores) - _decided(pool, beam, config, position + 1).sum()
            n_faults, n_left = torch.stack([(faults.kind != 0).sum(), n_left]).tolist()
            if n_faults:
                faults.report(torch.arange(batch, device=device), 1)
            if n_left == 0 and not last:
                break
        if last:
            beam.scores = beam.scores / most**config.length_penalty
            pool = pool.best_of(beam)
            break
        decoding.select((first_row + parent).flatten())
        decoding.advance(ids.flatten())
    return pool.pick(torch.arange(config.n_best, device=device).expand(batch, -1))


def _extend(
    beam: Sequences, parent: Tensor, ids: Tensor, raw: Tensor, scores: Tensor, position: int
) -> Sequences:
    """Each of ``parent`` ``(batch, m)`` with one id more; none where the score is -inf."""
    longer = beam.pick(parent)
    longer.ids[..., position] = ids
    log_probs = raw.flatten(1).gather(1, parent * raw.shape[-1] + ids)
    longer.log_probs[..., position] = log_probs
    longer.lengths = longer.lengths + 1
    longer.scores = scores.nan_to_num(nan=-math.inf, neginf=-math.inf)
    return longer


def _decided(pool: Sequences, beam: Sequences, config: GenerationConfig, length: int) -> Tensor:
    """Whether nothing in the beam can come to beat what the pool would give now, ``(batch,)``."""
    # a sum of log-probabilities only falls, and the most lenient length is the longest or the next one
    lenient = config.max_new_tokens if config.length_penalty > 0 else length + 1
    hope = beam.scores[:, 0] / lenient**config.length_penalty
    return pool.scores[:, config.n_best - 1] >= hope


def _nothing(batch: int, n: int, config: GenerationConfig, decoding: Decoding) -> Sequences:
    device = decoding.device
    dtype = torch.promote_types(decoding.logits.dtype, torch.float32)
    shape = (batch, n, config.max_new_tokens)
    return Sequences(
        torch.full((batch, n), -math.inf, dtype=dtype, device=device),
        torch.full(shape, config.pad_id, device=device),
        torch.zeros(shape, dtype=dtype, device=device),
        torch.zeros(batch, n, dtype=torch.int64, device=device),
        torch.zeros(batch, n, dtype=torch.bool, device=device),
    )


def _fields(one: Sequences) -> tuple[Tensor, ...]:
    return one.scores, one.ids, one.log_probs, one.lengths, one.ended
