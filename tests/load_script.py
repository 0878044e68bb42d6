"""Scripts as modules: their `main` runs in this process, where its output and exceptions can be seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from neti.training.miniature.world.objects import find_font
from neti.utils.errors import UserError

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load_script(name: str) -> ModuleType:
    """The module of `scripts/<name>.py`."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require_font() -> None:
    """Skip the test where the miniature's world cannot be drawn."""
    try:
        find_font()
    except UserError:
        pytest.skip("the font Noto Color Emoji is not installed")
