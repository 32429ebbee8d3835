"""Fixtures for every op's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mambakit.kernels.recording import forget_recordings


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
