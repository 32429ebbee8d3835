"""Adapters by name: registered with a decorator, or found in installed packages.

A package offers an adapter from outside by an entry point in the group ``mambakit.adapters``; the
entry's name is the adapter's, its object an ``AdapterSpec`` or an adapter class under
``@register_adapter``:

    [project.entry-points."mambakit.adapters"]
    dna-quality = "dna_quality:SPEC"
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from mambakit.core.adapters.adapter import Adapter, ContinuousAdapter, IdAdapter
from mambakit.core.adapters.continuous import ContinuousTokenizer
from mambakit.core.adapters.tokenizer import Tokenizer
from mambakit.core.adapters.vocabulary import VocabularyTokenizer
from mambakit.core.errors import UserError

ENTRY_POINT_GROUP = "mambakit.adapters"

AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])


class AdapterPluginError(UserError):
    """An installed package offers an adapter that can't be used; the message names the package."""


@dataclass(frozen=True)
class AdapterSpec:
    """The two halves of an adapter under one name.

    Attributes:
        name: What the adapter is called in configs and on the command line.
        tokenizer: The data side.
        adapter: The model side.

    Raises:
        TypeError: If either is not a class of its kind.
        ValueError: If the name is empty.
    """

    name: str
    tokenizer: type[Tokenizer[Any]]
    adapter: type[Adapter]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name: expected a non-empty string, got {self.name!r}")
        for field, base in (("tokenizer", Tokenizer), ("adapter", Adapter)):
            value = getattr(self, field)
            if not (isinstance(value, type) and issubclass(value, base)):
                raise TypeError(f"{field}: expected a subclass of {base.__name__}, got {value!r}")


_registered: dict[str, AdapterSpec] = {
    "vocabulary": AdapterSpec("vocabulary", VocabularyTokenizer, IdAdapter),
    "continuous": AdapterSpec("continuous", ContinuousTokenizer, ContinuousAdapter),
}


def register_adapter(name: str, *, tokenizer: type[Tokenizer[Any]]) -> Callable[[AdapterClass], AdapterClass]:
    """Class decorator: put an adapter and its tokenizer into the registry.

    Raises:
        ValueError: If the name is taken by another adapter (the same class again, as when a module
            is reloaded, takes its own place).
    """

    def register(adapter: AdapterClass) -> AdapterClass:
        spec = AdapterSpec(name, tokenizer, adapter)
        known = _registered.get(name)
        if known is not None and _origin(known.adapter) != _origin(adapter):
            raise ValueError(
                f"name: {name!r} is taken by {_origin(known.adapter)}; "
                f"register {_origin(adapter)} under another"
            )
        _registered[name] = spec
        return adapter

    return register


def adapter_names() -> list[str]:
    """Names of all adapters, registered and installed, sorted; no plug-in is imported for it."""
    return sorted({*_registered, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def get_adapter(name: str) -> AdapterSpec:
    """The adapter of this name; a plug-in is imported when it is first asked for.

    Raises:
        UserError: If there is none of this name; close names are listed.
        AdapterPluginError: If the plug-in can't be imported, offers something else than an adapter,
            or takes a name that is taken.
    """
    entries = [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == name]
    # the same distribution may be seen twice (an editable install beside its wheel)
    packages = {_package(entry): entry for entry in entries}
    if len(packages) > 1:
        raise AdapterPluginError(
            f"adapter {name!r} is offered by several installed packages: {', '.join(sorted(packages))}; "
            "uninstall all but one"
        )
    known = _registered.get(name)
    if packages:
        spec = _load(next(iter(packages.values())))
        if known is not None and known.adapter is not spec.adapter:
            raise AdapterPluginError(
                f"package {next(iter(packages))} offers an adapter {name!r}, but that name is taken by "
                f"{_origin(known.adapter)}; its author must rename it"
            )
        return spec
    if known is not None:
        return known
    names = adapter_names()
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are: {', '.join(names)}"
    raise UserError(f"no adapter is called {name!r}; {hint}")


def _load(entry: EntryPoint) -> AdapterSpec:
    where = f"package {_package(entry)} (entry point {entry.name} = {entry.value})"
    try:
        offered = entry.load()
    except Exception as error:  # a plug-in may fail in any way; the user must learn which one did
        raise AdapterPluginError(
            f"adapter {entry.name!r} can't be loaded: {where} raised {type(error).__name__}: {error}; "
            "mend or uninstall that package"
        ) from error
    if isinstance(offered, AdapterSpec):
        if offered.name != entry.name:
            raise AdapterPluginError(f"{where} holds an adapter of another name, {offered.name!r}")
        return offered
    spec = _registered.get(entry.name)
    if spec is not None and spec.adapter is offered:
        return spec
    raise AdapterPluginError(
        f"{where} should be an AdapterSpec or an adapter class under @register_adapter({entry.name!r}, ...), "
        f"got {offered!r}"
    )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _origin(adapter: type[Adapter]) -> str:
    return f"{adapter.__module__}.{adapter.__qualname__}"
