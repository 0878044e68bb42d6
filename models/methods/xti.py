"""XTI, Extended Textual Inversion: one word embedding per cross-attention layer (P+, Voynov et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..conditioning.conditioning import ConceptVectors
from .base import Method


@dataclass(frozen=True)
class XTIConfig:
    """Nothing to set: all vectors start as the super-category word's, and the loss leads them apart."""


class XTI(Method):
    """L trained vectors, `words` [L, 1, D]: a point of the space P+, the same for every timestep."""

    name = "xti"
    config_class = XTIConfig
    config: XTIConfig

    def __init__(self, config: XTIConfig, *, num_layers: int, text_width: int) -> None:
        super().__init__(config, num_layers=num_layers, text_width=text_width)
        self.words = nn.Parameter(torch.zeros(num_layers, 1, text_width))

    @classmethod
    def create(
        cls, config: XTIConfig, *, num_layers: int, initial_embedding: Tensor, generator: torch.Generator | None = None
    ) -> Self:
        """See `Method.create`; every layer starts at the initial embedding, and nothing is drawn."""
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
        """The vector of each layer [L, 1, D]; see `Method.vectors`."""
        self.check_truncation(truncation)
        return ConceptVectors(words=self.words)
