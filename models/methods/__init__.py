"""The personalisation methods, by the name that configs and concept files use."""

from __future__ import annotations

from .base import Method, Start
from .elite.method import ELITE
from .neti.method import NeTI, NeTIConfig
from .word_vectors import XTI, TextualInversion, WordVectorsConfig

METHODS: dict[str, type[Method]] = {
    "neti": NeTI,
    "textual_inversion": TextualInversion,
    "xti": XTI,
    "elite": ELITE,
}

__all__ = ["ELITE", "METHODS", "XTI", "Method", "NeTI", "NeTIConfig", "Start", "TextualInversion", "WordVectorsConfig"]
