"""Fixtures for every op's tests."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mambakit.kernels.recording import forget_recordings


@functools.cache
def builtins_of(package: Any) -> list[str]:
    """What Triton's interpreter puts functions of its own in place of."""
    is_builtin = sys.modules["triton.language"].core.is_builtin
    return [name for name, value in inspect.getmembers(package) if is_builtin(value)]


@functools.cache
def numbers_of(plain: Callable[[Any], Any], element: Any) -> Any:
    """NumPy's type for an element's."""
    return plain(element)


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the time of Triton's interpreter goes into what it finds out again, or throws away.

    It searches its language, a thousand names, at each call of each function, writes out a table of types at
    each operation, and computes whether whole numbers overflowed, to say so in its debug mode alone. A Triton
    that goes about it otherwise is left alone.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    put = getattr(interpreter, "_patch_attr", None)
    if put is None or not hasattr(interpreter, "_patch_builtin"):
        return

    def patch_builtins(package: Any, *rest: Any) -> None:
        is_builtin = sys.modules["triton.language"].core.is_builtin
        for name in builtins_of(package):
            value = getattr(package, name)
            if is_builtin(value):  # its own is not there already
                put(package, name, value, *rest)

    monkeypatch.setattr(interpreter, "_patch_builtin", patch_builtins)
    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if hasattr(options, "sanitize_overflow") and not getattr(options, "debug", True):
        monkeypatch.setattr(builder, "options", dataclasses.replace(options, sanitize_overflow=False))
    plain = getattr(interpreter, "_get_np_dtype", None)
    if plain is not None:

        def numbers(kind: Any) -> Any:
            element = kind.scalar  # a block's is of its elements
            return plain(kind) if element.is_ptr() else numbers_of(plain, element)

        monkeypatch.setattr(interpreter, "_get_np_dtype", numbers)


@pytest.fixture(autouse=True)
def poisoned_empty() -> Iterator[None]:
    """torch.empty gives NaN, so that reading what nobody wrote is seen."""
    was = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was[0])
    torch.utils.deterministic.fill_uninitialized_memory = was[1]


@pytest.fixture(autouse=True)
def no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MAMBAKIT_BACKEND in the developer's shell does not change what is tested."""
    monkeypatch.delenv("MAMBAKIT_BACKEND", raising=False)


@pytest.fixture(autouse=True)
def nothing_recorded() -> None:
    """What a test changes of how kernels are launched is not passed over."""
    forget_recordings()


@pytest.fixture
def triton_device() -> str:
    """Where Triton kernels are tested: a GPU if there is one, else the CPU under Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
