"""What every method is made for: the sizes and the layers of a text-to-image model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

from ...utils.config.records import from_plain
from ..attention.layers import Layer


@dataclass(frozen=True)
class Frame:
    """layers: all L, in execution order. text_widths: of each text tower, (768,) on SD 1.x. tokens: T."""

    layers: tuple[Layer, ...]
    text_widths: tuple[int, ...]
    tokens: int

    @property
    def num_places(self) -> int:
        """P, the spots where text enters (16 on SD 1.x/2.x, 11 on SDXL)."""
        return self.layers[-1].place + 1

    @property
    def text_width(self) -> int:
        """D, the width of the text that the U-Net reads (768 on SD 1.x, 1024 on SD 2.x, 2048 on SDXL)."""
        return sum(self.text_widths)

    @property
    def place_names(self) -> tuple[str, ...]:
        """Names of the places, in order."""
        return tuple(dict.fromkeys(layer.place_name for layer in self.layers))

    @property
    def sizes(self) -> tuple[int, tuple[int, ...]]:
        """What a concept must have in common with a model to fit it: (places, text widths)."""
        return self.num_places, self.text_widths

    @classmethod
    def of_sizes(cls, num_places: int, text_widths: Sequence[int], tokens: int = 77) -> Frame:
        """A frame of which only the sizes are known, as of a concept file that does not list the layers."""
        layers = tuple(Layer(i, f"layer {i}", "", 1, 0, i) for i in range(num_places))
        return cls(layers, tuple(text_widths), tokens)

    def record(self) -> dict[str, Any]:
        """As plain lists and numbers, for JSON."""
        return {
            "layers": [list(astuple(layer)) for layer in self.layers],
            "text_widths": list(self.text_widths),
            "tokens": self.tokens,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Frame:
        """The frame of a `record`; ValueError for anything else."""
        plain = from_plain(_Record, record)
        frame = cls(tuple(Layer(*fields) for fields in plain.layers), plain.text_widths, plain.tokens)
        steps = [after.place - before.place for before, after in pairwise(frame.layers)]
        if not frame.layers or frame.layers[0].place != 0 or not set(steps) <= {0, 1}:
            raise ValueError("the layers' places are not numbered from 0")
        if [layer.index for layer in frame.layers] != list(range(len(frame.layers))):
            raise ValueError("the layers are not numbered from 0")
        if not frame.text_widths or min(*frame.text_widths, frame.tokens) < 1:
            raise ValueError("the frame has no text")
        return frame


@dataclass(frozen=True)
class _Record:
    layers: tuple[tuple[int, str, str, int, int, int], ...]
    text_widths: tuple[int, ...]
    tokens: int
