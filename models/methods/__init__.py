"""The personalisation methods: `METHODS`, and whatever else `registry` has.

Loaded on first use: a config that only lists a method's settings must not cost the seconds that PyTorch takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registry import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module(f"{__name__}.registry"), name)
