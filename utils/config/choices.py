"""Named choices: what a setting may be when it is one word out of a few."""

from __future__ import annotations

from enum import Enum


class Choice(str, Enum):
    """Base of every named choice; a member equals, prints and formats as its word: `SquareMode.crop == "crop"`.

    Members are named exactly as their words, because pyrallis decodes an Enum by the member's name.
    """

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, format_spec: str) -> str:
        return format(str(self.value), format_spec)
