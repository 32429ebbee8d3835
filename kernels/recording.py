"""Recorded launches: what a call on Triton does in Python, done once for each make of its arguments.

Checks, tiles, strides and Triton's look at every argument depend on dtypes, shapes, strides, device, 16-byte
alignment and options, and not on the numbers. So an op's launcher runs once for each make of arguments, and
notes on a ``Tape`` what it allocates and which compiled kernels it starts on what. Later calls allocate as
much, and hand addresses to the same compiled kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambakit.kernels.launch import PLAIN, on_device_of

try:
    from triton import knobs
except ImportError:  # a Triton of another way of launching: nothing is recorded
    knobs = None

Tensors = tuple[Any, ...]  # of Tensor | None
Options = tuple[Hashable, ...]
Launcher = Callable[["Tape", Tensors, Options], Tensors]

# a sequence of a new length is of a new make
MOST_RECORDINGS = 1024
# of the parts of a scratch buffer, as the allocator's own
_ALIGNMENT = 512


class _View(NamedTuple):
    """A part of an argument or of an allocation: ``offset`` in bytes from its address."""

    source: Any
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    pick: Callable[[Sequence[Any]], tuple[Any, ...]]
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
        self._records = tensors is not None and knobs is not None
        self.restart()

    def restart(self) -> None:
        """Forget what a launcher did that could not finish."""
        self._complete = self._records
        # by the id of a tensor: its kind and its place among those of its kind
        self._sources: dict[int, tuple[str, int]] = {}
        for i, v in enumerate(self.tensors):
            if v is not None:
                self._sources[id(v)] = "argument", i
        self.made: list[Tensor] = []
        self._storages: dict[int, int] = {}
        self.views: list[_View] = []
        self._alive: list[Tensor] = []  # so that no id is used twice
        self.constants: list[Any] = []
        self.launches: list[tuple[Any, tuple[int, ...], list[tuple[str, int]], dict[str, Any], Any]] = []

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
        """``kernel[grid](*args, **named)``."""
        compiled = kernel[grid](*args, **named)
        if not self._complete:
            return
        names = kernel.arg_names
        values = dict(zip(names, args, strict=False))
        options = {}
        for name, value in named.items():
            (values if name in names else options)[name] = value
        sources = [self._source(values[name]) for name in names]
        if self._complete:
            self.launches.append((kernel, (*grid, 1, 1)[:3], sources, options, compiled))

    def _source(self, value: Any) -> tuple[str, int]:
        if not isinstance(value, Tensor):
            self.constants.append(value)
            return "constant", len(self.constants) - 1
        found = self._sources.get(id(value))
        if found is None and value.numel():
            made = self._storages.get(value.untyped_storage().data_ptr())
            if made is not None:
                found = self._note_view(value, self.made[made])
        if found is None:
            self._complete = False
            return "constant", 0
        return found

    def _note_view(self, view: Tensor, of: Tensor) -> tuple[str, int]:
        source = self._sources[id(of)]
        offset = view.data_ptr() - of.data_ptr()
        self._alive.append(view)
        self.views.append(_View(source, offset, view.dtype, tuple(view.shape), view.stride()))
        found = self._sources[id(view)] = "view", len(self.views) - 1
        return found

    def finish(self, options: Options, results: Tensors) -> Recording | None:
        """What was noted since the last restart; None where it cannot be done again."""
        found = [None if v is None else self._sources.get(id(v), ("", 0)) for v in results]
        if not self._complete or any(v is not None and v[0] not in ("argument", "made") for v in found):
            return None
        return Recording(self, options, found)


class Recording:
    """What one call allocates and launches. It holds no tensor.

    Attributes:
        options: The launcher's, as checked.
    """

    def __init__(self, tape: Tape, options: Options, results: list[tuple[str, int] | None]) -> None:
        self.options = options
        tensors, made, launches = tape.tensors, tape.made, tape.launches
        device = next(v for v in tensors if v is not None).device
        self._device = device
        self._index = device.index if device.type == "cuda" else None
        self._runs: list[Any] | None = None  # stays None under the interpreter
        compiled = all(launch[-1] is not None for launch in launches)
        # the order of the pool that launches pick from: arguments, results, scratch, views, constants
        places: list[tuple[str, int]] = [("argument", i) for i in range(len(tensors))]
        returned = sorted({found[1] for found in results if found is not None and found[0] == "made"})
        scratch = [i for i in range(len(made)) if i not in returned]
        places += [("made", i) for i in (*returned, *scratch)]
        place = {source: i for i, source in enumerate(places)}
        self._outputs = [(made[i].shape, made[i].dtype) for i in returned]
        self._scratch: list[tuple[int, torch.dtype, torch.Size]] = []
        self._scratch_bytes = 0
        for i in scratch:
            self._scratch.append((self._scratch_bytes, made[i].dtype, made[i].shape))
            self._scratch_bytes += -(-made[i].nbytes // _ALIGNMENT) * _ALIGNMENT
        self._views: list[_View] = []
        first = len(place)
        for i, view in enumerate(tape.views):
            view = view._replace(source=place[view.source])
            if compiled and view.offset == 0:  # an address is all that counts
                place["view", i] = view.source
            else:
                place["view", i] = first + len(self._views)
                self._views.append(view)
        first += len(self._views)
        self._constants = tape.constants
        place.update((("constant", i), first + i) for i in range(len(tape.constants)))
        self._results = [None if found is None else place[found] for found in results]
        self._launches = [
            _Launch(kernel, grid, itemgetter(*(place[source] for source in sources)), options, compiled)
            for kernel, grid, sources, options, compiled in launches
        ]
        if compiled:
            self._current_stream = _no_stream if self._index is None else _driver().get_current_stream
            self._runs = [
                (k.compiled.run, *k.grid, k.compiled.function, k.compiled.packed_metadata, k.pick)
                for k in self._launches
            ]

    def play(self, tensors: Tensors, addresses: list[int | None]) -> Tensors:
        """The call on arguments of the same make. ``addresses``: theirs, a list that this may change."""
        if self._runs is None:
            return self._interpret(tensors)
        if self._index is None or self._index == torch.cuda.current_device():
            return self._launch(self._runs, tensors, addresses)
        with torch.cuda.device(self._device):
            return self._launch(self._runs, tensors, addresses)

    def _launch(self, runs: list[Any], tensors: Tensors, pool: list[Any]) -> Tensors:
        device = self._device
        values = [*tensors]
        for shape, dtype in self._outputs:
            made = torch.empty(shape, dtype=dtype, device=device)
            values.append(made)
            pool.append(made.data_ptr())
        if self._scratch_bytes:
            arena = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=device)
            base = arena.data_ptr()
            pool += [base + offset for offset, _, _ in self._scratch]
        else:
            pool += [0] * len(self._scratch)
        for source, offset, _, _, _ in self._views:
            pool.append(pool[source] + offset)
        pool += self._constants
        if _watched():
            for _, grid, pick, _, compiled in self._launches:
                compiled[grid](*pick(pool))
        else:  # what compiled[grid] does, but for the hooks
            stream = self._current_stream(self._index)
            for run, x, y, z, function, metadata, pick in runs:
                run(x, y, z, stream, function, metadata, None, None, None, *pick(pool))
        return tuple([None if i is None else values[i] for i in self._results])

    def _interpret(self, tensors: Tensors) -> Tensors:
        """As ``_launch``, with tensors in place of addresses."""
        pool = [*tensors]
        pool += [torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype in self._outputs]
        arena = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=self._device)
        for offset, dtype, shape in self._scratch:
            size = shape.numel() * dtype.itemsize
            pool.append(arena[offset : offset + size].view(dtype).view(shape))
        for source, offset, dtype, shape, stride in self._views:
            start = pool[source].storage_offset() + offset // dtype.itemsize
            pool.append(pool[source].as_strided(shape, stride, start))
        pool += self._constants
        for kernel, grid, pick, options, _ in self._launches:
            kernel[grid](*pick(pool), **options)
        return tuple(None if i is None else pool[i] for i in self._results)


class Found(NamedTuple):
    """A recording, and what playing it on these arguments takes."""

    recording: Recording
    addresses: list[int | None]
    needs_grad: bool


class Recordings:
    """The recordings of one launcher, by the make of its arguments.

    Args:
        launcher: Gets a tape, the tensors and the options, and returns tensors; see ``Tape``.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._kept: dict[Hashable, Recording | None] = {}  # None: the make is known not to be recordable
        self._lock = threading.Lock()
        _all.append(self)

    def find(self, tensors: Tensors, options: Options) -> Found | None:
        """The recording for these arguments, checked or not: none is found for a make that was never run."""
        made = _make_of(tensors, options)
        if made is None:
            return None
        key, addresses, needs_grad = made
        try:
            recording = self._kept.get(key)
        except TypeError:  # an option that is no hashable value
            return None
        return None if recording is None else Found(recording, addresses, needs_grad)

    def run(self, tensors: Tensors, options: Options) -> Tensors:
        """The launcher's results for checked arguments; autograd hears nothing of it."""
        made = _make_of(tensors, options)
        if made is None:
            return self._launcher(Tape(), tensors, options)
        key, addresses, _ = made
        recording = self._kept.get(key)
        if recording is not None:
            return recording.play(tensors, addresses)
        # an object twice among the arguments would pass for one argument
        seen: set[int] = set()
        given = []
        for v in tensors:
            given.append(v.detach() if v is not None and id(v) in seen else v)
            seen.add(id(v))
        tape = Tape(None if key in self._kept else tuple(given))
        with on_device_of(next(v for v in tensors if v is not None)):
            results = self._launcher(tape, tuple(given), options)
        if key not in self._kept:
            recording = tape.finish(options, results)
            with self._lock:
                self._kept[key] = recording
                if len(self._kept) > MOST_RECORDINGS:
                    del self._kept[next(iter(self._kept))]
        return results

    def __len__(self) -> int:
        return len(self._kept)

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()


def forget_recordings() -> None:
    """For whoever changes what launchers go by."""
    for recordings in _all:
        recordings.forget()


_all: list[Recordings] = []


def _make_of(tensors: Tensors, options: Options) -> tuple[Hashable, list[int | None], bool] | None:
    """What a call depends on but for the numbers; the addresses; whether autograd wants to hear of it."""
    key: list[Hashable] = [options]
    addresses: list[int | None] = []
    grad = torch.is_grad_enabled()
    needs_grad = False
    low_bits = 0
    for v in tensors:
        if v is None:
            key.append(None)
            addresses.append(None)
            continue
        if type(v) not in PLAIN:
            return None
        address = v.data_ptr()
        low_bits |= address
        addresses.append(address)
        key += (v.dtype, v.shape, v.stride(), v.get_device())
        if grad and v.requires_grad:
            needs_grad = True
    if low_bits & 15:
        key.append(tuple([at is None or at & 15 == 0 for at in addresses]))
    return tuple(key), addresses, needs_grad


def _watched() -> bool:
    """Whether a profiler wants to hear of launches."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return (enter is not None and getattr(enter, "calls", True)) or (
        leave is not None and getattr(leave, "calls", True)
    )


def _driver() -> Any:
    from triton.runtime import driver

    return driver.active


def _no_stream(_: object) -> int:
    """Off a GPU."""
    return 0
