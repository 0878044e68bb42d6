"""The concept as plain word vectors: Textual Inversion and XTI.

Textual Inversion (Gal et al., 2022): one word embedding, the same for every timestep and layer.
XTI, Extended Textual Inversion (P+, Voynov et al., 2023): one word embedding per place, the same for every timestep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..backbone.frame import Frame
from ..conditioning.conditioning import ConceptVectors
from .base import Generators, Method, Start


@dataclass(frozen=True)
class WordVectorsConfig:
    """Nothing to set: the vectors start as the super-category word's and go where the loss leads them."""


class WordVectors(Method):
    """Trained vectors `words` [1|P, 1, D]."""

    config_class = WordVectorsConfig
    config: WordVectorsConfig
    per_place: ClassVar[bool]

    def __init__(self, config: WordVectorsConfig, frame: Frame) -> None:
        super().__init__(config, frame)
        self.words = nn.Parameter(torch.zeros(frame.num_places if self.per_place else 1, 1, frame.text_width))

    @classmethod
    def create(cls, config: WordVectorsConfig, frame: Frame, start: Start) -> Self:
        """See `Method.create`; every vector starts at the initial embedding, and nothing is drawn."""
        concept = cls(config, frame)
        with torch.no_grad():
            concept.words.copy_(start.embedding)
        return concept

    def vectors(self, timesteps: Tensor, truncation: int | None = None, generator: Generators = None) -> ConceptVectors:
        """The vectors [1|P, 1, D]; see `Method.vectors`."""
        self.check_truncation(truncation)
        return ConceptVectors(words=self.words)


class TextualInversion(WordVectors):
    """One vector. Interchangeable with other tools' embedding files (`concepts.embeddings`)."""

    name = "textual_inversion"
    per_place = False


class XTI(WordVectors):
    """One vector per place: a point of the space P+."""

    name = "xti"
    per_place = True
