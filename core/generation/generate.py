"""Generating from any decoder: ``generate`` for whole sequences, ``stream`` for one id at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mambakit.core.generation.beam import decode_beams
from mambakit.core.generation.config import GenerationConfig
from mambakit.core.generation.constraints import Constraint, as_constraint
from mambakit.core.generation.decoder import Begun, Decoder, Prompt, begin, read
from mambakit.core.generation.decoding import Decoding
from mambakit.core.generation.graphs import GraphedDecoder
from mambakit.core.generation.rows import Step, decode_rows
from mambakit.core.generation.warpers import Seed, Uniforms
from mambakit.core.state import State

Constraining = Constraint | Callable[[Tensor, Tensor], Tensor] | None
Seeds = Sequence[Seed] | torch.Generator | None

_LOOK_EVERY = 16  # ids between two waits for a GPU
_WORTH_RECORDING = 32  # ids from which a CUDA graph that is used once pays


@dataclass(frozen=True)
class Generated:
    """What was generated; rows are the prompts' in order, with all samples or beams of one together."""

    ids: Tensor
    """``(rows, length)`` int64, without the prompt; the end id included, the config's pad_id after it."""
    lengths: Tensor
    """Ids of each row, ``(rows,)``; 0 where a beam search found fewer sequences than asked for."""
    log_probs: Tensor
    """Of each id under the model alone: temperature 1, nothing forbidden; ``(rows, length)``, zero at
    padding. What ranks sequences, and what a policy gradient needs."""
    sampled_log_probs: Tensor | None
    """Of each id under the distribution that it was drawn from: constrained, warped and normalised again.
    What importance weights divide by. None for greedy and beam, which draw nothing."""
    finished: Tensor
    """``(rows,)`` bool: ended by an end id, not by ``max_new_tokens``."""
    scores: Tensor
    """What a beam search ranks by, ``(rows,)``, -inf for no sequence; of other strategies ``log_prob``."""
    state: State | None = None
    """With ``return_state``: the model's state after the prompt and every id of each row."""
    next_logits: Tensor | None = None
    """With ``return_state``: what comes next, ``(rows, n_ids)``."""

    @property
    def log_prob(self) -> Tensor:
        """Of each whole row under the model alone, ``(rows,)``."""
        return self.log_probs.sum(1)

    def sequences(self) -> list[list[int]]:
        """The ids of each row without padding."""
        return [row[:n] for row, n in zip(self.ids.tolist(), self.lengths.tolist(), strict=True)]


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    lengths: Tensor | None = None,
    state: State | None = None,
    next_logits: Tensor | None = None,
    constraint: Constraining = None,
    seeds: Seeds = None,
    graph: bool | None = None,
    return_state: bool = False,
) -> Generated:
    """Continue every prompt.

    All prompts are read in one forward call; then each id is one step of the model, in memory that recurrent
    layers never grow. The model is used as it is: call ``eval`` before, and give lists of ids, or a tensor
    on its device. A row comes out the same whatever else is in the batch.

    Args:
        model: A ``Decoder``, such as a ``LanguageModel``.
        prompt: A list of lists of ids, or ``(batch, length)`` int64, right-padded if ``lengths`` are given.
        config: The options; greedy by default.
        lengths: ``(batch,)`` int64: how many ids of each row are real.
        state: What the prompts continue, one row each; it is left as it is.
        next_logits: ``(batch, n_ids)``: what comes next after ``state``, for prompts of no ids.
        constraint: What may come next: a function from the ids generated so far ``(rows, n)`` and the number
            of each row's prompt ``(rows,)`` to a bool mask ``(rows, n_ids)``, or a ``Constraint``.
        seeds: For sampling, one for each row (a whole number, or a tuple of them), or a generator that they
            are drawn from. By default they come from the config's seed and the row's number.
        graph: Replay each step as a CUDA graph. By default on a GPU from 32 ids on, for models that allow it;
            give a ``GraphedDecoder`` as the model to record once for many calls.
        return_state: Return the state and next logits too, by one more forward call over what was generated.

    Raises:
        TypeError: On ids or masks of another dtype.
        ValueError: On wrong shapes, an empty prompt with nothing to go on from, an end id outside the
            vocabulary; or, with row and position, a mask that forbids every id or a logit that is no number.
    """
    config = config or GenerationConfig()
    model = graphed(model, config, graph)
    begun = begin(model, prompt, config, lengths, state, next_logits)
    made = _run(model, begun, config, as_constraint(constraint), seeds)
    return _with_state(model, begun, made, config.copies) if return_state else made


def stream(
    model: Decoder,
    prompt: Prompt,
    config: GenerationConfig | None = None,
    *,
    lengths: Tensor | None = None,
    state: State | None = None,
    next_logits: Tensor | None = None,
    constraint: Constraining = None,
    seeds: Seeds = None,
    graph: bool | None = None,
) -> Iterator[Step]:
    """As ``generate``, from the same loop, but yields each id as soon as it is there.

    Prompts are read, and arguments checked, before the first id is asked for.

    Raises:
        TypeError, ValueError: As ``generate``; also for a beam search, whose ids are known at its end.
    """
    config = config or GenerationConfig()
    if config.strategy == "beam":
        raise ValueError(
            "strategy: a beam search knows its first id at its end; stream with greedy or sample"
        )
    model = graphed(model, config, graph)
    with torch.no_grad():
        begun = begin(model, prompt, config, lengths, state, next_logits)
        return _steps(model, begun, config, as_constraint(constraint), seeds, check_every=1)


def _run(
    model: Decoder, begun: Begun, config: GenerationConfig, constraint: Constraint | None, seeds: Seeds
) -> Generated:
    check_every = _LOOK_EVERY if begun.logits.is_cuda else 1
    if config.strategy == "beam":
        _check_vocabulary(config, begun)
        found = decode_beams(
            Decoding(model, begun, config.beam_width, constraint), config, check_every=check_every
        )
        found.ids = found.ids.masked_fill((found.scores == -torch.inf)[..., None], config.pad_id)
        keep = found.scores.flatten() > -torch.inf
        lengths = found.lengths.flatten() * keep
        longest = int(lengths.max())
        return Generated(
            found.ids.flatten(0, 1)[:, :longest],
            lengths,
            (found.log_probs.flatten(0, 1) * keep[:, None])[:, :longest],
            None,
            found.ended.flatten() & keep,
            found.scores.flatten(),
        )
    steps = list(_steps(model, begun, config, constraint, seeds, check_every=check_every))
    n_rows, device = len(begun.ids) * config.copies, begun.ids.device
    if not steps:
        nothing = torch.zeros(n_rows, 0, device=device)
        zero = torch.zeros(n_rows, dtype=torch.int64, device=device)
        sampled = nothing if config.strategy == "sample" else None
        return Generated(nothing.long(), zero, nothing, sampled, zero.bool(), zero.float())
    finished = torch.stack([step.finished for step in steps], 1)
    lengths = len(steps) - finished[:, :-1].sum(1)
    longest = int(lengths.max())
    log_probs = torch.stack([step.log_probs for step in steps], 1)[:, :longest]
    drawn = [step.sampled_log_probs for step in steps if step.sampled_log_probs is not None]
    return Generated(
        torch.stack([step.ids for step in steps], 1)[:, :longest],
        lengths,
        log_probs,
        torch.stack(drawn, 1)[:, :longest] if drawn else None,
        finished[:, -1],
        log_probs.sum(1),
    )


def _steps(
    model: Decoder,
    begun: Begun,
    config: GenerationConfig,
    constraint: Constraint | None,
    seeds: Seeds,
    *,
    check_every: int,
) -> Iterator[Step]:
    _check_vocabulary(config, begun)
    decoding = Decoding(model, begun, config.copies, constraint)
    draws = None
    if config.strategy == "sample":
        draws = Uniforms(_row_seeds(seeds, config, len(decoding)), decoding.device)
    elif seeds is not None:
        raise ValueError(f"seeds: nothing is drawn with strategy={config.strategy!r}; leave them out")
    fixed = isinstance(model, GraphedDecoder) and decoding.logits.is_cuda  # a graph is for one batch size
    return decode_rows(decoding, config, draws, check_every=check_every, drop=not fixed)


def _row_seeds(seeds: Seeds, config: GenerationConfig, n_rows: int) -> list[Seed]:
    if isinstance(seeds, Sequence):
        if len(seeds) != n_rows:
            raise ValueError(f"seeds: expected one for each of {n_rows} rows, got {len(seeds)}")
        return [as_seed(one) for one in seeds]
    if seeds is not None and not isinstance(seeds, torch.Generator):
        raise TypeError(f"seeds: expected a list of numbers or a torch.Generator, got {type(seeds).__name__}")
    if seeds is None and config.seed is not None:
        seed = config.seed
    else:
        device = "cpu" if seeds is None else seeds.device
        seed = int(torch.randint(2**62, (), generator=seeds, device=device))
    return [(seed, row) for row in range(n_rows)]


def as_seed(seed: Seed) -> Seed:
    """A row's seed.

    Raises:
        ValueError: If it is negative.
    """
    numbers = tuple(map(int, seed)) if isinstance(seed, tuple) else (int(seed),)
    if min(numbers) < 0:
        raise ValueError(f"seeds: expected numbers that are not negative, got {seed}")
    return numbers if isinstance(seed, tuple) else numbers[0]


def graphed(model: Decoder, config: GenerationConfig, graph: bool | None) -> Decoder:
    """The model with its step as a CUDA graph, where that is asked for or pays; see ``generate``."""
    if isinstance(model, GraphedDecoder):
        return model.model if graph is False else model
    if graph or (graph is None and config.max_new_tokens >= _WORTH_RECORDING):
        return GraphedDecoder(model)  # which takes the model's own step where there is no GPU
    return model


def _check_vocabulary(config: GenerationConfig, begun: Begun) -> None:
    n_ids = begun.logits.shape[-1]
    for one in config.eos_ids:
        if one >= n_ids:
            raise ValueError(f"eos_ids: {one} is outside the vocabulary of {n_ids} ids")


def _with_state(model: Decoder, begun: Begun, made: Generated, copies: int) -> Generated:
    """The state after each row's last id, whichever rows were dropped or reordered on the way."""
    rows = torch.arange(len(begun.ids), device=begun.ids.device).repeat_interleave(copies)
    state = begun.state.map(lambda tensor: tensor.index_select(0, rows))
    logits = begun.logits.index_select(0, rows)
    if made.ids.shape[1] > 0:
        after, state = read(model, made.ids, made.lengths, state)
        logits = torch.where((made.lengths == 0)[:, None], logits, after)
    return Generated(**{**made.__dict__, "state": state, "next_logits": logits})
