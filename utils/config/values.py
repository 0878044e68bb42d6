"""One value of a config: from text to the type its key asks for, and whether it is in range."""

from __future__ import annotations

import dataclasses
import enum
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, shown
from ..files import MAX_INTEGER, NO_TEXT, user_path
from .yaml_text import parse_flow

NULL = {"", "~", "null", "none"}
TRUE = {"true", "yes", "on", "1"}
FALSE = {"false", "no", "off", "0"}


def setting(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    why: str = "",
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field with a range (of each item, for lists) and, where the type alone cannot say it, its own parser.

    `why` is the reason for a limit that is not plain. `parse` takes what was written (text, or a list or mapping of
    texts) and returns the value, or raises UserError.
    """
    metadata = {"at_least": at_least, "above": above, "at_most": at_most, "why": why, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


def convert(kind: Any, raw: Any, parse: Callable[[Any], Any] | None = None) -> Any:
    """The value of type `kind` that the YAML text `raw` stands for; choices and paths stay text, for pyrallis.

    `kind` is bool, int, float, str, Path, an Enum, tuple[X, ...], dict[str, X], or Optional of one of these. Raises
    UserError, which says what is allowed and leaves it to the caller to name the key.
    """
    allowed = _describe(kind)
    if typing.get_origin(kind) is typing.Union:
        if isinstance(raw, str) and raw.strip().lower() in NULL:
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        return _convert_list(typing.get_args(kind)[0], raw, parse)
    if typing.get_origin(kind) is dict:
        return _convert_mapping(typing.get_args(kind)[1], raw, parse)
    if not isinstance(raw, str):
        raise UserError(f"must be {allowed}, not a {'list' if isinstance(raw, list) else 'group of keys'}")
    if NO_TEXT.search(raw):
        raise UserError(f"must be {allowed}, without control characters and broken Unicode")
    if parse is not None:
        return parse(raw)
    if kind is str:
        return raw
    if kind is Path and raw.strip():  # Path("") would be the working directory
        return str(user_path(raw))
    word = raw.strip()
    if kind is bool:
        if word.lower() in TRUE | FALSE:
            return word.lower() in TRUE
    elif issubclass(kind, enum.Enum):
        if word in kind.__members__:
            return word
    elif kind is not Path:
        try:
            number = kind(word)
        except ValueError:  # no number, or one of more than 4300 digits
            number = math.nan
        if kind is int and abs(number) > MAX_INTEGER:
            raise UserError(f"must be {allowed} of 64 bits, between -{MAX_INTEGER} and {MAX_INTEGER}")
        if math.isfinite(number):
            return number
    raise UserError(f"must be {allowed}")


def name_or_path(raw: str) -> str:
    """`parse` of a key that holds a name (of a model on the hub) or a path, in which `~` is the home folder."""
    if not raw.strip():
        raise UserError("must be a name or a path")
    path = user_path(raw)
    return str(path) if raw.startswith("~") else raw


def range_problem(value: Any, field: dataclasses.Field) -> str | None:
    """What is wrong with a number, or with a number in a list, given the field's range; None if nothing is."""
    at_least, above, at_most = (field.metadata.get(bound) for bound in ("at_least", "above", "at_most"))
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(number, (int, float)):
            continue
        too_low = (at_least is not None and number < at_least) or (above is not None and number <= above)
        if too_low or (at_most is not None and number > at_most):
            why = field.metadata.get("why")
            if why and not too_low:
                return f"must be at most {at_most} ({why})"
            limits = {"at least": at_least, "above": above, "at most": None if why else at_most}
            return f"must be {' and '.join(f'{word} {limit}' for word, limit in limits.items() if limit is not None)}"
    return None


def _convert_list(item: Any, raw: Any, parse: Callable[[Any], Any] | None) -> list[Any]:
    if isinstance(raw, str) and raw.lstrip().startswith("["):
        raw = parse_flow(raw)
    if isinstance(raw, Mapping) or (isinstance(raw, list) and any(isinstance(part, Mapping) for part in raw)):
        raise UserError('must be a list; put text in quotes, as in ["A photo of a {}", "App icon of {}"]')
    if parse is not None:
        return list(parse(raw))
    if isinstance(raw, str):  # one value stands for a list of one, and "0,16,64" for a list of numbers
        raw = [raw] if item is str else raw.split(",")
    return [convert(item, part) for part in raw]


def _convert_mapping(item: Any, raw: Any, parse: Callable[[Any], Any] | None) -> dict[str, Any]:
    if isinstance(raw, str) and raw.lstrip().startswith("{"):
        raw = parse_flow(raw)
    if not isinstance(raw, Mapping):
        raise UserError("must hold names, each written as `name: value`")
    if parse is not None:
        return dict(parse(raw))
    values = {}
    for name, value in raw.items():
        try:
            values[name] = convert(item, value)
        except UserError as error:
            raise UserError(f"{shown(name)[1:-1]} {error}") from None
    return values


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Union:
        return f"{_describe(typing.get_args(kind)[0])} or null"
    if typing.get_origin(kind) is dict:
        return "names with values"
    if typing.get_origin(kind) is tuple:
        return "a list"
    if issubclass(kind, enum.Enum):
        return f"one of: {', '.join(member.name for member in kind)}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names[kind]
