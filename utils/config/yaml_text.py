"""YAML with every scalar as text; what type it is, the config's key decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError


def load_yaml(path: Path) -> Any:
    """The tree in a YAML file, {} if empty. UserError, with the line, if it is missing, unreadable or malformed."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), _TextLoader)
    except FileNotFoundError:
        raise UserError(f"the config file {path} does not exist; check --config_path") from None
    except OSError as error:
        raise UserError(f"the config file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the config file {path} is not UTF-8 text; is it a YAML file?") from None
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
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{error.problem}"
