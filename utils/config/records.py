"""From plain values, as JSON holds them, to a dataclass, each value checked against its field.

The counterpart of `parsing`: there a person wrote text, and the key decides what it means; here a program wrote values,
and a wrong type is damage. Read so: the settings in a concept file, the recipes in images.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any, TypeVar

from ..errors import shown
from ..files import json_type

T = TypeVar("T")


def from_plain(kind: type[T], values: object) -> T:
    """The dataclass `kind` with these values; what is left out takes its default.

    Fields may be bool, int, float, str, None, Any, an Enum (by value), tuple[X, ...], tuple[X, X], dict[str, X],
    another dataclass, or a union of these. ValueError, one line that names the key, for a value of another type, a key
    that `kind` does not have, or one that it needs; what the dataclass itself refuses it raises itself.
    """
    if not isinstance(values, dict):
        raise ValueError(f"must be an object {{...}}, and is {json_type(values)}")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind)) if field.init}
    if unknown := next((key for key in values if key not in fields), None):
        raise ValueError(f"{shown(unknown)} is no key that this version knows; it has {', '.join(fields) or 'none'}")
    hints = typing.get_type_hints(kind)
    found = {}
    for name, field in fields.items():
        if name in values:
            try:
                found[name] = _value(hints[name], values[name])
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**found)


def _value(kind: Any, value: Any) -> Any:
    if kind is Any or (kind in (bool, int, str, type(None)) and type(value) is kind):
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if dataclasses.is_dataclass(kind):
        return from_plain(typing.cast(type, kind), value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value in [member.value for member in kind]:
            return kind(value)
        raise ValueError(f"is {shown(value)}; must be one of {', '.join(str(member.value) for member in kind)}")
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first(inner, value)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            return tuple(_value(*pair) for pair in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(name): _value(inner[1], part) for name, part in value.items()}
    raise ValueError(f"is {shown(value)}; must be {_describe(kind)}")


def _first(kinds: tuple[Any, ...], value: Any) -> Any:
    """As the first kind of a union that takes the value."""
    problem = ""
    for kind in kinds:
        try:
            return _value(kind, value)
        except ValueError as error:
            problem = problem or str(error)
    raise ValueError(f"{problem} or null" if type(None) in kinds else problem)


def _describe(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"}
    return names.get(typing.get_origin(kind) or kind, "an object {...}")
