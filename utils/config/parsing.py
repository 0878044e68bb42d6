"""From YAML files and command lines to frozen config dataclasses, with every mistake reported in one line.

pyrallis builds the dataclasses and prints `--help`. What it lacks is done here, before it sees anything: unknown keys
with the nearest right one, strict types, ranges, and all mistakes at once instead of the first one's traceback.

YAML scalars are read as text and then converted to the type the key asks for. So `1e-3` is a number,
`mixed_precision: no` is the word "no" and not False, and a run may be called `007` or `2024-01-01`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import pyrallis
import yaml
from pyrallis.argparsing import ArgumentParser

from ..errors import UserError, shown
from ..files import user_path, write_atomically
from .values import convert, range_problem
from .yaml_text import load_yaml, parse_flow

COMMAND_LINE = "command line"
CUTOFF = 0.75  # how alike (difflib) a key must be to be suggested
MAX_PROBLEMS = 20  # a file that is no config at all would fill the screen


class Config:
    """Base of every config dataclass. Ranges stand with the fields (`setting`), checks across fields in `problems`.

    absent: keys that users of other programs look for -> what to write instead, given the key's own text and the texts
    of all keys.
    """

    absent: ClassVar[Mapping[str, Callable[[Any, Mapping[str, Any]], str]]] = {}

    def problems(self) -> list[str]:
        """One line for each combination of this config's values that makes no sense."""
        return []

    def validate(self) -> None:
        """Raise one UserError with every problem of this config and the configs inside it, one per line."""
        if lines := _all_problems(self):
            raise UserError("\n".join(lines))


C = TypeVar("C", bound=Config)


def parse_config(config_class: type[C], argv: Sequence[str]) -> C:
    """The config that `argv` describes: `[--config_path X.yaml] [--group.key value | --group.key=value | --flag] ...`.

    --config_path may be given several times: a later file wins over an earlier one, so that a short file of a few keys
    (a preset) goes on top of a whole recipe. The command line wins over the files.
    Raises one UserError that holds every mistake, one per line: first those of single keys, then, if there are none,
    those across keys. `--help` prints all keys and exits.
    """
    if {"-h", "--help"} & set(argv):
        ArgumentParser(config_class=config_class).parse_args(["--help"])
    reader = _Reader(config_class)
    values = reader.read(argv)
    if lines := reader.problems:
        more = [f"and {len(lines) - MAX_PROBLEMS} more mistakes"] if len(lines) > MAX_PROBLEMS else []
        raise UserError("\n".join(lines[:MAX_PROBLEMS] + more))
    config = pyrallis.decode(config_class, values)
    config.validate()
    return config


def to_plain_dict(config: Any) -> Any:
    """A config as nested dicts, lists, strings, numbers, booleans and None, ready for JSON or YAML."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_plain_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, Mapping):
        return {name: to_plain_dict(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain_dict(item) for item in config]
    return config


def save_yaml(config: Config, path: Path) -> None:
    """Write a config, atomically, as YAML that `parse_config` reads back to an equal config. UserError if it cannot."""
    text = yaml.safe_dump(to_plain_dict(config), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, lambda file: file.write(text.encode()))


class _Key(NamedTuple):
    type: Any
    field: dataclasses.Field


class _Written(NamedTuple):
    raw: Any  # text, or a list or mapping of texts
    where: str  # the file, or the command line


class _Reader:
    """What one config's keys are, what is written for them, and everything that is wrong with it."""

    def __init__(self, config_class: type[Config]) -> None:
        self.keys: dict[str, _Key] = {}  # by dotted name
        self.groups: list[str] = []
        self.problems: list[str] = []
        self.files: list[str] = []
        self.absent = config_class.absent
        self.texts: dict[str, Any] = {}
        self._list_keys(config_class, "")

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values as nested dicts, as far as they are right."""
        options = self._options(argv)
        written: dict[str, _Written] = {}
        for path in self.files:
            self._flatten(load_yaml(user_path(path)), "", path, written)
        for name, text in options.items():
            is_mapping = name in self.groups and text.lstrip().startswith("{")
            try:
                self._flatten({name: parse_flow(text) if is_mapping else text}, "", COMMAND_LINE, written)
            except UserError as error:
                self.problems.append(f"{name} = {shown(text)} ({COMMAND_LINE}): {error}")
        values: dict[str, Any] = {}
        self.texts = {name: raw for name, (raw, _) in written.items()}
        for name, (raw, where) in written.items():
            try:
                values[name] = self._value(name, raw, where)
            except UserError as error:
                self.problems.append(str(error))
        self._report_missing(written)
        return pyrallis.utils.deflatten(values)

    def _list_keys(self, config_class: type, prefix: str) -> None:
        types = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            name, kind = prefix + field.name, types[field.name]
            if dataclasses.is_dataclass(kind):
                self.groups.append(name)
                self._list_keys(typing.cast(type, kind), f"{name}.")
            else:
                self.keys[name] = _Key(kind, field)

    def _options(self, argv: Sequence[str]) -> dict[str, str]:
        options: dict[str, str] = {}
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                hint = 'options are written --group.key value, and a list in one piece: "[1, 2]"'
                self.problems.append(f"unexpected argument {shown(word)}; {hint}")
                continue
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")
            following = rest[0] if rest and not rest[0].startswith("--") else None
            if name == pyrallis.utils.CONFIG_ARG and (equals or following is not None):
                self.files.append(text if equals else rest.pop(0))
            elif equals:
                options[name] = text
            elif following is not None:
                options[name] = rest.pop(0)
            elif name in self.keys and self.keys[name].type is bool:
                options[name] = "true"
            elif name in self.keys or name == pyrallis.utils.CONFIG_ARG:
                self.problems.append(f"--{name} needs a value: --{name} VALUE")
            else:
                options[name] = ""
        return options

    def _flatten(self, tree: Any, prefix: str, where: str, written: dict[str, _Written]) -> None:
        if not isinstance(tree, Mapping):
            place = f"{prefix[:-1]} = {shown(tree)} ({where})" if prefix else where
            self.problems.append(f"{place}: must hold keys, written as `key: value`")
            return
        for key, raw in tree.items():
            name = prefix + key
            if name not in self.groups:
                written[name] = _Written(raw, where)
            elif raw != "":  # a group with nothing below it keeps its defaults
                self._flatten(raw, f"{name}.", where, written)

    def _value(self, name: str, raw: Any, where: str) -> Any:
        if name not in self.keys:
            word = name if name.isprintable() and len(name) < 100 else shown(name)
            raise UserError(f"unknown key {word} = {shown(raw)} ({where}); {self._suggestion(name)}")
        kind, field = self.keys[name]
        if raw == "" and where == COMMAND_LINE and typing.get_origin(kind) is typing.Union:
            raise UserError(f"--{name} is empty, as an unset variable is; leave it out, or write --{name} null")
        try:
            value = convert(kind, raw, field.metadata.get("parse"))
        except UserError as error:
            raise UserError(f"{name} = {shown(raw)} ({where}): {error}") from None
        if problem := range_problem(value, field):
            raise UserError(f"{name} = {shown(raw)} ({where}): {problem}")
        return value

    def _suggestion(self, name: str) -> str:
        group, _, leaf = name.rpartition(".")
        if leaf in self.absent:
            return self.absent[leaf](self.texts[name], self.texts)
        names = [*self.keys, *self.groups] if len(name) < 100 else []
        by_leaf = {known.rpartition(".")[2]: known for known in reversed(names)}
        if close := difflib.get_close_matches(name, names, n=1, cutoff=CUTOFF):
            return f"did you mean {close[0]}?"
        if close := difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=CUTOFF):  # right word, wrong group or none
            return f"did you mean {by_leaf[close[0]]}?"
        prefix = f"{group}." if group in self.groups else ""
        siblings = (known.removeprefix(prefix).split(".")[0] for known in self.keys if known.startswith(prefix))
        return f"allowed {f'in {group}' if prefix else 'here'}: {', '.join(dict.fromkeys(siblings))}"

    def _report_missing(self, written: Mapping[str, _Written]) -> None:
        reported = " ".join(
            self.problems
        )  # a misspelt key explains itself: its right name is not reported missing as well
        for name, key in self.keys.items():
            required = key.field.default is dataclasses.MISSING and key.field.default_factory is dataclasses.MISSING
            if required and name not in written and name not in reported:
                file = self.files[0] if self.files else "a YAML file (--config_path X.yaml)"
                self.problems.append(f"{name} is missing; write it in {file} or pass --{name} VALUE")


def _all_problems(config: Config, prefix: str = "") -> list[str]:
    lines = []
    for field in dataclasses.fields(typing.cast(Any, config)):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            lines += _all_problems(value, f"{prefix}{field.name}.")
        elif problem := range_problem(value, field):
            lines.append(f"{prefix}{field.name} = {shown(value)}: {problem}")
    return lines + config.problems()
