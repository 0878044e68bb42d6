"""What a concept file that others get does not say: where things lie on its maker's disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any


def without_paths(value: Any) -> Any:
    """JSON with the last name of every path that leads through somebody's disk: files are made to be shared.

    A path inside the folder that a command was called in (`photos/mug`, `models/miniature/sd`) tells nothing and stays.
    """
    if isinstance(value, Mapping):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(part) for part in value]
    if isinstance(value, str):
        windows = PureWindowsPath(value)  # knows both separators
        if windows.is_absolute() or value.startswith(("/", "~", "..")):
            return windows.name
    return value
