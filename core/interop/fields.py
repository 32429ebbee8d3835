"""Another project's config and our own options, read so that nothing which changes the numbers is missed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from mambakit.core.backbone import BackboneConfig
from mambakit.core.blocks import block_options
from mambakit.core.errors import DataError, UserError

_MISSING: Any = object()
T = TypeVar("T", int, str)

# How a block starts and how it is computed, not what it computes: no checkpoint needs to carry it.
_OF_TRAINING = {
    "A_init_range", "dt_min", "dt_max", "dt_floor", "dt_init", "dt_scale", "chunk_size", "recompute",
    "balance_weight", "z_weight", "capacity_factor",
}  # fmt: skip


class Fields:
    """The fields of a ``config.json``, or of an object in it, each checked as it is asked for.

    Args:
        values: What the file holds.
        path: The file, for messages.
        within: The object's own name in front of the fields', for messages.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, within: str = "") -> None:
        self.values = values
        self.path = path
        self._within = within
        self._asked: set[str] = set()

    def integer(self, name: str, default: Any = _MISSING) -> int:
        """A whole number.

        Raises:
            DataError: If it is missing and has no default, or is something else.
        """
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"expected a whole number, got {value!r}")
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A number; infinity as newer transformers write it, too. Raises as ``integer``."""
        value = self._value(name, default)
        if isinstance(value, dict) and set(value) == {"__float__"}:
            value = {"Infinity": float("inf"), "-Infinity": -float("inf")}.get(value["__float__"], value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(name, f"expected a number, got {value!r}")
        return value

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """True or false. Raises as ``integer``."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"expected true or false, got {value!r}")
        return value

    def range(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """A pair of numbers. Raises as ``integer``."""
        value = self._value(name, list(default))
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise self.error(name, f"expected two numbers, got {value!r}")
        pair = Fields({"0": value[0], "1": value[1]}, self.path, f"{self._within}{name}.")
        return pair.number("0"), pair.number("1")

    def items(self, name: str, of: type[T], default: Any = _MISSING) -> list[T]:
        """A list of strings or of whole numbers. Raises as ``integer``."""
        value = self._value(name, default)
        if not isinstance(value, list) or not all(type(item) is of for item in value):
            wanted = {int: "whole numbers", str: "strings"}[of]
            raise self.error(name, f"expected a list of {wanted}, got {value!r}")
        return value

    def object(self, name: str) -> Fields:
        """A nested object, empty if it is missing or null.

        Raises:
            DataError: If it is something else.
        """
        value = self._value(name, None)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, f"expected an object, got {value!r}")
        return Fields(value or {}, self.path, f"{self._within}{name}.")

    def only(self, name: str, *allowed: Any, default: Any = _MISSING, why: str) -> None:
        """Let pass what our blocks compute.

        Raises:
            DataError: On another value; ``why`` ends the message.
        """
        value = self._value(name, default)
        if not any(value == option and type(value) is type(option) for option in allowed):
            raise self.error(name, f"{value!r} is not supported: {why}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        self._asked.add(name)
        return self.values.get(name) is not None

    def nothing_else(self, harmless: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Raise unless every field was asked for.

        Raises:
            DataError: Naming the first one that was not, and is not among the harmless ones.
        """
        for name in self.values:
            if name not in self._asked and name not in harmless:
                raise self.error(name, "is unknown here, and may change what the model computes")

    def error(self, name: str, message: str) -> DataError:
        """What to raise about a field."""
        return DataError(f"{self.path}: {self._within}{name}: {message}")

    def _value(self, name: str, default: Any) -> Any:
        self._asked.add(name)
        value = self.values.get(name, _MISSING)
        if value is _MISSING or (value is None and default is not _MISSING):
            if default is _MISSING:
                raise DataError(
                    f"{self.path} has no {self._within}{name}, which the model's shape depends on"
                )
            return default
        return value


class Options:
    """All options of one kind of block in a backbone's config, each to be accounted for by a format.

    Args:
        config: The backbone's.
        kind: The block's; options that the config does not give have their defaults.
        target: The format's name, for messages.
    """

    def __init__(self, config: BackboneConfig, kind: str, target: str) -> None:
        self._kind = kind
        self._target = target
        self._defaults = {name: p.default for name, p in block_options(kind).items()}
        self._left = self._defaults | config.block_options.get(kind, {})

    def take(self, name: str) -> Any:
        """The value of an option that the format has a place for."""
        return self._left.pop(name)

    def nothing_else(self, **needed: Any) -> None:
        """Raise unless what was not taken is as the format takes for granted.

        Args:
            needed: The values that the format has built in; every other option must have its default.

        Raises:
            UserError: Naming the option that the format has no place for.
        """
        for name, value in self._left.items():
            if name in _OF_TRAINING:
                continue
            wanted = needed.get(name, self._defaults[name])
            if _plain(value) != _plain(wanted):
                raise UserError(
                    f"model: a {self._target} checkpoint can't hold {self._kind} with {name}={value!r}, "
                    f"only with {wanted!r}"
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
