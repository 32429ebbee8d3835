"""Choice of a Triton configuration without a trial run: the first of a short list that the GPU has room for.

Which configuration is best is measured when a kernel is written, never on the user's machine. The lists run
from the best to the most frugal, so that a GPU with less shared memory than the one they were written for
takes a later entry, and so does a Triton that compiles an entry wrongly (``soundness``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from triton.runtime.errors import OutOfResources

from mambakit.kernels.soundness import MiscompiledError

Config = TypeVar("Config")
Result = TypeVar("Result")

_position: dict[Hashable, int] = {}


def first_that_fits(key: Hashable, configs: Sequence[Config], launch: Callable[[Config], Result]) -> Result:
    """``launch(config)`` with the first config whose kernels fit; which one is remembered under ``key``.

    Args:
        key: Everything that what fits depends on (device, dtypes, block sizes), but no sequence length.
        configs: Best first.
        launch: Launches kernels; it may be called again after it raised one of these errors.

    Raises:
        OutOfResources, MiscompiledError: If not even the last config fits, or makes a sound program.
    """
    position = _position.get(key, 0)
    while True:
        try:
            return launch(configs[position])
        except (OutOfResources, MiscompiledError):
            position += 1
            if position >= len(configs):
                raise
            _position[key] = position


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the GPU; a stand-in for the interpreter."""
    if device.type != "cuda":
        return 4
    index = device.index if device.index is not None else torch.cuda.current_device()
    if index not in _multiprocessors:
        _multiprocessors[index] = torch.cuda.get_device_properties(index).multi_processor_count
    return _multiprocessors[index]


_multiprocessors: dict[int, int] = {}
