"""Where a model can be adapted, and the places that an adapted one has beyond its config."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import nn

from mambakit.core.backbone import Backbone
from mambakit.core.blocks import Block


def projections_of(model: nn.Module) -> list[str]:
    """Names of the linear maps that low-rank changes go to: those that each block says are its own.

    Not among them are routers and gates of merged readings, which only choose, and the experts of ``moe``
    and the matrices of ``gru`` and ``lstm``, which are no linear modules.
    """
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, Block):
            continue
        for projection in module.projections:
            try:
                linear = operator.attrgetter(projection)(module)
            except AttributeError:
                continue
            if type(linear) is nn.Linear:
                found.append(f"{name}.{projection}" if name else projection)
    return found


def stacks_of(model: nn.Module) -> dict[str, Backbone]:
    """The backbones inside a model, by name; one used twice is there once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Backbone)}


def added_places(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What to give ``add_places`` for a model built from the config, so that the weights fit; for JSON."""
    found: dict[str, dict[str, Any]] = {}
    for name, stack in stacks_of(model).items():
        if stack.prefix is not None:
            found.setdefault(name, {})["prefix"] = len(stack.prefix)
        if stack.learns_initial_state and not stack.config.learn_initial_state:
            found.setdefault(name, {})["initial_state"] = True
    return found


def add_places(model: nn.Module, places: Mapping[str, Mapping[str, Any]]) -> None:
    """Make the places that ``added_places`` found.

    Raises:
        ValueError: If the model has no such backbone.
    """
    stacks = stacks_of(model)
    for name, wanted in places.items():
        if name not in stacks:
            raise ValueError(f"it was adapted in a stack {name!r}, which this model has not")
        if wanted.get("initial_state"):
            stacks[name].learn_initial_state()
        if "prefix" in wanted:
            stacks[name].learn_prefix(int(wanted["prefix"]))
