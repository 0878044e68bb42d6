"""What every personalisation method is: something that gives a concept's vectors for given timesteps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...utils.errors import UserError
from ..conditioning.conditioning import ConceptVectors


class Method(nn.Module, ABC):
    """One learned concept. A new method is one file with a subclass and a config, and one line in `METHODS`.

    A subclass's state dict must hold everything its vectors depend on beyond `config`, `num_layers` and `text_width`:
    those are what a concept file stores. `__init__` only builds the module; `create` draws its initial values.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]  # a frozen dataclass of numbers, booleans, strings and None
    truncation_width: int = 0
    """How many units `truncation` may keep; 0: the method cannot be truncated."""

    def __init__(self, config: Any, *, num_layers: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.num_layers = num_layers
        self.text_width = text_width

    @classmethod
    @abstractmethod
    def create(
        cls, config: Any, *, num_layers: int, initial_embedding: Tensor, generator: torch.Generator | None = None
    ) -> Self:
        """A new concept, ready to be trained.

        num_layers: L of the U-Net. initial_embedding [D]: token embedding of the super-category word, where the concept
        starts (or whose norm it keeps). generator: CPU generator of all initial values, so that a seed fixes them.
        """

    @abstractmethod
    def vectors(
        self,
        timesteps: Tensor,
        truncation: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> ConceptVectors:
        """The concept at `timesteps` [B] and all L layers, in float32, as ConceptVectors [L|1, B|1, D].

        truncation: how many units to keep, None for all; UserError outside 0..truncation_width.
        generator: randomness of train mode (nested dropout); eval mode is deterministic. One per timestep makes what a
            timestep draws independent of the others; they must be on the CPU.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained: optimiser parameter groups, each with `lr_scale`, a factor on the base learning rate."""
        return [{"params": list(self.parameters()), "lr_scale": 1.0}]

    def check_truncation(self, truncation: int | None) -> None:
        """Raise UserError if this method cannot keep `truncation` units."""
        if truncation is not None and not self.truncation_width:
            raise UserError(
                f"truncation {truncation}: a concept of method '{self.name}' cannot be truncated; leave it out"
            )
        if truncation is not None and not 0 <= truncation <= self.truncation_width:
            raise UserError(
                f"truncation {truncation}: must lie in 0..{self.truncation_width}, the units this concept has"
            )
