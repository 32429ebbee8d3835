"""Ways of spoiling what a model reads: noise, lost steps, another order, and other step sizes of its blocks.

All take a generator on the CPU, so that a seed gives the same spoilt inputs on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mambakit.core.blocks.base import Block, Context


@contextmanager
def intercepted(owner: Any, name: str, change: Callable[..., tuple[Any, ...]]) -> Iterator[None]:
    """Calls of ``owner.name(*args, **kwargs)`` get the arguments that ``change(*args)`` returns.

    Args:
        owner: An object whose class has the method; other objects of the class are left alone.
        name: Of the method, ``forward`` for a module that is called.
        change: From positional arguments to those that the method gets in their place.
    """
    method = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        return method(*change(*args), **kwargs)

    owner.__dict__[name] = changed
    try:
        yield
    finally:
        del owner.__dict__[name]


def stepping_blocks(model: nn.Module) -> list[Block]:
    """The blocks of a model that have a step size of their own, not those that only hold such blocks."""
    blocks = [one for one in model.modules() if isinstance(one, Block) and one.uses_elapsed]
    return [one for one in blocks if not any(part in blocks for part in one.modules() if part is not one)]


@contextmanager
def scaled_steps(model: nn.Module, factor: float) -> Iterator[None]:
    """The step size dt of every state-space block is ``factor`` times what it would be, while this lasts.

    State decays by exp(factor dt A) and inputs enter with factor dt B, as if all happened so many times as
    slowly: what the blocks do with ``elapsed`` (Gu & Dao 2023, arXiv:2312.00752, section 2), times the gaps
    that there are. It holds for ``forward``; a decoding step is not changed.

    Args:
        model: Any; without such blocks nothing changes, see ``stepping_blocks``.
        factor: More than 0.

    Raises:
        ValueError: If the factor is not.
    """
    if not factor > 0:
        raise ValueError(f"factor: expected more than 0, got {factor}")
    with ExitStack() as stack:
        for block in stepping_blocks(model):
            stack.enter_context(_scaled(block, factor))
        yield


@contextmanager
def _scaled(block: Block, factor: float) -> Iterator[None]:
    mix = block.mix

    def slower(x: Tensor, *args: Any, context: Context | None = None) -> Any:
        told = Context() if context is None else context
        gaps = x.new_ones(x.shape[:2]) if told.elapsed is None else told.elapsed
        return mix(x, *args, context=replace(told, elapsed=factor * gaps))  # type: ignore[call-arg]

    # a block that is watched is called itself, where a compiled stack would take its weights and go round it
    handle = block.register_forward_pre_hook(lambda module, args: None)
    block.__dict__["mix"] = slower
    try:
        yield
    finally:
        del block.__dict__["mix"]
        handle.remove()


def noisy(x: Tensor, level: float | Tensor, generator: torch.Generator) -> Tensor:
    """``x`` and Gaussian noise of deviation ``level``; what is NaN stays so."""
    return x + level * _normal(x, generator)


def lost(there: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which steps are lost, like ``there``: each real one with probability ``share``.

    Args:
        there: ``(batch, length)`` bool, real steps.
        share: 0 to 1.
        generator: Of the draws.
    """
    return (_uniform(there, generator) < share) & there


def held(x: Tensor, gone: Tensor) -> Tensor:
    """What a sensor that freezes shows: at lost steps the last value before them that was not lost.

    Args:
        x: ``(batch, length, ...)``.
        gone: ``(batch, length)`` bool; a row's first step is kept whatever it says.
    """
    at = torch.arange(x.shape[1], device=x.device).expand(gone.shape)
    first = at == 0
    last = torch.where(gone & ~first, 0, at).cummax(1).values
    return x.gather(1, last.reshape(*last.shape, *[1] * (x.dim() - 2)).expand(x.shape))


def shortened(x: Tensor, lengths: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Right-padded rows without their lost steps; a row that would be empty keeps its first.

    Args:
        x: ``(batch, length, ...)``.
        lengths: ``(batch,)`` int64.
        gone: ``(batch, length)`` bool.

    Returns:
        Like ``x``, with anything behind a row's new end, and the new lengths.
    """
    at = torch.arange(x.shape[1], device=x.device)
    gone = gone & (at < lengths[:, None])
    gone = gone & ~((at == 0) & (gone.sum(1) == lengths)[:, None])
    order = torch.argsort(torch.where(gone, x.shape[1], 0) + at, dim=1)
    return x.gather(1, order.reshape(*order.shape, *[1] * (x.dim() - 2)).expand(x.shape)), lengths - gone.sum(
        1
    )


def shuffled(there: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """The step to read in place of each, ``(batch, length)`` int64: real ones change places inside windows.

    Args:
        there: ``(batch, length)`` bool; other steps stay where they are, and windows count real ones.
        window: Steps of a window; 1 changes nothing.
        generator: Of the draws.
    """
    if window < 1:
        raise ValueError(f"window: expected at least 1 step, got {window}")
    rank = there.long().cumsum(1) - 1
    at = torch.arange(there.shape[1], device=there.device).expand(there.shape)
    behind = 2.0 * (there.shape[1] // window + 2)
    key = torch.where(there, rank.div(window, rounding_mode="floor") + _uniform(there, generator), behind)
    drawn = torch.argsort(key.double(), dim=1)  # the real steps, window by window, each in a random order
    slot = torch.argsort(torch.where(there, at, at + there.shape[1]), dim=1)  # their places, in order
    return at.scatter(1, slot, torch.where(there.gather(1, slot), drawn, slot))


def replaced(ids: Tensor, gone: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Ids with one drawn from ``low`` to ``high - 1`` in place of each lost one."""
    drawn = low + (_uniform(gone, generator) * (high - low)).long()
    return torch.where(gone, drawn.to(ids.dtype), ids)


def _normal(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator).to(x)


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator).to(x.device)
