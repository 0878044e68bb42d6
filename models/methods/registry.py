"""The personalisation methods, by the name that configs and concept files use."""

from __future__ import annotations

from .base import Method, Start
from .neti.method import NeTI, NeTIConfig
from .perfusion.method import Perfusion
from .word_vectors import XTI, TextualInversion, WordVectorsConfig

METHODS: dict[str, type[Method]] = {
    "neti": NeTI,
    "textual_inversion": TextualInversion,
    "xti": XTI,
    "perfusion": Perfusion,
}

__all__ = [
    "METHODS",
    "XTI",
    "Method",
    "NeTI",
    "NeTIConfig",
    "Perfusion",
    "Start",
    "TextualInversion",
    "WordVectorsConfig",
]
