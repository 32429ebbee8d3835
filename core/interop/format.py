"""What a format of another project is made of, and what all of them ask of our config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mambakit.core.backbone import BackboneConfig
from mambakit.core.errors import UserError
from mambakit.core.interop.fields import Fields
from mambakit.core.interop.layout import Layout
from mambakit.core.language_model import LanguageModelConfig

_CARRIED = {"d_model", "layers", "repeat", "block_options", "norm_eps"}
_OF_TRAINING = {"dropout"}


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint: the two directions of its config, and where the weights lie.

    Attributes:
        read: Our config, of the fields of theirs. Raises DataError on what our blocks do not compute.
        write: Their config, of ours. Raises UserError on what theirs has no place for.
        layout: Where each weight of our model lies in a checkpoint with those fields.
    """

    read: Callable[[Fields], LanguageModelConfig]
    write: Callable[[LanguageModelConfig], dict[str, Any]]
    layout: Callable[[LanguageModelConfig, Fields], Layout]


def kinds_of(config: LanguageModelConfig) -> list[str]:
    """The kind of every layer."""
    return list(config.backbone.layers) * config.backbone.repeat


def stack(kinds: list[str], options: dict[str, dict[str, Any]], **others: Any) -> BackboneConfig:
    """A backbone config whose list of layers is the shortest that repeats to ``kinds``.

    Args:
        kinds: Of every layer.
        options: Of the blocks by kind; what is not among the layers is left out.
        others: Further fields.
    """
    n = len(kinds)
    period = next((p for p in range(1, n + 1) if n % p == 0 and kinds[:p] * (n // p) == kinds), 0)
    options = {kind: of for kind, of in options.items() if kind in kinds}
    return BackboneConfig(
        layers=kinds[:period], repeat=n // period if n else 1, block_options=options, **others
    )


def check_kinds(
    config: LanguageModelConfig, target: str, allowed: set[str], also: frozenset[str] = frozenset()
) -> list[str]:
    """The kind of every layer, if the format has a place for each and for what the backbone does around them.

    Args:
        config: Ours.
        target: The format's name.
        allowed: Kinds of layers it has.
        also: Fields of the backbone that it has a place for, beside the usual ones.

    Raises:
        UserError: If it has not.
    """
    kinds = kinds_of(config)
    strange = sorted(set(kinds) - allowed)
    if strange:
        raise UserError(
            f"model: a {target} checkpoint has no place for {', '.join(strange)}, "
            f"only for {', '.join(sorted(allowed))}"
        )
    plain = BackboneConfig()
    for field in dataclasses.fields(plain):
        value = getattr(config.backbone, field.name)
        if field.name not in _CARRIED | _OF_TRAINING | also and value != getattr(plain, field.name):
            raise UserError(f"model: a {target} checkpoint can't hold a backbone with {field.name}={value!r}")
    return kinds


def check_pairs(kinds: list[str], target: str, mixers: set[str], feed_forward: set[str]) -> None:
    """Raise unless layers are pairs of a mixer and a feed-forward layer.

    Raises:
        UserError: Naming the first layer that breaks it.
    """
    for i, kind in enumerate([*kinds, *([""] if len(kinds) % 2 else [])]):
        wanted = feed_forward if i % 2 else mixers
        if kind not in wanted:
            raise UserError(
                f"model: in a {target} checkpoint mixers and feed-forward layers take turns, "
                f"so layer {i} should be {' or '.join(sorted(wanted))}, got {kind or 'nothing'}"
            )


def check_eps(value: float, config: LanguageModelConfig, target: str, name: str) -> None:
    """Raise unless a block's norm has the backbone's eps, where the format has one number for both.

    Raises:
        UserError: If it has not.
    """
    if value != config.backbone.norm_eps:
        raise UserError(
            f"model: a {target} checkpoint has one eps for all norms, but {name}={value!r} "
            f"and the backbone's norm_eps={config.backbone.norm_eps!r}"
        )


def whole_expand(value: float, target: str) -> int:
    """``expand`` where the format wants a whole number.

    Raises:
        UserError: If it is none.
    """
    if value != int(value):
        raise UserError(f"model: a {target} checkpoint needs a whole expand, got {value!r}")
    return int(value)
