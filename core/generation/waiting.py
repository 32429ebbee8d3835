"""Sequences that are still to begin: their prompts, read some at a time, and their seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from mambakit.core.generation.constraints import Constraint
from mambakit.core.generation.decoder import Decoder, as_batch, read
from mambakit.core.generation.warpers import Seed
from mambakit.core.state import State

Ids = Sequence[int] | Tensor


@dataclass(frozen=True)
class Fresh:
    """Sequences about to begin, ``k`` of them: each has read its prompt but for the last id."""

    numbers: list[int]
    seeds: list[Seed | None]
    ids: Tensor
    """The prompts' last ids, ``(k,)``: what a step reads next."""
    state: State
    """After all ids before."""
    walk: State | None
    """The constraint's, after the whole prompt."""


class Waiting:
    """Numbered prompts with their seeds.

    Args:
        model: Reads the prompts.
        prompts: In the order of their numbers.
        seeds: As many; None each where nothing is drawn.
        constraint: Its ``start`` is asked once about every prompt, a block at a time, in order.
        start_id: What an empty prompt is read as.
        block: How many prompts are read at once; like ones once for all.
    """

    def __init__(
        self,
        model: Decoder,
        prompts: Iterable[Ids],
        seeds: Iterable[Seed | None],
        constraint: Constraint | None,
        *,
        start_id: int | None,
        block: int,
    ) -> None:
        self._model = model
        self._prompts = iter(prompts)
        self._seeds = iter(seeds)
        self._constraint = constraint
        self._start_id = start_id
        self._size = block
        self._number = 0
        self._left: _Block | None = None
        self._known: dict[tuple[int, ...], int] = {}
        self._state = State.of()

    def take(self, most: int) -> Fresh | None:
        """The next ones, ``most`` at most and perhaps fewer; None if there are no more.

        Raises:
            TypeError, ValueError: If a prompt is not as ``generate`` wants it, or there is no seed for it.
        """
        if self._left is None:
            self._left = self._read()
        block = self._left
        if block is None:
            return None
        self._left = None if len(block.numbers) <= most else block.part(slice(most, None))
        block = block.part(slice(most))
        state = self._state.map(lambda tensor: tensor.index_select(0, block.places))
        return Fresh(block.numbers, block.seeds, block.ids, state, block.walk)

    def blocks(self) -> Iterator[tuple[list[Ids], list[Seed | None]]]:
        """All that is left, unread, in blocks: prompts and seeds."""
        while prompts := list(islice(self._prompts, self._size)):
            yield prompts, self._take_seeds(len(prompts))

    def _take_seeds(self, n: int) -> list[Seed | None]:
        seeds = list(islice(self._seeds, n))
        if len(seeds) < n:
            at = self._number + len(seeds)
            raise ValueError(f"seeds: expected one for each prompt, but there is none for number {at}")
        self._number += n
        return seeds

    def _read(self) -> _Block | None:
        prompts = list(islice(self._prompts, self._size))
        if not prompts:
            return None
        first = self._number
        seeds = self._take_seeds(len(prompts))
        numbers = list(range(first, first + len(prompts)))
        ids, lengths = as_batch(self._model, prompts, None, None, first_row=first)
        rows = [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
        if () in rows:
            if self._start_id is None:
                raise ValueError(
                    f"prompt: row {first + rows.index(())} is empty, and nothing says what comes next; "
                    "give start_id in the config"
                )
            rows = [row or (self._start_id,) for row in rows]
            ids, lengths = as_batch(self._model, rows, None, None)
        if not self._known.keys() >= set(rows):
            self._known = {row: i for i, row in enumerate(dict.fromkeys(rows))}
            self._state = self._read_heads([row[:-1] for row in self._known])
        places = torch.tensor([self._known[row] for row in rows], device=ids.device)
        last = ids[torch.arange(len(rows), device=ids.device), lengths - 1]
        walk = None if self._constraint is None else self._constraint.start(ids, lengths)
        return _Block(numbers, seeds, last, places, walk)

    def _read_heads(self, heads: list[tuple[int, ...]]) -> State:
        longest = max(map(len, heads))
        if longest == 0:
            return self._model.init_state(len(heads))
        ids, lengths = as_batch(self._model, heads, None, None)
        return read(self._model, ids, lengths, None)[1]


@dataclass(frozen=True)
class _Block:
    """As ``Fresh``, with the places of the rows' states, ``(k,)``, among those of unlike prompts."""

    numbers: list[int]
    seeds: list[Seed | None]
    ids: Tensor
    places: Tensor
    walk: State | None

    def part(self, which: slice) -> _Block:
        walk = None if self.walk is None else self.walk.map(lambda tensor: tensor[which])
        return _Block(self.numbers[which], self.seeds[which], self.ids[which], self.places[which], walk)
