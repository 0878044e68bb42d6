"""YAML with every scalar as text; what type it is, the config's key decides.

Limits on size, depth and number of values stand here, in the one reader: a file beyond them is a slip or an attack, and
would take hours, or all memory, to find wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, shorten
from ..files import read_text

MAX_DEPTH = 16  # a mixture's rule, the deepest thing there is, needs 5
MAX_VALUES = 50_000  # aliases written out, as every reader of the tree sees them


def load_yaml(path: Path) -> Any:
    """The tree in a YAML file, {} if empty. UserError, with the line, if it is missing, unreadable or malformed."""
    text = read_text(path, "config file")
    try:
        tree = yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        raise UserError(f"the config file {path} is not valid YAML: {_reason(error)}") from None
    return {} if tree is None or tree == "" else tree


def parse_flow(text: str) -> Any:
    """A list or mapping written in one line, as in `[1, 2]` or `{a: 1}`."""
    try:
        return yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        hint = 'put text in quotes, as in ["A photo of a {}", "App icon of {}"]'
        raise UserError(f"not a valid YAML list or mapping ({_reason(error)}); {hint}") from None


class _TextLoader(yaml.BaseLoader):
    """BaseLoader leaves scalars as text; besides, a key given twice is refused instead of the last one winning."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}  # id of a node -> values in it, for its aliases

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self.values
        self.depth += 1
        self.values += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self.values += self.sizes.get(id(node), 0)
        else:
            self.sizes[id(node)] = self.values - before
        if self.values > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES} values", event.start_mark)
        return node

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


def _reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return shorten(" ".join(str(error).split()))
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{shorten(error.problem or '')}"
