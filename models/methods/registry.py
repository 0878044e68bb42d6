"""The personalisation methods, by the name that configs and concept files use."""

from __future__ import annotations

from .base import Method, Start
from .elite.method import ELITE
from .neti.method import NeTI, NeTIConfig
from .perfusion.method import Perfusion
from .word_vectors import XTI, TextualInversion, WordVectorsConfig

METHODS: dict[str, type[Method]] = {
    "neti": NeTI,
    "textual_inversion": TextualInversion,
    "xti": XTI,
    "perfusion": Perfusion,
    "elite": ELITE,
}

__all__ = [
    "ELITE",
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
