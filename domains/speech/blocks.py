"""What the configs of networks that are stacks of one kind of block check alike."""

from __future__ import annotations

from collections.abc import Iterable

from mambakit.core.blocks import block_options
from mambakit.core.errors import UsageError


def check_block(kind: str, options: Iterable[str]) -> None:
    """Raises a UsageError unless there is such a block, and it has options of these names."""
    try:
        known = block_options(kind)
    except ValueError as error:
        raise UsageError(f"block: {error}") from error
    for name in options:
        if name not in known:
            raise UsageError(f"block_options: {kind} has no option {name!r}")
