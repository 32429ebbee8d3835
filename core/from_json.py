"""JSON values back into what an annotation asks for: dataclasses, tuples, enums, paths."""

from __future__ import annotations

import dataclasses
import enum
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


def from_json(hint: Any, value: Any) -> Any:
    """Rebuild ``value`` as the annotation says; what JSON can hold as it is stays as it is.

    Args:
        hint: A type annotation, evaluated (not a string).
        value: What ``json.loads`` gave.

    Raises:
        ValueError: If a dataclass's fields don't fit, or an enum has no such value.
        TypeError: If a dataclass is asked for and ``value`` is no JSON object.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        # the first member that changes the value decides; str | None and the like change nothing
        fitting = [arg for arg in args if _wants(arg, value)]
        if not fitting and isinstance(value, dict):
            # no dataclass has these fields: let the first one say which it doesn't know
            fitting = [arg for arg in args if dataclasses.is_dataclass(arg)]
        return from_json(fitting[0], value) if fitting else value
    if origin is list and isinstance(value, list):
        return [from_json(args[0], item) for item in value]
    if origin is tuple and isinstance(value, list):
        items = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(items) != len(value):
            raise ValueError(f"expected {len(items)} values, got {value}")
        return tuple(from_json(item, part) for item, part in zip(items, value, strict=True))
    if hint is tuple and isinstance(value, list):
        return tuple(value)
    if origin is dict and isinstance(value, dict):
        return {key: from_json(args[1], item) for key, item in value.items()}
    if isinstance(hint, type):
        if dataclasses.is_dataclass(hint):
            return _dataclass_from_json(hint, value)
        if issubclass(hint, enum.Enum):
            return hint(value)
        if issubclass(hint, Path) and isinstance(value, str):
            return hint(value)
    return value


def _wants(hint: Any, value: Any) -> bool:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        names = {field.name for field in dataclasses.fields(hint)}
        return isinstance(value, dict) and set(value) <= names
    origin = get_origin(hint) or hint
    if origin in (list, tuple):
        return isinstance(value, list)
    if origin is dict:
        return isinstance(value, dict)
    if isinstance(origin, type) and issubclass(origin, Path):
        return isinstance(value, str)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return any(member.value == value for member in origin)
    return isinstance(origin, type) and type(value) is origin


def _dataclass_from_json(hint: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"expected the fields of {hint.__name__}, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(hint) if field.init}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{hint.__name__} has no field {', '.join(unknown)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{hint.__name__} needs the field {', '.join(missing)}")
    hints = get_type_hints(hint)
    return hint(**{name: from_json(hints[name], item) for name, item in value.items()})
