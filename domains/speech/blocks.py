"""What the configs of networks that are stacks of blocks have alike."""

from __future__ import annotations

from collections.abc import Iterable

from mambakit.core.backbone_config import sizes_of_heads
from mambakit.core.blocks import block_class, block_options
from mambakit.core.errors import UsageError


def block_sizes(kind: str, *, d_state: int, head_dim: int) -> dict[str, int]:
    """The options of a kind of block that these sizes are; others have none of them."""
    if kind == "mamba1":
        return {"d_state": d_state}
    return sizes_of_heads([kind], d_state=d_state, head_dim=head_dim).get(kind, {})


def check_block(kind: str, options: Iterable[str] = (), *, causal: bool = False) -> None:
    """Raises a UsageError unless there is such a block, it has these options and, if asked, is causal."""
    try:
        known = block_options(kind)
    except ValueError as error:
        raise UsageError(f"block: {error}") from error
    for name in options:
        if name not in known:
            raise UsageError(f"block_options: {kind} has no option {name!r}")
    if causal and not block_class(kind).causal:
        raise UsageError(f"block: {kind} looks at what comes later, and text is written from left to right")
