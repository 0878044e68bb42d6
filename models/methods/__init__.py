"""The personalisation methods, by the name that configs and concept files use."""

from __future__ import annotations

from .base import Method
from .neti import NeTI, NeTIConfig

METHODS: dict[str, type[Method]] = {"neti": NeTI}

__all__ = ["METHODS", "Method", "NeTI", "NeTIConfig"]
