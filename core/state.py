"""Recurrent state: a nested mapping of tensors, batch first.

What a model carries from one piece of a sequence to the next, so that a stream costs the same at
every step. A block's state maps names to tensors; a backbone's maps layer numbers to block states.
Operations return new states; nothing here changes a tensor in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import safetensors
import safetensors.torch
import torch
import torch.utils._pytree as pytree
from torch import Tensor

StateItem = Union[Tensor, "State"]

_NAMES_KEY = "state_names"  # metadata of a saved file: all names in order; an empty state's ends in a dot


class State(Mapping[str, StateItem]):
    """An immutable mapping from names to tensors ``(batch, ...)`` or to further states.

    A state is a pytree node, so ``torch.compile``, ``torch.export`` and ``torch.func`` see through it.

    Args:
        items: Names and what they hold. Names contain no dots (a dot joins nested names in files).

    Raises:
        TypeError: If an item is neither a tensor nor a state.
        ValueError: On an empty name or one with a dot, a tensor without a batch dimension, or items
            of different batch sizes.
    """

    __slots__ = ("_items",)

    _items: dict[str, StateItem]

    def __init__(self, items: Mapping[str, StateItem] | None = None) -> None:
        self._items = dict(items or {})
        for name, item in self._items.items():
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"state: a name must be a non-empty string without dots, got {name!r}")
            if not isinstance(item, (Tensor, State)):
                raise TypeError(f"state: {name!r} must be a tensor or a State, got {type(item).__name__}")
            if isinstance(item, Tensor) and item.dim() == 0:
                raise ValueError(f"state: {name!r} must have a batch dimension, got a scalar")
        sizes = {name: tensor.shape[0] for name, tensor in self.tensors()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"state: all tensors must have the same batch size, got {sizes}")

    @classmethod
    def of(cls, **items: StateItem) -> State:
        """A state of items known to be good: no checks, for the inside of blocks, where a step is short."""
        return cls._wrap(items)

    @classmethod
    def _wrap(cls, items: dict[str, Any]) -> State:
        state = object.__new__(cls)
        state._items = items
        return state

    def __getitem__(self, name: str) -> Any:
        try:
            return self._items[name]
        except KeyError:
            held = ", ".join(map(repr, self._items)) or "nothing"
            raise KeyError(f"state: no entry {name!r}; it holds {held}") from None

    def get(self, name: str, default: Any = None) -> Any:  # the mixin's way through an exception is slow
        """The item called ``name``, or ``default``."""
        return self._items.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    # Tensors do not compare to one bool, so neither do states.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        inner = ", ".join(
            f"{name}={item!r}"
            if isinstance(item, State)
            else f"{name}=<{str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}>"
            for name, item in self._items.items()
        )
        return f"State({inner})"

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its dotted name, ``("0.conv", tensor)``, in the order of the state."""
        for name, item in self._items.items():
            if isinstance(item, State):
                yield from item.tensors(f"{prefix}{name}.")
            else:
                yield prefix + name, item

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """A state of the same structure with ``function`` applied to every tensor."""
        return State._wrap(
            {
                name: item.map(function) if isinstance(item, State) else function(item)
                for name, item in self._items.items()
            }
        )

    @property
    def batch(self) -> int | None:
        """The batch size, or None for a state that holds no tensor."""
        for _, tensor in self.tensors():
            return tensor.shape[0]
        return None

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(tensor.nbytes for _, tensor in self.tensors())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
        """Move to a device, and cast the floating tensors (masks and counters keep their dtype)."""
        return self.map(
            lambda tensor: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        )

    def detach(self) -> State:
        """Cut the graph: gradients no longer flow into what came before (truncated backpropagation)."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """A copy with its own memory; gradients flow through it."""
        return self.map(Tensor.clone)

    def index_select(self, index: Tensor | Sequence[int]) -> State:
        """The rows of the batch that ``index`` names, in its order; a row may be taken more than once.

        Raises:
            IndexError: If a row is outside the batch.
            TypeError: If ``index`` is not a list of whole numbers.
        """
        rows = self._rows(index)
        return self.map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def _rows(self, index: Tensor | Sequence[int]) -> Tensor:
        rows = torch.as_tensor(index)
        if rows.numel() == 0:
            rows = rows.long()
        if rows.dim() != 1 or rows.dtype not in (torch.int64, torch.int32):
            raise TypeError(
                "index: expected a list or a 1-D tensor of int64 row numbers, "
                f"got {rows.dtype} {tuple(rows.shape)}"
            )
        batch = self.batch
        if batch is not None and rows.numel() > 0 and not 0 <= int(rows.min()) <= int(rows.max()) < batch:
            raise IndexError(f"index: rows must be in 0..{batch - 1}, got {rows.tolist()}")
        return rows.long()

    def where_rows(self, mask: Tensor, other: State) -> State:
        """The rows of ``other`` where ``mask`` is True, and this state's elsewhere.

        Args:
            mask: ``(batch,)`` bool.
            other: Of the same structure and batch size, for instance to begin rows anew.

        Raises:
            TypeError: If the mask is not bool.
            ValueError: If the mask or ``other`` has another batch size, or ``other`` another structure.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"mask: expected bool, got {mask.dtype}")
        if self.batch is not None and (mask.shape != (self.batch,) or other.batch != self.batch):
            raise ValueError(
                f"mask, other: expected a batch of {self.batch} rows, "
                f"got a mask of shape {tuple(mask.shape)} and a state of {other.batch} rows"
            )
        mine, others = _aligned([self, other])

        def choose(own: Tensor, new: Tensor) -> Tensor:
            chosen = mask.to(own.device).view(-1, *[1] * (own.dim() - 1))
            return torch.where(chosen, new.to(own), own)

        return _zip(choose, mine, others)

    def put_rows(self, index: Tensor | Sequence[int], other: State) -> State:
        """This state with row ``index[i]`` replaced by row ``i`` of ``other``.

        Args:
            index: Different row numbers, as many as ``other`` has rows.
            other: Of the same structure, for instance one request's state out of a store.

        Raises:
            IndexError: If a row is outside the batch.
            TypeError: If ``index`` is not a list of whole numbers.
            ValueError: If a row is named twice, or ``other`` has another structure or number of rows.
        """
        rows = self._rows(index)
        if other.batch is not None and other.batch != rows.numel():
            raise ValueError(
                f"index: expected one row for each of the {other.batch} of other, got {rows.numel()}"
            )
        if rows.unique().numel() != rows.numel():
            raise ValueError(f"index: a row is named twice in {rows.tolist()}")
        mine, others = _aligned([self, other])
        return _zip(lambda own, new: own.index_copy(0, rows.to(own.device), new.to(own)), mine, others)

    @staticmethod
    def cat(states: Iterable[State]) -> State:
        """Join states along the batch, for instance to serve several streams in one call.

        Attention caches of different lengths are padded with entries that are not valid.

        Raises:
            ValueError: If there is none, or their structures or shapes (apart from the batch) differ.
        """
        parts = list(states)
        if not parts:
            raise ValueError("states: expected at least one state to join, got none")
        return _zip(lambda *column: torch.cat(column), *_aligned(parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts of the tensors, for a checkpoint."""
        return {
            name: item.to_dict() if isinstance(item, State) else item for name, item in self._items.items()
        }

    @classmethod
    def from_dict(cls, items: Mapping[str, Any]) -> State:
        """The inverse of ``to_dict``.

        Raises:
            TypeError, ValueError: As the constructor.
        """
        return cls(
            {name: cls.from_dict(item) if isinstance(item, Mapping) else item for name, item in items.items()}
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; nested names are joined by dots."""
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in self.tensors()}
        metadata = {_NAMES_KEY: json.dumps(list(self._leaf_names()))}
        safetensors.torch.save_file(tensors, str(path), metadata=metadata)

    def _leaf_names(self, prefix: str = "") -> Iterator[str]:
        for name, item in self._items.items():
            if isinstance(item, State) and len(item) > 0:
                yield from item._leaf_names(f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}." if isinstance(item, State) else prefix + name

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> State:
        """Read a file written by ``save``.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a safetensors file of a state.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path: no state file at {path}")
        tree: dict[str, Any] = {}
        try:
            with safetensors.safe_open(str(path), framework="pt", device=str(device)) as file:
                for name in json.loads((file.metadata() or {})[_NAMES_KEY]):
                    # a copy, as memory aligned otherwise gives matrix products another last digit
                    item = {} if name.endswith(".") else file.get_tensor(name).clone()
                    _insert(tree, name.rstrip(".").split("."), item)
        except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"path: {path} is not a saved state ({error})") from error
        return cls.from_dict(tree)


def _zip(function: Callable[..., Tensor], *states: State) -> State:
    """``function`` of the tensors of the same name in states of the same structure."""
    joined: dict[str, StateItem] = {}
    for name, item in states[0].items():
        column = [state[name] for state in states]
        joined[name] = _zip(function, *column) if isinstance(item, State) else function(*column)
    return State._wrap(joined)


def _aligned(states: Sequence[State]) -> list[State]:
    """The states, caches padded to one length, if they have the same structure and shapes after the batch.

    Raises:
        ValueError: If they have not.
    """
    first = states[0]
    for i, other in enumerate(states[1:], start=1):
        if list(other) != list(first):
            raise ValueError(f"states: number {i} holds {list(other)}, the first one {list(first)}")
    for names in _caches(first):
        if all(names in _caches(state) for state in states):
            lengths = [state[names[0]].shape[1] for state in states]
            parts = {name: _lengthened([state[name] for state in states], lengths) for name in names}
            states = [
                State._wrap({**state, **{name: parts[name][i] for name in names}})
                for i, state in enumerate(states)
            ]
            first = states[0]
    columns: dict[str, list[Any]] = {}
    for name, item in first.items():
        column = [state[name] for state in states]
        if isinstance(item, State):
            if not all(isinstance(part, State) for part in column):
                raise ValueError(f"states: {name!r} is a nested state in some and a tensor in others")
            columns[name] = _aligned(column)
            continue
        for i, part in enumerate(column):
            if not isinstance(part, Tensor) or part.shape[1:] != item.shape[1:]:
                got = tuple(part.shape[1:]) if isinstance(part, Tensor) else "a nested state"
                raise ValueError(
                    f"states: {name!r} has shape {got} after the batch in number {i} "
                    f"and {tuple(item.shape[1:])} in the first one"
                )
        columns[name] = column
    return [State._wrap({name: column[i] for name, column in columns.items()}) for i in range(len(states))]


def _caches(state: State) -> list[list[str]]:
    """Names of what makes up each attention cache, all ``(batch, cached, ...)``; a block may lead them.

    A compressed key or value is a nested state of such tensors, and perhaps of others.
    """
    found = []
    for name, item in state.items():
        if name.endswith("valid") and isinstance(item, Tensor) and item.dtype == torch.bool:
            lead = name.removesuffix("valid")
            names = [lead + part for part in ("valid", "key", "value") if lead + part in state]
            if all(
                any(tensor.shape[:2] == item.shape for _, tensor in State._wrap({"": state[part]}).tensors())
                for part in names
            ):
                found.append(names)
    return found


def _lengthened(parts: list[Any], lengths: list[int]) -> list[Any]:
    """One part of some caches, each padded from its own length of ``lengths`` to the longest.

    What a compressed part keeps otherwise than for each token stays, and so does what cannot be joined.
    """
    if all(isinstance(part, State) and list(part) == list(parts[0]) for part in parts):
        columns = {name: _lengthened([part[name] for part in parts], lengths) for name in parts[0]}
        return [State._wrap({name: columns[name][i] for name in columns}) for i in range(len(parts))]
    if not all(isinstance(part, Tensor) for part in parts) or len({part.shape[1] for part in parts}) == 1:
        return parts
    missing = [max(lengths) - n if part.shape[1] == n else 0 for part, n in zip(parts, lengths, strict=True)]
    return [
        torch.cat([part, part.new_zeros(part.shape[0], n, *part.shape[2:])], dim=1) if n else part
        for part, n in zip(parts, missing, strict=True)
    ]


def _insert(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _flatten(state: State) -> tuple[list[Any], list[str]]:
    return list(state._items.values()), list(state._items)


def _flatten_with_keys(state: State) -> tuple[list[tuple[Any, Any]], list[str]]:
    return [(pytree.MappingKey(name), item) for name, item in state._items.items()], list(state._items)


def _unflatten(values: Iterable[Any], names: list[str]) -> State:
    return State._wrap(dict(zip(names, values, strict=True)))


pytree.register_pytree_node(
    State,
    _flatten,
    _unflatten,
    serialized_type_name="mambakit.core.state.State",
    flatten_with_keys_fn=_flatten_with_keys,
)
