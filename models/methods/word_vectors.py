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

from ...utils.errors import UserError
from ..backbone.frame import Frame
from ..conditioning.conditioning import ConceptVectors
from .base import Generators, Method, Start

MAX_VECTORS = 75  # CLIP reads 77 tokens, of which two are the marks of beginning and end


@dataclass(frozen=True)
class WordVectorsConfig:
    """num_vectors: n, how many token positions the concept takes. All vectors start as the super-category word's.

    key_lock: attention keys are read from the super-category word, values from the concept, as Perfusion does.
    """

    num_vectors: int = 1
    key_lock: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_vectors <= MAX_VECTORS:
            raise UserError(f"num_vectors {self.num_vectors}: must lie in 1..{MAX_VECTORS}, what a prompt has room for")


class WordVectors(Method):
    """Trained vectors `words` [1|P, 1, D], or [1|P, 1, n, D] for a concept of n positions."""

    config_class = WordVectorsConfig
    config: WordVectorsConfig
    per_place: ClassVar[bool]

    def __init__(self, config: WordVectorsConfig, frame: Frame) -> None:
        super().__init__(config, frame)
        self.positions = config.num_vectors
        several = [] if self.positions == 1 else [self.positions]
        places = frame.num_places if self.per_place else 1
        self.words = nn.Parameter(torch.zeros(places, 1, *several, frame.text_width))

    @classmethod
    def create(cls, config: WordVectorsConfig, frame: Frame, start: Start) -> Self:
        """See `Method.create`; every vector starts at the initial embedding, and nothing is drawn."""
        concept = cls(config, frame)
        concept.word_for_keys = start.word
        with torch.no_grad():
            concept.words.copy_(start.embedding)
        return concept

    def vectors(self, timesteps: Tensor, truncation: int | None = None, generator: Generators = None) -> ConceptVectors:
        """The vectors, the same at every timestep; see `Method.vectors`."""
        self.check_truncation(truncation)
        return ConceptVectors(words=self.words, key_words=self.key_word)


class TextualInversion(WordVectors):
    """One vector, or n. Interchangeable with other tools' embedding files (`concepts.embeddings`)."""

    name = "textual_inversion"
    per_place = False


class XTI(WordVectors):
    """One vector, or n, per place: a point of the space P+."""

    name = "xti"
    per_place = True
