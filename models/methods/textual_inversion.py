"""Textual Inversion: the concept is one word embedding, the same for every timestep and layer (Gal et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..conditioning.conditioning import ConceptVectors
from .base import Method


@dataclass(frozen=True)
class TextualInversionConfig:
    """Nothing to set: the vector starts as the super-category word's and goes where the loss leads it."""


class TextualInversion(Method):
    """One trained vector, `words` [1, 1, D]. Interchangeable with other tools' embedding files (`embedding_files`)."""

    name = "textual_inversion"
    config_class = TextualInversionConfig
    config: TextualInversionConfig

    def __init__(self, config: TextualInversionConfig, *, num_layers: int, text_width: int) -> None:
        super().__init__(config, num_layers=num_layers, text_width=text_width)
        self.words = nn.Parameter(torch.zeros(1, 1, text_width))

    @classmethod
    def create(
        cls,
        config: TextualInversionConfig,
        *,
        num_layers: int,
        initial_embedding: Tensor,
        generator: torch.Generator | None = None,
    ) -> Self:
        """See `Method.create`; starts at the initial embedding, and nothing is drawn."""
        concept = cls(config, num_layers=num_layers, text_width=len(initial_embedding))
        with torch.no_grad():
            concept.words.copy_(initial_embedding)
        return concept

    def vectors(
        self,
        timesteps: Tensor,
        truncation: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> ConceptVectors:
        """The one vector [1, 1, D]; see `Method.vectors`."""
        self.check_truncation(truncation)
        return ConceptVectors(words=self.words)
