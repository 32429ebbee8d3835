"""Many sequences through few rows: where one ends, the next begins at once.

A batch that is decoded until its longest row ends spends many of its steps on rows that are over. The state
of a recurrent model is as large at any position, so a row of it can be overwritten by what another sequence
begins with while the other rows go on, each at its own position (as servers of transformers do, with more
to keep track of: Yu et al. 2022, "Orca", OSDI).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, repeat
from numbers import Integral
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mambakit.core.generation.config import GenerationConfig
from mambakit.core.generation.constraints import AllowedIds, Constraint, MaskFunction, as_constraint
from mambakit.core.generation.decoder import Begun, Decoder, device_of
from mambakit.core.generation.decoding import Decoding, Faults
from mambakit.core.generation.generate import as_seed, generate, graphed
from mambakit.core.generation.graphs import MOST_GRAPHS, GraphedDecoder, shapes
from mambakit.core.generation.rows import choose
from mambakit.core.generation.waiting import Fresh, Ids, Waiting
from mambakit.core.generation.warpers import Draws, Seed

# Ids between two waits for a GPU: a row that ends idles half as many on the way to the next look.
_LOOK_EVERY = 4


class Drawn(NamedTuple):
    """One whole sequence.

    Attributes:
        number: Which one: the place of its prompt, counted from 0.
        ids: What was generated, the end id included.
        finished: Ended by an end id, not by ``max_new_tokens``.
        log_prob: Of all its ids under the model alone, in nats.
    """

    number: int
    ids: list[int]
    finished: bool
    log_prob: float


def sample_stream(
    model: Decoder,
    prompts: Ids | Iterable[Ids],
    config: GenerationConfig,
    *,
    n: int | None = None,
    slots: int = 256,
    seeds: Iterable[Seed] | None = None,
    constraint: Constraint | None = None,
    graph: bool | None = None,
) -> Iterator[Drawn]:
    """Continue many prompts, ``slots`` at a time; each is given as soon as it has ended.

    A sequence comes out as ``generate`` with its prompt and seed would give it, whatever the number of slots.
    Which of two comes first does depend on them, and short ones tend to: who takes only some, and not all,
    takes them by number (``in_order``), or gets too many short ones.

    For models whose state is of one size at any position. Others (full attention, whose state grows) are
    decoded as ``generate`` does, ``slots`` after ``slots``, each time until the longest has ended.

    Args:
        model: A ``Decoder``; a ``GraphedDecoder`` replays its recording while rows change under it.
        prompts: Ids of one prompt, which is continued ``n`` times; or prompts, taken as slots get free, which
            may be endless. They are read ``slots`` at a time, like ones once.
        config: The options; greedy or sample, and ``n_samples`` 1.
        n: How many; by default as many as there are prompts.
        slots: Rows that are decoded at once.
        seeds: For sampling, one for each prompt in order. By default they come from the config's seed and
            the prompt's number, as those of ``generate`` do.
        constraint: What may come next, as it follows from the prompt and the ids: an object with ``start``,
            ``allowed`` and ``advance`` whose state keeps its size. ``start`` is asked about each prompt once,
            in order.
        graph: As in ``generate``.

    Raises:
        TypeError, ValueError: As ``generate``, with a prompt's number for its row; also for a beam search or
            several samples, one prompt without ``n``, a function as constraint or a mask for each prompt.
    """
    if config.strategy == "beam" or config.n_samples != 1:
        raise ValueError("config: expected greedy or sample with n_samples=1; give the prompt once for each")
    if seeds is not None and config.strategy != "sample":
        raise ValueError(f"seeds: nothing is drawn with strategy={config.strategy!r}; leave them out")
    if slots < 1:
        raise ValueError(f"slots: expected at least 1, got {slots}")
    if n is not None and n < 0:
        raise ValueError(f"n: expected a number that is not negative, got {n}")
    allowed = as_constraint(constraint)
    if isinstance(allowed, MaskFunction) or (isinstance(allowed, AllowedIds) and allowed.mask.dim() == 2):
        raise ValueError(
            "constraint: rows are at different positions and of changing prompts here, so it can't be a "
            "function of all rows' ids or a mask for each prompt; give an object with start, allowed and "
            "advance, or call generate"
        )
    if isinstance(prompts, Sequence | Tensor) and _is_one(prompts):
        if n is None:
            raise ValueError("n: how many? there is one prompt only")
        prompts = repeat(prompts)
    each = cast(Iterable[Ids], prompts)
    each = each if n is None else islice(each, n)
    model = graphed(model, config, graph)
    # a block is what is read, and also what the rows begin with
    waiting = Waiting(model, each, _seeds(config, seeds), allowed, start_id=config.start_id, block=slots)
    if config.max_new_tokens == 0 or not _keeps_its_size(model):
        return _in_batches(model, waiting, config, allowed)
    return _decode(model, waiting, config, allowed, slots)


def in_order(drawn: Iterable[Drawn]) -> Iterator[Drawn]:
    """The same by number, each as soon as all before it are there."""
    early: dict[int, Drawn] = {}
    following = 0
    for one in drawn:
        early[one.number] = one
        while following in early:
            yield early.pop(following)
            following += 1


@torch.no_grad()
def _decode(
    model: Decoder, waiting: Waiting, config: GenerationConfig, constraint: Constraint | None, slots: int
) -> Iterator[Drawn]:
    fresh = waiting.take(slots)
    if fresh is None:
        return
    n_rows, device = len(fresh.numbers), fresh.ids.device
    logits, state = model.step(fresh.ids, fresh.state, inplace=True)
    if config.eos_ids and max(config.eos_ids) >= logits.shape[-1]:
        one = max(config.eos_ids)
        raise ValueError(f"eos_ids: {one} is outside the vocabulary of {logits.shape[-1]} ids")
    begun = Begun(fresh.ids[:, None], torch.ones_like(fresh.ids), logits, state)
    decoding = Decoding(model, begun, 1, constraint, fresh.walk, keep=False)
    look_every = _LOOK_EVERY if device.type == "cuda" else 1
    draws = Draws(n_rows, look_every, device) if config.strategy == "sample" else None
    rows = _Rows(n_rows, config, device)
    rows.begin(list(range(n_rows)), fresh, draws)
    # a recorded step is for one number of rows, and few are recorded
    recorded = isinstance(model, GraphedDecoder) and device.type == "cuda"
    sizes = [n_rows >> k for k in range(MOST_GRAPHS)] if recorded else range(n_rows, 0, -1)
    while True:
        uniforms = iter(repeat(None, look_every) if draws is None else draws.next())
        ids = rows.add(decoding, next(uniforms))
        for some in uniforms:
            decoding.advance(ids)
            ids = rows.add(decoding, some)
        yield from rows.take_ended()
        free = [row for row, number in enumerate(rows.numbers) if number is None]
        begin: list[tuple[Tensor, Fresh]] = []
        while free and (some_fresh := waiting.take(len(free))):
            k = len(some_fresh.numbers)
            rows.begin(free[:k], some_fresh, draws)
            begin.append((torch.tensor(free[:k], device=device), some_fresh))
            free = free[k:]
        n_live = len(rows.numbers) - len(free)
        if n_live == 0:
            return
        for where, some_fresh in begin:
            ids = ids.index_copy(0, where, some_fresh.ids)
            decoding.restart(where, some_fresh.state)
        if free:
            size = min(one for one in sizes if one >= n_live)
            if size < len(rows.numbers):
                ids, moved = _shrink(decoding, rows, draws, ids, size)
                begin = [(moved[where], some_fresh) for where, some_fresh in begin]
        decoding.advance(ids)
        for where, some_fresh in begin:
            decoding.restart_walk(where, some_fresh.walk)


def _in_batches(
    model: Decoder, waiting: Waiting, config: GenerationConfig, constraint: Constraint | None
) -> Iterator[Drawn]:
    first = 0
    for prompts, seeds in waiting.blocks():
        each_seed = None if config.strategy != "sample" else cast(list[Seed], seeds)
        made = generate(model, prompts, config, constraint=constraint, seeds=each_seed)
        some = zip(made.sequences(), made.finished.tolist(), made.log_prob.tolist(), strict=True)
        yield from (Drawn(first + i, *one) for i, one in enumerate(some))
        first += len(prompts)


def _seeds(config: GenerationConfig, seeds: Iterable[Seed] | None) -> Iterable[Seed | None]:
    if config.strategy != "sample":
        return repeat(None)
    if seeds is not None:
        return map(as_seed, seeds)
    seed = int(torch.randint(2**62, ())) if config.seed is None else config.seed
    return ((seed, number) for number in count())


def _is_one(prompts: Sequence[object] | Tensor) -> bool:
    if isinstance(prompts, Tensor):
        return prompts.dim() == 1
    return len(prompts) == 0 or isinstance(prompts[0], Integral)


@torch.no_grad()
def _keeps_its_size(model: Decoder) -> bool:
    plain = model.model if isinstance(model, GraphedDecoder) else model
    state = plain.init_state(1)
    before = shapes(state)
    ids = torch.zeros(1, dtype=torch.int64, device=device_of(plain, state))
    return shapes(plain.step(ids, state)[1]) == before


class _Rows:
    """What each row has generated, kept on the device until it has ended."""

    def __init__(self, n_rows: int, config: GenerationConfig, device: torch.device) -> None:
        self.config = config
        self.numbers: list[int | None] = [None] * n_rows
        most = config.max_new_tokens
        # into the column after the last go the ids of rows that have ended
        self.ids = torch.zeros(n_rows, most + 1, dtype=torch.int64, device=device)
        self.lengths = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(n_rows, dtype=torch.float64, device=device)
        self.ended = torch.zeros(n_rows, dtype=torch.bool, device=device)
        self.faults = Faults(n_rows, device)
        self._ends = torch.tensor(config.eos_ids, dtype=torch.int64, device=device)

    def begin(self, rows: list[int], fresh: Fresh, draws: Draws | None) -> None:
        for row, number, seed in zip(rows, fresh.numbers, fresh.seeds, strict=True):
            self.numbers[row] = number
            if draws is not None and seed is not None:
                draws.begin(row, seed)
        where = torch.tensor(rows, device=self.ids.device)
        for tensor in (self.lengths, self.log_probs, self.ended):
            tensor.index_fill_(0, where, 0)

    def add(self, decoding: Decoding, uniforms: Tensor | None) -> Tensor:
        """Choose an id in every row; returns what the model is to read next, ``(rows,)``."""
        done = self._done()
        chosen = choose(decoding, self.config, uniforms)
        self.faults.note(self.lengths, chosen.not_a_number & ~done, chosen.forbidden & ~done)
        at = torch.where(done, self.config.max_new_tokens, self.lengths)
        self.ids.scatter_(1, at[:, None], chosen.ids[:, None])
        self.log_probs += chosen.log_probs.double().masked_fill(done, 0.0)
        self.lengths += ~done
        self.ended |= (chosen.ids[:, None] == self._ends).any(-1) & ~done
        return chosen.ids.masked_fill(self._done(), 0)

    def take_ended(self) -> list[Drawn]:
        """Those that have ended since last time; their rows are free. Waits for a GPU.

        Raises:
            ValueError: If a row is at fault.
        """
        faults, done = torch.stack([self.faults.kind, self._done().long()]).tolist()
        if any(faults):
            self.faults.report(torch.tensor([-1 if one is None else one for one in self.numbers]), 1)
        rows = [row for row, number in enumerate(self.numbers) if number is not None and done[row]]
        if not rows:
            return []
        where = torch.tensor(rows, device=self.ids.device)
        table = (self.ids, self.lengths, self.ended, self.log_probs)
        some = zip(rows, *(tensor[where].tolist() for tensor in table), strict=True)
        made = [
            Drawn(cast(int, self.numbers[row]), ids[:length], ended, log_prob)
            for row, ids, length, ended, log_prob in some
        ]
        for row in rows:
            self.numbers[row] = None
        return made

    def keep(self, rows: list[int], where: Tensor) -> None:
        """Go on with these rows, in this order."""
        self.numbers = [self.numbers[row] for row in rows]
        for name in ("ids", "lengths", "log_probs", "ended"):
            setattr(self, name, getattr(self, name)[where])
        self.faults.select(where)

    def _done(self) -> Tensor:
        return self.ended | (self.lengths == self.config.max_new_tokens)


def _shrink(
    decoding: Decoding, rows: _Rows, draws: Draws | None, ids: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Go on with ``size`` rows, all that live among them: the last ones move where rows are free.

    Returns what of ``ids`` stays, and where each row is now; rows that are free may be anywhere.
    """
    n_rows, order = len(rows.numbers), list(range(size))
    free = [row for row in order if rows.numbers[row] is None]
    late = [row for row in range(size, n_rows) if rows.numbers[row] is not None]
    to, late_rows = (
        torch.tensor(some, dtype=torch.int64, device=ids.device) for some in (free[: len(late)], late)
    )
    decoding.shrink(late_rows, to, size)
    for row, place in zip(late, free, strict=False):
        order[place] = row
    where = torch.tensor(order, device=ids.device)
    rows.keep(order, where)
    if draws is not None:
        draws.keep(order)
    places = torch.zeros(n_rows, dtype=torch.int64, device=ids.device)
    places[where] = torch.arange(size, device=ids.device)
    return ids[where], places
