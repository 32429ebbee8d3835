"""Recorded launches: what a call on Triton does in Python, done once for each make of its arguments.

Checks, tiles, strides and Triton's look at every argument depend on dtypes, shapes, strides, device, 16-byte
alignment and options, and not on the numbers. So when a make of arguments comes for the second time, the op's
launcher notes on a ``Tape`` what it allocates and which compiled kernels it starts on what. Later calls
allocate as much, and hand addresses to the same compiled kernels. A make that never comes again, a sequence
of a length of its own, costs no notes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambakit.kernels.launch import PLAIN, is_eager, needs_grad, on_device_of
from mambakit.kernels.tape import Source, Tape, Tensors, View

try:
    from triton import knobs
except ImportError:  # a Triton of another way of launching: nothing is recorded
    knobs = None

Options = tuple[Any, ...]  # hashable
Launcher = Callable[[Tape, Tensors, Options], Tensors]

# makes that a launcher remembers
MOST_RECORDINGS = 1024
# in place of a recording: the make came once, or cannot be recorded
_ONCE, _NEVER = "once", "never"
# of the parts of a scratch buffer, as the allocator's own
_ALIGNMENT = 512


class _Launch(NamedTuple):
    kernel: Any
    grid: tuple[int, ...]
    pick: Callable[[Sequence[Any]], tuple[Any, ...]]
    options: dict[str, Any]
    compiled: Any


class Recording:
    """What one call allocates and launches. It holds no tensor.

    Attributes:
        options: The launcher's, as checked.
    """

    def __init__(self, tape: Tape, options: Options, results: list[Source | None]) -> None:
        self.options = options
        tensors, made, launches = tape.tensors, tape.made, tape.launches
        device = next(v for v in tensors if v is not None).device
        self._device = device
        self._index = device.index if device.type == "cuda" else None
        self._runs: list[Any] | None = None  # stays None under the interpreter
        compiled = all(launch[-1] is not None for launch in launches)
        # the order of the pool that launches pick from: arguments, results, scratch, views, constants
        places: list[Source] = [("argument", i) for i in range(len(tensors))]
        returned = sorted({found[1] for found in results if found is not None and found[0] == "made"})
        scratch = [i for i in range(len(made)) if i not in returned]
        places += [("made", i) for i in (*returned, *scratch)]
        place = {source: i for i, source in enumerate(places)}
        # with the argument that a result is laid out as, if there is one: empty_like is the quicker call
        self._outputs = [(made[i].shape, made[i].dtype, _alike(made[i], tensors)) for i in returned]
        self._scratch: list[tuple[int, torch.dtype, torch.Size]] = []
        self._scratch_bytes = 0
        for i in scratch:
            self._scratch.append((self._scratch_bytes, made[i].dtype, made[i].shape))
            self._scratch_bytes += -(-made[i].nbytes // _ALIGNMENT) * _ALIGNMENT
        self._views: list[View] = []
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
        for shape, dtype, alike in self._outputs:
            if alike is None:
                made = torch.empty(shape, dtype=dtype, device=device)
            else:
                made = torch.empty_like(tensors[alike])
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
        pool += [torch.empty(shape, dtype=dtype, device=self._device) for shape, dtype, _ in self._outputs]
        arena = torch.empty(self._scratch_bytes, dtype=torch.uint8, device=self._device)
        for offset, dtype, shape in self._scratch:
            size = shape.numel() * dtype.itemsize
            pool.append(arena[offset : offset + size].view(dtype).view(shape))
        for view in self._views:
            source = pool[view.source]
            start = source.storage_offset() + view.offset // view.dtype.itemsize
            pool.append(source.as_strided(view.shape, view.stride, start))
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
        self._kept: dict[Hashable, Recording | str] = {}
        self._lock = threading.Lock()
        _all.append(self)

    def find(self, tensors: Tensors, options: Options) -> Found | None:
        """The recording for these arguments, checked or not; what was run was checked."""
        made = _make_of(tensors, options)
        if made is None:
            return None
        key, addresses, needs_grad = made
        try:
            recording = self._kept.get(key)
        except TypeError:  # an option that is no hashable value
            return None
        return Found(recording, addresses, needs_grad) if isinstance(recording, Recording) else None

    def run(self, tensors: Tensors, options: Options) -> Tensors:
        """The launcher's results for checked arguments; autograd hears nothing of it."""
        made = _make_of(tensors, options)
        if made is None:
            return self._launcher(Tape(), tensors, options)
        key, addresses, _ = made
        recording = self._kept.get(key)
        if isinstance(recording, Recording):
            return recording.play(tensors, addresses)
        with on_device_of(next(v for v in tensors if v is not None)):
            if recording is not _ONCE:
                if recording is None:
                    self._keep(key, _ONCE)
                return self._launcher(Tape(), tensors, options)
            tape = Tape(_distinct(tensors))
            results = self._launcher(tape, tape.tensors, options)
        places = tape.places(results)
        self._keep(key, _NEVER if places is None or knobs is None else Recording(tape, options, places))
        return results

    def _keep(self, key: Hashable, recording: Recording | str) -> None:
        with self._lock:
            self._kept[key] = recording
            if len(self._kept) > MOST_RECORDINGS:
                del self._kept[next(iter(self._kept))]

    def run_without_grad(self, tensors: Tensors, options: Options, *, checked: bool) -> Tensors | None:
        """As ``run``; None where autograd wants to hear of it, and unless ``checked`` for an unknown make."""
        if checked:
            return self.run(tensors, options) if is_eager(*tensors) and not needs_grad(*tensors) else None
        found = self.find(tensors, options)
        if found is None or found.needs_grad:
            return None
        return found.recording.play(tensors, found.addresses)

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
    # the types too, for True is 1 and 2.0 is 2, but not where options are checked
    key: list[Hashable] = [options, *map(type, options)]
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


def _alike(made: Tensor, tensors: Tensors) -> int | None:
    """The place of a tensor that is laid out as ``made`` is."""
    for i, v in enumerate(tensors):
        if v is not None and (v.shape, v.stride(), v.dtype) == (made.shape, made.stride(), made.dtype):
            return i
    return None


def _distinct(tensors: Tensors) -> Tensors:
    """The same; what is an object a second time, which would pass for the first, as one of its own."""
    seen: set[int] = set()
    given = []
    for v in tensors:
        given.append(v.detach() if v is not None and id(v) in seen else v)
        seen.add(id(v))
    return tuple(given)


def _watched() -> bool:
    """Whether a profiler wants to hear of launches."""
    runtime = knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):  # a chain of hooks may be empty
            return True
    return False


def _driver() -> Any:
    from triton.runtime import driver

    return driver.active


def _no_stream(_: object) -> int:
    """Off a GPU."""
    return 0
