"""A tape: what a launcher of Triton kernels allocates and starts, noted so that it can be done again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambakit.kernels.soundness import check, watch

watch()

Tensors = tuple[Any, ...]  # of Tensor | None
# "argument", "made", "view" or "constant", and the place among those of its kind
Source = tuple[str, int]


class View(NamedTuple):
    """A part of an argument or of an allocation: ``offset`` in bytes from its address."""

    source: Any  # a Source, or its place in a recording's pool
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Launch(NamedTuple):
    """A kernel, its programs, arguments and options; what Triton compiled, None where it interprets."""

    kernel: Any
    grid: tuple[int, ...]
    sources: list[Source]
    options: dict[str, Any]
    compiled: Any


class Tape:
    """What a launcher allocates and launches through.

    A launcher may hand to kernels the tensors that it was given, what it allocated here, views of that, and
    numbers, and may return the same but views; it calls no torch function that computes. Where a kernel gets
    anything else, such as a contiguous copy of an argument, there is no recording: such calls are rare.

    Args:
        tensors: What the launcher is given, each an object of its own; None notes nothing.
    """

    def __init__(self, tensors: Tensors | None = None) -> None:
        self.tensors = tensors or ()
        self._records = tensors is not None
        self.restart()

    def restart(self) -> None:
        """Forget what a launcher did that could not finish."""
        self._complete = self._records
        # by the id of a tensor: its kind and its place among those of its kind
        self._sources: dict[int, Source] = {}
        for i, v in enumerate(self.tensors):
            if v is not None:
                self._sources[id(v)] = "argument", i
        self.made: list[Tensor] = []
        self._storages: dict[int, int] = {}
        self.views: list[View] = []
        self._alive: list[Tensor] = []  # so that no id is used twice
        self.constants: list[Any] = []
        self.launches: list[Launch] = []

    def stop(self) -> None:
        """No recording: a torch function computes something here."""
        self._complete = False

    def empty(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """``torch.empty``."""
        made = torch.empty(tuple(shape), dtype=dtype, device=device)
        if self._complete:
            self._sources[id(made)] = "made", len(self.made)
            self._storages[made.untyped_storage().data_ptr()] = len(self.made)
            self.made.append(made)
        return made

    def view(self, tensor: Tensor, of: Tensor) -> Tensor:
        """``tensor``, noted as a view of the argument ``of`` where it is one."""
        shared = tensor.untyped_storage().data_ptr() == of.untyped_storage().data_ptr()
        if self._complete and shared and tensor is not of:
            self._note_view(tensor, of)
        return tensor

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
        """``kernel[grid](*args, **named)``.

        Raises:
            MiscompiledError: If it is no sound program.
        """
        compiled = kernel[grid](*args, **named)
        check(compiled)
        if not self._complete:
            return
        names = kernel.arg_names
        values = dict(zip(names, args, strict=False))
        options: dict[str, Any] = {}
        for name, value in named.items():
            (values if name in names else options)[name] = value
        sources = []
        for name in names:
            value = values[name]
            if isinstance(value, Tensor):
                sources.append(self._source(value))
            else:
                sources.append(("constant", len(self.constants)))
                self.constants.append(value)
        self.launches.append(Launch(kernel, (*grid, 1, 1)[:3], sources, options, compiled))

    def _source(self, value: Tensor) -> Source:
        found = self._sources.get(id(value))
        if found is None and value.numel():
            made = self._storages.get(value.untyped_storage().data_ptr())
            if made is not None:
                found = self._note_view(value, self.made[made])
        if found is None:
            self._complete = False
            return "constant", 0
        return found

    def _note_view(self, view: Tensor, of: Tensor) -> Source:
        source = self._sources[id(of)]
        offset = view.data_ptr() - of.data_ptr()
        self._alive.append(view)
        self.views.append(View(source, offset, view.dtype, tuple(view.shape), view.stride()))
        found = self._sources[id(view)] = "view", len(self.views) - 1
        return found

    def places(self, results: Tensors) -> list[Source | None] | None:
        """Where the launcher's results come from; None where it cannot be done again without it."""
        found = [None if v is None else self._sources.get(id(v), ("", 0)) for v in results]
        if not self._complete or any(v is not None and v[0] not in ("argument", "made") for v in found):
            return None
        return found
