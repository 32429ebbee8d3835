"""Blocks by name: what a line of config says, and which options it may give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from mambakit.core.blocks.base import Block

BLOCKS: dict[str, type[Block]] = {}


def register_block(kind: str) -> Callable[[type[Block]], type[Block]]:
    """Class decorator that makes a block known as ``kind``.

    Raises:
        ValueError: If another class has the name already.
    """

    def decorate(cls: type[Block]) -> type[Block]:
        if BLOCKS.get(kind, cls) is not cls:
            raise ValueError(f"kind: {kind!r} is already the block {BLOCKS[kind].__name__}")
        BLOCKS[kind] = cls
        return cls

    return decorate


def block_class(kind: str) -> type[Block]:
    """The class registered as ``kind``.

    Raises:
        ValueError: If there is none; the message lists the known kinds.
    """
    if kind not in BLOCKS:
        raise ValueError(f"kind: no block is called {kind!r}; known kinds are {', '.join(sorted(BLOCKS))}")
    return BLOCKS[kind]


def kind_of(layer: str) -> str:
    """The kind of a layer written ``kind`` or ``kind@label``; layers with the same label share weights.

    Raises:
        ValueError: If there is no such kind, or the label is empty.
    """
    kind, at, label = layer.partition("@")
    if at and not label:
        raise ValueError(f"layers: {layer!r} has no label after the @; write for instance {kind}@shared")
    block_class(kind)
    return kind


def block_options(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a block beside ``d_model``, with their defaults, from its signature."""
    parameters = dict(inspect.signature(block_class(kind)).parameters)
    parameters.pop("d_model", None)
    return parameters


def build_block(kind: str, d_model: int, options: Mapping[str, object] | None = None) -> Block:
    """Build the block called ``kind``.

    Args:
        kind: A registered name.
        d_model: Width of its input and output.
        options: Its other keyword arguments.

    Raises:
        ValueError: On an unknown kind, an option it does not have (the message lists what there is), or one
            that it needs and is not given.
    """
    cls = block_class(kind)
    options = dict(options or {})
    valid = block_options(kind)
    for name in options:
        if name not in valid:
            raise ValueError(
                f"options of {kind}: it has no option {name!r}; valid options are {', '.join(valid)}"
            )
    missing = [name for name, p in valid.items() if p.default is p.empty and name not in options]
    if missing:
        raise ValueError(f"options of {kind}: it needs {', '.join(missing)}")
    return cls(d_model=d_model, **options)
