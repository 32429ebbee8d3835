"""What may come next: a set of ids per row, a trie of allowed sequences, any automaton, any mask function.

A constraint keeps its own ``State``, so that the decoding loop reorders and drops its rows as it does the
model's. A plain function (see ``MaskFunction``) and any object with the three methods of ``Constraint`` do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mambakit.core.state import State


@runtime_checkable
class Constraint(Protocol):
    """Which ids may come next, given what came before.

    The loop also asks about rows that have ended; what is answered then, and what such rows advance by,
    does not matter, but it must be no error.
    """

    def start(self, prompt: Tensor, lengths: Tensor) -> State:
        """The state of each prompt's row; prompts ``(batch, length)`` right-padded, lengths ``(batch,)``."""
        ...

    def allowed(self, state: State) -> Tensor:
        """True where an id may come next, ``(rows, n_ids)``."""
        ...

    def advance(self, state: State, ids: Tensor) -> State:
        """The state after one more id ``(rows,)`` in every row; the given one stays as it is."""
        ...


class MaskFunction:
    """A function of the generated ids.

    Args:
        function: From the ids generated so far, ``(rows, n)``, and the number of the prompt that each row
            continues, ``(rows,)``, to a bool mask ``(rows, n_ids)``.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def start(self, prompt: Tensor, lengths: Tensor) -> State:
        batch = prompt.shape[0]
        return State.of(ids=prompt.new_zeros(batch, 0), prompt=torch.arange(batch, device=prompt.device))

    def allowed(self, state: State) -> Tensor:
        return self.function(state["ids"], state["prompt"])

    def advance(self, state: State, ids: Tensor) -> State:
        return State.of(ids=torch.cat([state["ids"], ids[:, None]], 1), prompt=state["prompt"])


class AllowedIds:
    """A set of ids for each prompt.

    Args:
        mask: Bool ``(batch, n_ids)``, or ``(n_ids,)`` for every prompt alike.
        once: No id comes twice in a row (a list of recommended items); those of ``keep`` may.
        keep: Ids that stay allowed with ``once``, such as the end id.

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If it has another number of dimensions, or (in the loop) of prompts.
    """

    def __init__(self, mask: Tensor, *, once: bool = False, keep: Sequence[int] = ()) -> None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask: expected a bool tensor, got {got}")
        if mask.dim() not in (1, 2):
            raise ValueError(f"mask: expected shape (batch, n_ids) or (n_ids,), got {tuple(mask.shape)}")
        self.mask = mask
        self.once = once
        self.keep = torch.tensor(list(keep), dtype=torch.int64)

    @classmethod
    def of(
        cls, sets: Sequence[Iterable[int]], n_ids: int, *, once: bool = False, keep: Sequence[int] = ()
    ) -> AllowedIds:
        """From one collection of ids for each prompt.

        Raises:
            ValueError: If an id is outside ``0..n_ids-1``.
        """
        mask = torch.zeros(len(sets), n_ids, dtype=torch.bool)
        for row, ids in enumerate(sets):
            for one in ids:
                if not 0 <= one < n_ids:
                    raise ValueError(f"sets: row {row} allows id {one}, outside the vocabulary of {n_ids}")
                mask[row, one] = True
        return cls(mask, once=once, keep=keep)

    def start(self, prompt: Tensor, lengths: Tensor) -> State:
        self.keep = self.keep.to(prompt.device)
        mask = self.mask.to(prompt.device)
        if mask.dim() == 1:
            mask = mask.expand(prompt.shape[0], -1)
        if mask.shape[0] != prompt.shape[0]:
            raise ValueError(f"mask: it is for {mask.shape[0]} prompts, but there are {prompt.shape[0]}")
        return State.of(mask=mask)

    def allowed(self, state: State) -> Tensor:
        return state["mask"]

    def advance(self, state: State, ids: Tensor) -> State:
        if not self.once:
            return state
        used = torch.zeros_like(state["mask"]).scatter(1, ids[:, None], True).index_fill(1, self.keep, False)
        return State.of(mask=state["mask"] & ~used)


class PrefixTrie:
    """Exactly the listed sequences, each followed by an end id.

    Args:
        sequences: What may be generated, without the end ids.
        n_ids: Size of the vocabulary.
        eos_ids: The ids that may follow a whole sequence; those of the config.

    Raises:
        ValueError: If there are no sequences or no end ids, an id is outside the vocabulary, or a sequence
            contains an end id.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], n_ids: int, eos_ids: Sequence[int]) -> None:
        ends = set(eos_ids)
        if not ends or not all(0 <= one < n_ids for one in ends):
            raise ValueError(f"eos_ids: expected ids in 0..{n_ids - 1} that end a sequence, got {eos_ids}")
        children: list[dict[int, int]] = [{}]  # node -> id -> node; node 0 is the root
        complete = set()
        for number, sequence in enumerate(sequences):
            node = 0
            for one in sequence:
                one = int(one)
                if not 0 <= one < n_ids or one in ends:
                    what = "is an end id" if one in ends else f"is outside the vocabulary of {n_ids}"
                    raise ValueError(f"sequences: id {one} of number {number} {what}")
                if one not in children[node]:
                    children[node][one] = len(children)
                    children.append({})
                node = children[node][one]
            complete.add(node)
        if not complete:
            raise ValueError("sequences: expected at least one allowed sequence, got none")
        over = len(children)  # where an ended row is: nothing follows
        children.append({})
        for node in complete:
            children[node].update(dict.fromkeys(ends, over))
        self.n_ids = n_ids
        # the children of a node lie together, and sorted: a row of the table is a slice of these
        counts = torch.tensor([len(one) for one in children])
        edges = [
            (node, one, child) for node, some in enumerate(children) for one, child in sorted(some.items())
        ]
        table = torch.tensor(edges).T
        self._tables = {
            "first": counts.cumsum(0) - counts,
            "count": counts,
            "key": table[0] * n_ids + table[1],
            "id": table[1],
            "child": table[2],
        }
        self._over = over
        self._widest = int(counts.max())

    def start(self, prompt: Tensor, lengths: Tensor) -> State:
        self._tables = {name: table.to(prompt.device) for name, table in self._tables.items()}
        return State.of(node=prompt.new_zeros(prompt.shape[0]))

    def allowed(self, state: State) -> Tensor:
        node, tables = state["node"], self._tables
        offsets = torch.arange(self._widest, device=node.device)
        places = (tables["first"][node, None] + offsets).clamp(max=len(tables["id"]) - 1)
        ids = tables["id"][places].masked_fill(offsets >= tables["count"][node, None], self.n_ids)
        mask = torch.zeros(len(node), self.n_ids + 1, dtype=torch.bool, device=node.device)
        return mask.scatter(1, ids, True)[:, : self.n_ids]

    def advance(self, state: State, ids: Tensor) -> State:
        key = state["node"] * self.n_ids + ids
        place = torch.searchsorted(self._tables["key"], key).clamp(max=len(self._tables["key"]) - 1)
        found = self._tables["key"][place] == key
        return State.of(node=torch.where(found, self._tables["child"][place], self._over))


class Automaton:
    """Any grammar whose progress is a hashable Python value, read on the CPU; what it says is remembered.

    Args:
        begin: From the ids of a prompt to where its row starts.
        follow: From a value and the next id to the next value.
        allowed: From a value to the ids that may come next; none after the end of a sequence.
        n_ids: Size of the vocabulary.
    """

    def __init__(
        self,
        begin: Callable[[list[int]], Hashable],
        follow: Callable[[Hashable, int], Hashable],
        allowed: Callable[[Hashable], Iterable[int]],
        n_ids: int,
    ) -> None:
        self._begin, self._follow, self._allowed = begin, follow, allowed
        self.n_ids = n_ids
        self._values: list[Hashable] = []
        self._numbers: dict[Hashable, int] = {}
        self._masks: list[Tensor] = []
        self._next: dict[tuple[int, int], int] = {}

    def start(self, prompt: Tensor, lengths: Tensor) -> State:
        rows = [row[:n] for row, n in zip(prompt.tolist(), lengths.tolist(), strict=True)]
        numbers = [self._number(self._begin(row)) for row in rows]
        return State.of(number=torch.tensor(numbers, dtype=torch.int64, device=prompt.device))

    def allowed(self, state: State) -> Tensor:
        number = state["number"]
        if len(number) == 0:
            return torch.zeros(0, self.n_ids, dtype=torch.bool, device=number.device)
        return torch.stack([self._masks[one] for one in number.tolist()]).to(number.device)

    def advance(self, state: State, ids: Tensor) -> State:
        numbers = [self._step(*pair) for pair in zip(state["number"].tolist(), ids.tolist(), strict=True)]
        return State.of(number=torch.tensor(numbers, dtype=torch.int64, device=ids.device))

    def _number(self, value: Hashable) -> int:
        if value not in self._numbers:
            mask = torch.zeros(self.n_ids, dtype=torch.bool)
            for one in self._allowed(value):
                if not 0 <= one < self.n_ids:
                    raise ValueError(f"allowed: id {one} is outside the vocabulary of {self.n_ids}")
                mask[one] = True
            self._numbers[value] = len(self._values)
            self._values.append(value)
            self._masks.append(mask)
        return self._numbers[value]

    def _step(self, number: int, one: int) -> int:
        if not self._masks[number][one]:
            return number  # a row that has ended
        if (number, one) not in self._next:
            self._next[number, one] = self._number(self._follow(self._values[number], one))
        return self._next[number, one]


def as_constraint(constraint: object) -> Constraint | None:
    """The constraint that a caller means.

    Raises:
        TypeError: If it is neither None, a function, nor a constraint.
    """
    if constraint is None or isinstance(constraint, Constraint):
        return constraint
    if callable(constraint):
        return MaskFunction(constraint)
    raise TypeError(
        "constraint: expected a function from ids to a mask, or an object with start, allowed and advance, "
        f"got {type(constraint).__name__}"
    )
