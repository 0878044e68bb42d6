"""The personalisation methods, by the name that configs and concept files use."""

from __future__ import annotations

from .base import Method
from .neti.method import NeTI, NeTIConfig
from .textual_inversion import TextualInversion, TextualInversionConfig
from .xti import XTI, XTIConfig

METHODS: dict[str, type[Method]] = {
    "neti": NeTI,
    "textual_inversion": TextualInversion,
    "xti": XTI,
}

__all__ = [
    "METHODS",
    "XTI",
    "Method",
    "NeTI",
    "NeTIConfig",
    "TextualInversion",
    "TextualInversionConfig",
    "XTIConfig",
]
