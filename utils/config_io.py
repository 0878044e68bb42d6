"""From YAML files and command lines to frozen config dataclasses, with every mistake told in one line.

pyrallis builds the dataclasses and prints `--help`. What it lacks is done here, before it sees anything: unknown keys
with the nearest right one, strict types, ranges, and all mistakes at once instead of the first one's traceback.

YAML scalars are read as text and then converted to the type the key asks for. So `1e-3` is a number,
`mixed_precision: no` is the word "no" and not False, and a run may be called `007` or `2024-01-01`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyrallis
import yaml
from pyrallis.argparsing import ArgumentParser
from pyrallis.utils import deflatten

from .errors import UserError

NULL = {"", "~", "null", "none"}
TRUE = {"true", "yes", "on", "1"}
FALSE = {"false", "no", "off", "0"}


class Config:
    """Base of every config dataclass. Ranges stand with the fields (`setting`), checks across fields in `problems`."""

    def problems(self) -> list[str]:
        """One line for each combination of this config's values that makes no sense."""
        return []

    def validate(self) -> None:
        """Raise one UserError with every problem of this config and the configs inside it, one per line."""
        if lines := _all_problems(self):
            raise UserError("\n".join(lines))


C = TypeVar("C", bound=Config)


def setting(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """A dataclass field with a range (of each item, for lists) and, where the type alone cannot say it, its own parser.

    `parse` takes what was written (text, or a list of texts) and returns the value, or raises UserError.
    """
    metadata = {"at_least": at_least, "above": above, "at_most": at_most, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


def parse_config(config_class: type[C], argv: Sequence[str]) -> C:
    """The config that `argv` describes: `[--config_path X.yaml] [--group.key value | --group.key=value | --flag] ...`.

    The command line wins over the file. Raises one UserError that holds every mistake, one per line: first those of
    single keys, then, if there are none, those across keys. `--help` prints all keys and exits.
    """
    if {"-h", "--help"} & set(argv):
        ArgumentParser(config_class=config_class).parse_args(["--help"])
    reader = _Reader(config_class)
    reader.read(argv)
    if reader.problems:
        raise UserError("\n".join(reader.problems))
    config = pyrallis.decode(config_class, deflatten(reader.values))
    config.validate()
    return config


def load_yaml_config(config_class: type[C], path: Path | str) -> C:
    """The config in a YAML file, as `parse_config` reads it."""
    return parse_config(config_class, ["--config_path", str(path)])


def to_plain_dict(config: Any) -> Any:
    """A config as nested dicts, lists, strings, numbers, booleans and None, ready for JSON or YAML."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_plain_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, (list, tuple)):
        return [to_plain_dict(item) for item in config]
    return config


def save_yaml(config: Config, path: Path | str) -> None:
    """Write a config as YAML that `parse_config` reads back to an equal config. UserError if it cannot be written."""
    text = yaml.safe_dump(to_plain_dict(config), sort_keys=False, allow_unicode=True, width=120)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the config cannot be written to {path}: {error.strerror}") from None


class _Key(NamedTuple):
    type: Any
    field: dataclasses.Field


class _Reader:
    """Collects the plain values of one config from a file and the command line, and what is wrong with them."""

    def __init__(self, config_class: type[Config]) -> None:
        self.keys: dict[str, _Key] = {}
        self.groups: set[str] = set()
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self.config_path: str | None = None
        self._list_keys(config_class, "")

    def _list_keys(self, config_class: type, prefix: str) -> None:
        types = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            name, kind = prefix + field.name, types[field.name]
            if dataclasses.is_dataclass(kind):
                self.groups.add(name)
                self._list_keys(typing.cast(type, kind), f"{name}.")
            else:
                self.keys[name] = _Key(kind, field)

    def read(self, argv: Sequence[str]) -> None:
        options = self._options(argv)
        written: dict[str, tuple[Any, str]] = {}
        if self.config_path is not None:
            self._flatten(_load_yaml(Path(self.config_path)), "", self.config_path, written)
        for name, value in options:
            if name in self.groups and value.startswith("{"):
                self._flatten(_flow(value, name), f"{name}.", "command line", written)
            else:
                written[name] = (value, "command line")
        for name, (raw, where) in written.items():
            try:
                self.values[name] = self._value(name, raw, where)
            except UserError as error:
                self.problems.append(str(error))
        # a misspelt key explains itself; saying that the right one is missing as well would only hide it
        hinted = " ".join(self.problems)
        for name, key in self.keys.items():
            required = key.field.default is key.field.default_factory is dataclasses.MISSING
            if required and name not in written and name not in hinted:
                self.problems.append(
                    f"{name} is missing; write it in the YAML file{self._file()} or pass --{name} VALUE"
                )

    def _file(self) -> str:
        return f" {self.config_path}" if self.config_path is not None else " (--config_path X.yaml)"

    def _options(self, argv: Sequence[str]) -> list[tuple[str, str]]:
        options = []
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                self.problems.append(
                    f"unexpected argument {word!r}; options are written --group.key value, "
                    f'and lists in one piece: --seeds "[1, 2]"'
                )
                continue
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            is_flag = name in self.keys and self.keys[name].type is bool
            if not equals:
                following = rest[0] if rest and not rest[0].startswith("--") else None
                if is_flag and (following is None or following.lower() not in TRUE | FALSE):
                    value = "true"
                elif following is None:
                    self.problems.append(
                        f"--{name} needs a value: --{name} VALUE"
                        if name in self.keys
                        else self._unknown(name, "", "command line")
                    )
                    continue
                else:
                    value = rest.pop(0)
            if name == pyrallis.utils.CONFIG_ARG:
                self.config_path = value
            else:
                options.append((name, value))
        return options

    def _flatten(self, tree: Any, prefix: str, where: str, written: dict[str, tuple[Any, str]]) -> None:
        if not isinstance(tree, Mapping):
            self.problems.append(
                f"{prefix[:-1] or 'the file'} = {tree!r} ({where}) should hold keys, as in `key: value`"
            )
            return
        for key, value in tree.items():
            name = prefix + key
            if name not in self.groups:
                written[name] = (value, where)
            elif value != "":  # a group with nothing below it keeps its defaults
                self._flatten(value, f"{name}.", where, written)

    def _value(self, name: str, raw: Any, where: str) -> Any:
        if name not in self.keys:
            raise UserError(self._unknown(name, raw, where))
        kind, field = self.keys[name]
        try:
            value = _convert(kind, raw, field.metadata.get("parse"))
        except UserError as error:
            raise UserError(f"{name} = {raw!r} ({where}): {error}") from None
        if problem := _range_problem(value, field):
            raise UserError(f"{name} = {raw!r} ({where}): {problem}")
        return value

    def _unknown(self, name: str, raw: Any, where: str) -> str:
        told = f"unknown key {name} (value {raw!r}, {where})"
        if name in self.groups:
            return f"{told}: {name} is a group; its keys: {self._siblings(name)}"
        candidates = [*self.keys, *self.groups]
        close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
        if not close:  # the right word in the wrong group, or without a group
            leaves = {key.rpartition(".")[2]: key for key in reversed(candidates)}
            close = [
                leaves[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1, cutoff=0.75)
            ]
        if close:
            return f"{told}; did you mean {close[0]}?"
        group = name.rpartition(".")[0]
        return f"{told}; allowed here: {self._siblings(group if group in self.groups else '')}"

    def _siblings(self, group: str) -> str:
        prefix = f"{group}." if group else ""
        return ", ".join(dict.fromkeys(k[len(prefix) :].split(".")[0] for k in self.keys if k.startswith(prefix)))


def _convert(kind: Any, raw: Any, parse: Callable[[Any], Any] | None = None) -> Any:
    """Plain value of type `kind` from YAML text, or a UserError that says what is allowed (without naming the key)."""
    if typing.get_origin(kind) is typing.Union:  # only ever Optional[...]
        if isinstance(raw, str) and raw.strip().lower() in NULL:
            return None
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        return _convert_list(typing.get_args(kind)[0], raw, parse)
    if not isinstance(raw, str):
        raise UserError(f"needs {_describe(kind)}, not a {'list' if isinstance(raw, list) else 'group of keys'}")
    if kind is str or kind is Path:
        return raw
    word = raw.strip()
    if kind is bool:
        if word.lower() in TRUE | FALSE:
            return word.lower() in TRUE
    elif issubclass(kind, enum.Enum):
        if word in kind.__members__:
            return word
    else:
        try:
            number = kind(word)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise UserError(f"needs {_describe(kind)}")


def _convert_list(item: Any, raw: Any, parse: Callable[[Any], Any] | None) -> list[Any]:
    if isinstance(raw, str) and raw.lstrip().startswith("["):
        raw = _flow(raw, "the list")
    if isinstance(raw, Mapping):
        raise UserError('needs a list; quote text that holds {} or ": ", as in ["A photo of a {}"]')
    if parse is not None:
        return list(parse(raw))
    if isinstance(raw, str):  # one value stands for a list of one, and "0,16,64" for a list of numbers
        raw = [raw] if item is str else raw.split(",")
    return [_convert(item, part) for part in raw]


def _describe(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of: {', '.join(member.name for member in kind)}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names[kind]


def _range_problem(value: Any, field: dataclasses.Field) -> str | None:
    """What is wrong with a number, or with the numbers of a list, given the field's range."""
    at_least, above, at_most = (field.metadata.get(bound) for bound in ("at_least", "above", "at_most"))
    numbers = [
        item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, (int, float))
    ]
    limits = []
    if at_least is not None:
        limits.append(f"at least {at_least}")
    if above is not None:
        limits.append(f"above {above}")
    if at_most is not None:
        limits.append(f"at most {at_most}")
    for number in numbers:
        too_low = (at_least is not None and number < at_least) or (above is not None and number <= above)
        if too_low or (at_most is not None and number > at_most):
            return f"out of range, must be {' and '.join(limits)}"
    return None


def _all_problems(config: Config, prefix: str = "") -> list[str]:
    lines = []
    for field in dataclasses.fields(typing.cast(Any, config)):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            lines += _all_problems(value, f"{prefix}{field.name}.")
        elif problem := _range_problem(value, field):
            lines.append(f"{prefix}{field.name} = {value!r}: {problem}")
    return lines + config.problems()


class _TextLoader(yaml.BaseLoader):
    """YAML with every scalar as text, and with a key given twice refused instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load_yaml(path: Path) -> Any:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), _TextLoader)
    except FileNotFoundError:
        raise UserError(f"the config file {path} does not exist; check --config_path") from None
    except OSError as error:
        raise UserError(f"the config file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the config file {path} is not UTF-8 text; is it a YAML file?") from None
    except yaml.YAMLError as error:
        raise UserError(f"the config file {path} is not valid YAML: {_yaml_reason(error)}") from None
    return {} if tree is None or tree == "" else tree


def _flow(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        raise UserError(
            f'{what} is not valid YAML ({_yaml_reason(error)}); quote each text: ["A photo of a {{}}", ...]'
        ) from None


def _yaml_reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{error.problem}"
